"""What the tables are made from, as one number that is written below them: as long as it is the same, so are they.

To compute them takes minutes of CPU. Everything that they depend on is in the number: the sources of the kernels, of
their launches and of this tool, the releases of the compilers, and the text of the tables. That the library was built
from these sources is for others to see (tests/test_cuda_resources.py compares its registers).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cuda_resources import ROOT, compiled_with
from tools.sass_model.launches import OPS

STAMP = "\n<!-- Of these tables and all that they are made from: {} -->\n"
PYTHON = (
    "setup.py",
    "tools/sass_model/*.py",
    "tests/compile_kernels.py",
    "tests/ops/alignment/launches.py",
    "sparc_kernels/ops/_*.py",
    "sparc_kernels/ops/_alignment/*.py",
    "sparc_kernels/ops/_triton/*.py",
    *(f"sparc_kernels/ops/{op}/*.py" for op in OPS),
    *(f"tests/ops/{op}/launches.py" for op in OPS),
)
NATIVE = tuple(files for op in OPS for files in (f"csrc/{op}/*.cu", f"tests/ops/{op}/emulated.cpp"))


def _found(patterns: Iterable[str], root: Path) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    for pattern in patterns:
        if not any(root.glob(pattern)):
            raise FileNotFoundError(f"{pattern} is no longer there: what are the tables made from?")
    return found


def files(root: Path = ROOT) -> list[Path]:
    """All sources: Python's by name, C++'s with what they include."""
    native = dict.fromkeys(_found(NATIVE, root))
    left, folders = list(native), [root / name for name in ("csrc", "tests/emulation/emulator", ".")]
    while left:
        source = left.pop()
        for name in re.findall(r'^#include "(.+)"', source.read_text(), re.M):
            path = next(folder / name for folder in (source.parent, *folders) if (folder / name).is_file())
            if path not in native:
                native[path] = None
                left.append(path)
    return sorted({*native, *_found(PYTHON, root)})


def releases() -> dict[str, str]:
    return {"nvcc": str(compiled_with()), "triton": importlib.metadata.version("triton")}


def digest(text: str, root: Path = ROOT, made_with: Mapping[str, str] | None = None) -> str:
    """Of tables as they are printed."""
    found = hashlib.sha256(repr((text.strip(), sorted((made_with or releases()).items()))).encode())
    for path in files(root):
        found.update(f"\n{path.relative_to(root)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:32]


def stamped(text: str) -> str:
    return text + STAMP.format(digest(text))


def parted(text: str) -> tuple[str, str | None]:
    """Tables, and the number below them if there is one."""
    before, after = STAMP.split("{}")
    tables, found, rest = text.rpartition(before)
    return (tables, rest.removesuffix(after)) if found else (text, None)
