"""The wheel under many releases of PyTorch and Python: `make wheel-matrix`.

    python -m tools.wheel_matrix                                         # all; many gigabytes pass through
    python -m tools.wheel_matrix --torch 2.10.0 newest --python 3.11 3.13

Each combination gets an environment of its own, ``tools/wheel_check.py`` in it, and ``python -m sparc_kernels``. A CUDA
build of PyTorch wants a few gigabytes of NVIDIA's libraries to be imported at all, the same for every Python: they are
installed once per release of PyTorch, and linked into its environments. Triton and the rest are left out. Everything is
removed as soon as it is not needed, so at most one release stands on the disk.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
TORCH = ("2.10.0", "2.11.0", "2.13.0", "newest")
PYTHON = ("3.10", "3.11", "3.12", "3.13")
# What `import torch` and the checks need beside PyTorch itself.
PURE = ("typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "filelock", "setuptools", "numpy")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Failed(Exception):
    """A step that failed, with the last line of what it said."""


def run(*command: object, cwd: Path | None = None) -> str:
    result = subprocess.run([str(c) for c in command], cwd=cwd, env=CLEAN, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise Failed(lines[-1].strip() if lines else f"exit status {result.returncode}")
    return result.stdout


def find_python(version: str) -> Path | None:
    """An interpreter of that minor version: on the path, or among those of pyenv."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv)]
    for candidate in filter(None, candidates):
        asked = subprocess.run(
            [candidate, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True
        )
        if asked.stdout.split() == version.split("."):
            return Path(candidate)
    return None


def newest_torch() -> str:
    listed = run(sys.executable, "-m", "pip", "index", "versions", "torch")
    found = re.search(r"torch \(([^)]+)\)", listed)
    if found is None:
        raise Failed("the index lists no torch")
    return found.group(1)


def pip(python: Path, *arguments: object) -> None:
    options = ("--quiet", "--no-cache-dir", "--no-compile", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *options, *arguments)


def nvidia_requirements(packages: Path) -> list[str]:
    """What the installed torch asks for of NVIDIA's libraries; none for a CPU build."""
    (metadata,) = packages.glob("torch-*.dist-info/METADATA")
    required = re.findall(
        r"^Requires-Dist: ((?:nvidia-|cuda-toolkit)[^;\n]*)", metadata.read_text(), flags=re.MULTILINE
    )
    return [requirement.strip() for requirement in required]


def one(torch: str, interpreter: Path, wheel: Path, folder: Path) -> dict[str, Any]:
    """One combination, in ``folder``, where its release of PyTorch keeps NVIDIA's libraries for the next."""
    environment = folder / "environment"
    shutil.rmtree(environment, ignore_errors=True)
    run(interpreter, "-m", "venv", environment)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    pip(python, *PURE)
    try:
        pip(python, "--only-binary", ":all:", "--no-deps", f"torch=={torch}")
    except Failed as error:
        reason = "the index has no wheel for this Python" if "No matching distribution" in str(error) else str(error)
        return {"ok": None, "reason": reason}
    if required := nvidia_requirements(packages):
        shared = folder / "shared"
        if not shared.is_dir():
            pip(python, "--target", shared, *required)
        (packages / "nvidia").symlink_to(shared / "nvidia")
    pip(python, "--no-deps", "--no-index", wheel)
    seen = json.loads(run(python, CHECKOUT / "tools" / "wheel_check.py", cwd=folder).splitlines()[-1])
    run(python, "-m", "sparc_kernels", cwd=folder)
    return {"ok": True, "reason": None, **seen}


def row(result: dict[str, Any]) -> str:
    """A line of the table in docs/verification.md."""
    outcome = {True: "passes", False: f"**fails**: {result['reason']}", None: f"not run: {result['reason']}"}[
        result["ok"]
    ]
    half = result.get("cuda_half", {}).get("loads")
    cuda = f"loads ({len(result['cuda_half']['ops'])} ops)" if half else ""
    build = ""  # not known where nothing ran
    if result["ok"]:
        build = f"CUDA {result['cuda']}" if result["cuda"] else "CPU"
    torch, python = result.get("torch", result["asked"]), result.get("python", result["minor"])
    return f"| {torch} | {build} | {python} | {outcome} | {cuda} |"


def main() -> None:
    """Run the combinations asked for, write the results after each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", nargs="+", default=TORCH, help="releases, or newest")
    parser.add_argument("--python", nargs="+", default=PYTHON, help="minor versions")
    parser.add_argument("--wheel", type=Path, help="default: the newest in dist/")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "build" / "wheel-matrix")
    parser.add_argument(
        "--work", type=Path, help="where the environments go (20 GB); default: the folder for temporaries"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first failure instead of going on")
    options = parser.parse_args()
    wheels = sorted((CHECKOUT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if options.wheel is None and not wheels:
        raise SystemExit("no wheel in dist/: run `make wheel`")
    wheel = (options.wheel or wheels[-1]).resolve()
    options.out.mkdir(parents=True, exist_ok=True)

    results: list[dict[str, Any]] = []
    header = {"wheel": wheel.name, "date": str(datetime.date.today()), "machine": platform.machine()}
    for torch in [newest_torch() if release == "newest" else release for release in options.torch]:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            for minor in options.python:
                start = time.monotonic()
                interpreter = find_python(minor)
                try:
                    if interpreter is None:
                        result: dict[str, Any] = {"ok": None, "reason": "no such Python on this machine"}
                    else:
                        result = one(torch, interpreter, wheel, Path(folder))
                except Failed as error:
                    result = {"ok": False, "reason": str(error)}
                result |= {"asked": torch, "minor": minor, "seconds": round(time.monotonic() - start)}
                results.append(result)
                print(row(result), f"{result['seconds']} s", flush=True)
                (options.out / "result.json").write_text(json.dumps({**header, "results": results}, indent=1) + "\n")
                if options.stop and result["ok"] is False:
                    raise SystemExit(1)
    table = [
        "| torch | build | Python | CPU ops, arrays, report | CUDA half |",
        "|---|---|---|---|---|",
        *map(row, results),
    ]
    (options.out / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(["", *table]))
    raise SystemExit(any(result["ok"] is False for result in results))


if __name__ == "__main__":
    main()
