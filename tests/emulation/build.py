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
CHECKOUT = HERE.parent.parent
SOURCES = CHECKOUT / "csrc"
CACHE = CHECKOUT / "build" / "emulation"

EMULATOR = ("fibers.cpp", "shadow.cpp", "collectives.cpp", "machine.cpp")
COMMON_FLAGS = (
    *("-std=c++17", "-g", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-DSPARC_EMULATED"),
)
# The emulator itself goes without sanitizers: it handles poisoned memory, and a check of every byte of its records
# would take most of the time.
EMULATOR_FLAGS = (*COMMON_FLAGS, "-O2")
KERNEL_FLAGS = (
    *COMMON_FLAGS,
    *("-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
    "-Wno-unknown-pragmas",
)
LINK_FLAGS = ("-shared", "-fsanitize=address,undefined")


@functools.cache
def missing() -> str | None:
    """Why nothing can be emulated here, or None."""
    if not sys.platform.startswith("linux"):
        return "the emulation needs Linux"
    if shutil.which("g++") is None:
        return "the emulation needs g++"
    if importlib.util.find_spec("pybind11") is None:
        return "the emulation needs pybind11"
    if importlib.util.find_spec("numpy") is None:
        return "the emulation needs numpy"
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


def module(*sources: Path, defines: Sequence[str] = ()) -> Path:
    """The Python module made of these files, built unless it is there already.

    The first file holds ``PYBIND11_MODULE`` and gives the module its name.
    """
    flags = (*KERNEL_FLAGS, *(f"-D{define}" for define in defines), *_include_flags(sources))
    CACHE.mkdir(parents=True, exist_ok=True)
    with _lock(CACHE / "lock"):
        objects = [_compiled(HERE / name, EMULATOR_FLAGS, _headers(HERE)) for name in EMULATOR]
        headers = [*_headers(HERE), *_headers(SOURCES)]
        for source in sources:
            headers += [header for header in sorted(source.parent.glob("*.h")) if header not in headers]
        objects += [_compiled(source, flags, headers) for source in sources]
        name = sources[0].stem
        folder = CACHE / f"{name}-{_digest(*(str(path) for path in objects), *LINK_FLAGS)}"
        target = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not target.is_file():
            folder.mkdir(exist_ok=True)
            _run_compiler([*LINK_FLAGS, *map(str, objects)], target)
    return target


def _compiled(source: Path, flags: Sequence[str], headers: Sequence[Path]) -> Path:
    digest = _digest(_compiler_version(), sys.version, *flags, *_contents([source, *headers]))
    target = CACHE / f"{source.stem}-{digest}.o"
    if not target.is_file():
        _run_compiler([*flags, "-c", str(source)], target)
    return target


def _run_compiler(arguments: Sequence[str], target: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    result = subprocess.run(["g++", *arguments, "-o", str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"g++ failed\n{result.stdout}{result.stderr}")
    partial.replace(target)


def _include_flags(sources: Sequence[Path]) -> list[str]:
    import pybind11

    ours = [f"-I{folder}" for folder in (SOURCES, HERE, *dict.fromkeys(source.parent for source in sources))]
    return [*ours, "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


def _headers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh"))


def _contents(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield path.name
        yield path.read_text()


def _digest(*parts: str) -> str:
    joined = hashlib.sha256()
    for part in parts:
        joined.update(part.encode())
        joined.update(b"\0")
    return joined.hexdigest()[:16]


@functools.cache
def _compiler_version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
