"""Compiles kernels and the emulator into a Python module, with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
EMULATOR = HERE.parent / "emulator"
CHECKOUT = HERE.parents[2]
SOURCES = CHECKOUT / "csrc"
CACHE = CHECKOUT / "build" / "emulation"

COMMON_FLAGS = (
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-DSPARC_EMULATED"),
)
# The emulator itself goes without sanitizers: it handles poisoned memory, and a check of every byte of its records
# would take most of the time.
EMULATOR_FLAGS = (*COMMON_FLAGS, "-O2", "-g")
# Without those checks that AddressSanitizer makes as well: they take a third of the time to compile.
# -fno-thread-jumps: no second copy of a barrier for threads that come by another branch; emulator/places.h tells by
# its address whether all have come to the same one.
KERNEL_FLAGS = (
    *(*COMMON_FLAGS, "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-fno-sanitize=vptr,null,object-size,pointer-overflow", "-fno-thread-jumps"),
)
LINK_FLAGS = ("-shared", "-fsanitize=address,undefined")


@functools.cache
def missing() -> str | None:
    """Why nothing can be emulated here, or None."""
    if not sys.platform.startswith("linux"):
        return "the emulation needs Linux"
    if shutil.which("g++") is None:
        return "the emulation needs g++"
    for package in ("pybind11", "numpy"):
        if importlib.util.find_spec(package) is None:
            return f"the emulation needs {package}"
    if not (SOURCES / "common" / "device.cuh").is_file():
        return "the emulation runs from a checkout only"
    if not runtime_library("libasan.so"):
        return "g++ has no AddressSanitizer here"
    return None


def runtime_library(name: str) -> str | None:
    """The path of one of the compiler's own libraries."""
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return os.path.realpath(path) if os.path.isabs(path) else None


def module(source: Path) -> Path:
    """The Python module made of this file, which holds ``PYBIND11_MODULE`` and gives the module its name, and of the
    emulator; built unless it is there already."""
    CACHE.mkdir(parents=True, exist_ok=True)
    objects = [_compiled(part, EMULATOR_FLAGS) for part in sorted(EMULATOR.glob("*.cpp"))]
    objects.append(_compiled(source, (*KERNEL_FLAGS, *_include_flags())))
    folder = CACHE / f"{source.stem}-{_digest(*(path.name for path in objects), *LINK_FLAGS)}"
    folder.mkdir(exist_ok=True)
    target = folder / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    _run_compiler([*LINK_FLAGS, *map(str, objects)], target)
    return target


def _compiled(source: Path, flags: Sequence[str]) -> Path:
    """The object of a file, named after all that it depends on: the text of the file and of the headers that it
    includes, the compiler, Python and pybind11."""
    rule = _run(["g++", *flags, "-MM", str(source)])
    dependencies = rule.partition(":")[2].replace("\\\n", " ").split()
    contents = [Path(path).read_text() for path in dependencies]
    digest = _digest(_run(["g++", "--version"]), sys.version, _pybind11_version(), *flags, *contents)
    target = CACHE / f"{source.stem}-{digest}.o"
    _run_compiler([*flags, "-c", str(source)], target)
    return target


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed\n{result.stdout}{result.stderr}")
    return result.stdout


def _run_compiler(arguments: Sequence[str], target: Path) -> None:
    """Makes the target unless it is there. Another worker of the test run waits for the same file only, and compiles
    others meanwhile."""
    with _lock(target.with_name(f"{target.name}.lock")):
        if not target.is_file():
            partial = target.with_name(f"{target.name}.partial")
            _run(["g++", *arguments, "-o", str(partial)])
            partial.replace(target)


def _include_flags() -> list[str]:
    import pybind11

    ours = [f"-I{folder}" for folder in (SOURCES, EMULATOR, CHECKOUT)]
    return [*ours, "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


def _digest(*parts: str) -> str:
    joined = hashlib.sha256()
    for part in parts:
        joined.update(part.encode())
        joined.update(b"\0")
    return joined.hexdigest()[:16]


def _pybind11_version() -> str:
    import pybind11

    return str(pybind11.__version__)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
