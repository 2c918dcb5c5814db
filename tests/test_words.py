"""What is shared names no room and speaks no family's language: a new op touches no shared file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparc_kernels.ops._room import rooms

ROOT = Path(__file__).parent.parent

# Code that every op goes through, as glob patterns. Exports (`__init__.py` of the package, of functional and modules)
# and documents may name ops; so may what looks at the whole library from outside, as a user does.
SHARED = (
    "sparc_kernels/_*.py",
    "sparc_kernels/distributed/*.py",
    "sparc_kernels/functional/_common.py",
    "sparc_kernels/ops/_*.py",
    "sparc_kernels/ops/_triton/*.py",
    "csrc/common/*",
    "csrc/pairs/*",
    "benchmarks/measure/*.py",
    "benchmarks/report/*.py",
    "tests/compile_kernels.py",
    "tests/conftest.py",
    "tests/emulation/emulator/*",
    "tests/emulation/host/*",
    "tests/emulation/selftest/*",
    "tests/test_dispatch.py",
    "tests/test_native_build.py",
    "tests/test_rooms.py",
    "tests/test_triton_compile.py",
    "tests/tolerance.py",
)
# "alignment" is of memory there.
ALLOWED = {f"tests/emulation/{folder}/*": frozenset({"alignment"}) for folder in ("emulator", "host", "selftest")}
EXPORTS = ("sparc_kernels/__init__.py",)
WORDS = (
    *("sigma", "threshold", "thresholds", "patch", "patches", "caption", "captions"),
    *("alignment", "grouping", "grouped", "contrastive"),
)
# Inside a name too (`n_patches`, `patchMask`, `kPatch`), but not in `dispatch`.
_ENDS = r"(?<![a-z])(?:{words})(?![a-z])|(?:{capitalised})(?![a-z])"


def files(pattern: str) -> list[Path]:
    found = [path for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    return [path for path in found if path.relative_to(ROOT).as_posix() not in EXPORTS]


def strangers(text: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Names of rooms and their ops, and words of one family, in ``text``."""
    names = {name for room in rooms() for name in (room.name, *(op.name for op in room.ops))}
    plain = re.sub(r"monkeypatch|MonkeyPatch|mock\.patch", "", text)
    words = [*names, *(word for word in WORDS if word not in allowed)]
    lower = "|".join([*words, *map(str.upper, words)])
    capitalised = "|".join("".join(part.capitalize() for part in word.split("_")) for word in words)
    return sorted(set(re.findall(_ENDS.format(words=lower, capitalised=capitalised), plain)))


@pytest.mark.parametrize("pattern", SHARED)
def test_shared_code_speaks_of_no_op(pattern: str) -> None:
    assert files(pattern), "nothing lies there"
    found = {
        str(path.relative_to(ROOT)): strangers(path.read_text(), ALLOWED.get(pattern, frozenset()))
        for path in files(pattern)
    }
    assert not {path: words for path, words in found.items() if words}


def test_words_are_found() -> None:
    text = "n_patches = 3\nif op == 'fine_grained': kThreshold = FineGrainedArgs\nmonkeypatch, dispatch, mock.patch"
    assert strangers(text) == ["FineGrained", "Threshold", "fine_grained", "patches"]
    assert set(ALLOWED) <= set(SHARED)
