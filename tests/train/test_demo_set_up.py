"""What `make demo` sets up before it trains, with compilation and downloads left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sparc_kernels

CHECKOUT = Path(sparc_kernels.__file__).parent.parent
PYTHON = f"""#!/bin/sh
case "$*" in
    *setup.py*) exit 0 ;;
    "-m pip install"*) shift 3; exec "{sys.executable}" -m pip install --dry-run --no-index --no-deps "$@" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.mark.skipif(not (CHECKOUT / "Makefile").is_file(), reason="runs from a checkout only")
def test_pip_takes_the_list_of_the_trainers_packages(tmp_path: Path) -> None:
    """Some requirements have markers, which hold blanks and signs that a shell would read."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    target = str(tmp_path / ".demo")
    done = subprocess.run(
        ["make", f"VENV={tmp_path}", target], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compiling the kernels" in done.stdout
    assert (tmp_path / ".demo").exists()
