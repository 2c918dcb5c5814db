"""The cost model's tables in docs/cuda_resources.md are those of the library and of the code that are there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

from tests import cuda_resources
from tests.tools.test_sass_model import built, tool_run
from tools.sass_model import sources


@built
@pytest.mark.slow
@pytest.mark.timeout(1800)  # some ten minutes where the number has changed
def test_the_table_is_what_was_built() -> None:
    """Where anything that it is made from has changed; the number below it tells."""
    if (found := cuda_resources.compiled_with()) != cuda_resources.COMPILER:
        pytest.skip(f"the table is that of CUDA {cuda_resources.COMPILER}; the library was built with {found}")
    committed, number = sources.parted(cuda_resources.committed()[1])
    if number == sources.digest(committed):
        return
    written, now = sources.parted(tool_run("-m", "tools.sass_model", "--section"))
    assert written.strip() == committed.strip(), (
        "docs/cuda_resources.md is out of date: python -m tools.sass_model --write"
    )
    warnings.warn(
        f"the table holds, but takes minutes to compute: its number is {number}, would be {now}", stacklevel=1
    )


def test_the_number_of_a_table_is_of_all_it_is_made_from(tmp_path: Path) -> None:
    made_with = {"nvcc": "13.0", "triton": "3.6.0"}
    for path in sources.files():
        copy = tmp_path / path.relative_to(cuda_resources.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    before = sources.digest("| 1.0 |", tmp_path, made_with)
    assert before == sources.digest("| 1.0 |", cuda_resources.ROOT, made_with)
    others = [
        sources.digest("| 1.1 |", tmp_path, made_with),
        sources.digest("| 1.0 |", tmp_path, made_with | {"triton": "3.7.0"}),
    ]
    for name in ("csrc/pairs/launch_plan.h", "sparc_kernels/ops/_triton/tiles.py", "tools/sass_model/chips.py"):
        path = tmp_path / name
        path.write_text(path.read_text() + " ")
        others.append(sources.digest("| 1.0 |", tmp_path, made_with))
    assert len({before, *others}) == 1 + len(others)
    (tmp_path / "tests/ops/grouping/launches.py").unlink()
    with pytest.raises(FileNotFoundError, match="grouping"):
        sources.files(tmp_path)


def test_sources_of_the_table_import_no_others() -> None:
    """Of the ops' rooms and the rooms' tests."""
    found = {path for path in sources.files() if path.suffix == ".py"}
    imported = {
        module
        for path in found
        for module in re.findall(r"^\s*from ((?:sparc_kernels|tests)\.ops\.[\w.]+) import", path.read_text(), re.M)
    }
    assert "tests.ops.alignment.launches" in imported
    paths = [cuda_resources.ROOT / module.replace(".", "/") for module in imported]
    assert not [path for path in paths if path.with_suffix(".py") not in found and path / "__init__.py" not in found]
