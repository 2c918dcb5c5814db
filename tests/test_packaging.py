"""The wheel: built, installed into a fresh environment, used from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import sparc_kernels

CHECKOUT = Path(sparc_kernels.__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHECKOUT / "setup.py").is_file(), reason="runs from a checkout only"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with its CPU half, built from what is in the checkout and nothing that was built there before."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT,
        check=False,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("needs git and a checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        original = CHECKOUT / name
        if original.is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(original.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        folder,
        source,
    ]
    subprocess.run(command, check=True, env={**os.environ, "SPARC_BUILD_CUDA": "0"}, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_serves_every_python(wheel: Path) -> None:
    assert wheel.name.startswith("sparc_kernels-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")


def test_wheel_holds_what_the_package_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("sparc_kernels/libsparc_cpu.so", "sparc_kernels/py.typed", "sparc_kernels/ops/fine_grained/MATH.md"):
        assert needed in names
    assert "sparc_kernels/libsparc_cuda.so" not in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "csrc/"))]


def test_installed_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # The wheel itself goes through pip; torch is borrowed from the environment of this test, to download nothing.
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", packages, wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages / "borrowed.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    code = f"""
import pathlib, torch, sparc_kernels as sk
assert pathlib.Path(sk.__file__).is_relative_to({str(environment)!r}), sk.__file__
assert sk.available_backends()["cpu"] is None, sk.available_backends()
patches, tokens = torch.randn(3, 9, 16, requires_grad=True), torch.randn(3, 5, 16, requires_grad=True)
losses = [sk.sparc_loss(patches, tokens, backend=backend) for backend in ("auto", "eager")]
torch.testing.assert_close(*losses)
losses[0].backward()
assert patches.grad.isfinite().all() and tokens.grad.abs().sum() > 0
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([environment / "bin" / "python", "-c", code], cwd=elsewhere, env=clean, check=True)
