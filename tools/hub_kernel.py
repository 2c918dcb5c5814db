"""Writes the library in the layout that Hugging Face's ``kernels`` loads, from what is built in the checkout.

    python -m tools.hub_kernel             # into dist/hub_kernel; `make hub-kernel` does this
    python -c "from pathlib import Path; from kernels import get_local_kernel as get; get(Path('dist/hub_kernel'))"

Several kernels, and several versions of one, have to live in one process beside an installed sparc_kernels. So a build
refers to itself by relative imports, and its ops stand in a namespace of their own, ``sparc_`` and 7 digits of what
the build holds. The namespace is a string in the shared objects, which is replaced by one as long: nothing is compiled.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from sparc_kernels._version import __version__

PACKAGE = Path(__file__).resolve().parent.parent / "sparc_kernels"
NAME, NAMESPACE = "sparc-kernels", "sparc_kernels"
STABLE_ABI = "210"  # setup.py builds for PyTorch 2.10; the libraries serve every later one
LEFT_OUT = ("train", "__main__.py", "__pycache__")
CPU_HALF, CUDA_HALF = "libsparc_cpu.so", "libsparc_cuda.so"


def sources() -> dict[str, str]:
    """The package's Python files by their path in it."""
    paths = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")))
    return {str(path): (PACKAGE / path).read_text() for path in paths if path.parts[0] not in LEFT_OUT}


def relative_imports(path: str, text: str) -> str:
    """``text``, the file ``path`` of the package, without an import of the package by its name.

    >>> relative_imports("ops/_dtype.py", "from sparc_kernels.ops import x")
    'from ..ops import x'
    """
    dots = "." * len(Path(path).parts)
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == NAMESPACE:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = re.sub(
                rf"from {NAMESPACE}\.?([\w.]*) import", rf"from {dots}\1 import", line, count=1
            )
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == NAMESPACE for alias in node.names):
            raise ValueError(f"{path}, line {node.lineno}: only `from {NAMESPACE}... import ...` can be made relative")
    # Modules that are named by a string, to be imported later.
    return re.sub(rf'"{NAMESPACE}\.([\w.]+)"', r'__name__.partition(".")[0] + ".\1"', "".join(lines))


def renamed(text: str, namespace: str) -> str:
    """``text`` with the ops in another namespace."""
    return text.replace(f"torch.ops.{NAMESPACE}", f"torch.ops.{namespace}").replace(f"{NAMESPACE}::", f"{namespace}::")


def renamed_library(library: bytes, namespace: str) -> bytes:
    """The shared object with its ops in another namespace, whose name is as long."""
    old, new = (b"\0" + name.encode() + b"\0" for name in (NAMESPACE, namespace))
    if len(old) != len(new) or library.count(NAMESPACE.encode()) != 1 or library.count(old) != 1:
        raise ValueError(f"{NAMESPACE!r} must stand in the library once, and {namespace!r} be as long")
    return library.replace(old, new)


def cuda_version() -> str:
    """That of the nvcc which setup.py would take, such as ``"13.0"``."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else f"/usr/local/cuda/bin:{os.environ.get('PATH', '')}")
    if nvcc is None:
        raise SystemExit("the CUDA half is built, but no nvcc tells by which version: pass --cuda 13.0, or --cuda none")
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return str(re.findall(r"release (\d+\.\d+)", text)[0])


def architectures(library: bytes) -> list[str]:
    """The compute capabilities of the CUDA half as metadata.json has them, such as ``["9.0", "12.0+PTX"]``."""
    named = re.findall(rb"sparc_cuda_architectures=([\w,]+);", library)[0].decode().split(",")
    dotted = [(kind, f"{number[:-1]}.{number[-1]}") for kind, _, number in (name.partition("_") for name in named)]
    ptx = [number for kind, number in dotted if kind == "compute"]
    return [number + "+PTX" * (number in ptx) for kind, number in dotted if kind == "sm"]


def write_variant(build: Path, halves: dict[str, bytes], backend: str, version: int) -> Path:
    """One folder ``build/<variant>``; ``backend`` is ``"cpu"`` or, for CUDA 13.0, ``"cu130"``."""
    files = sources()
    digest = hashlib.sha256("\0".join(f"{path}\0{text}" for path, text in files.items()).encode())
    for name in sorted(halves):
        digest.update(halves[name])
    namespace = f"sparc_{digest.hexdigest()[:7]}"
    folder = build / f"torch-stable-abi{STABLE_ABI}-{backend}-{platform.machine()}-{platform.system().lower()}"
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(renamed(relative_imports(path, text), namespace))
    for name, library in halves.items():
        (folder / name).write_bytes(renamed_library(library, namespace))
    metadata = {
        "id": f"sparc_kernels_{backend}_{digest.hexdigest()[:7]}",
        "name": NAME,
        "version": version,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    if CUDA_HALF in halves:
        metadata["backend"] = {"type": "cuda", "archs": architectures(halves[CUDA_HALF])}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return folder


def write(out: Path, cuda: str | None = None, version: int = 1) -> list[Path]:
    """The folders of the variants, for the halves that are built, under ``out/build``.

    Args:
        out: an earlier ``out/build`` is removed.
        cuda: the CUDA version of the CUDA half, ``"none"`` to leave it out; None asks nvcc.
        version: of the kernel on the Hub, which counts the breaks of its interface.
    """
    built = {name: (PACKAGE / name).read_bytes() for name in (CPU_HALF, CUDA_HALF) if (PACKAGE / name).is_file()}
    if CPU_HALF not in built:
        raise SystemExit(f"{CPU_HALF} is not built: `make install` does that")
    shutil.rmtree(out / "build", ignore_errors=True)
    folders = [write_variant(out / "build", {CPU_HALF: built[CPU_HALF]}, "cpu", version)]
    if CUDA_HALF in built and cuda != "none":
        backend = "cu" + (cuda or cuda_version()).replace(".", "")
        folders.append(write_variant(out / "build", built, backend, version))
    shutil.copy2(PACKAGE.parent / "LICENSE", out)
    return folders


def main() -> None:
    """Write, and say what."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=PACKAGE.parent / "dist" / "hub_kernel")
    parser.add_argument("--cuda", metavar="VERSION", help="CUDA version of the CUDA half, or none; default: ask nvcc")
    parser.add_argument("--version", type=int, default=1, help="of the kernel on the Hub")
    arguments = parser.parse_args()
    for folder in write(arguments.out, arguments.cuda, arguments.version):
        print(f"sparc_kernels {__version__}: {folder}")


if __name__ == "__main__":
    main()
