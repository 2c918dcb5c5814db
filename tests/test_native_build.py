"""The native library: how it is built, how it loads, and every instruction set that its CPU half holds code for."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from unittest import mock

import pytest
import torch

import sparc_kernels
from sparc_kernels import _native
from sparc_kernels.ops import _samples
from sparc_kernels.ops._room import Entry, Room, rooms
from tests import cuda_resources
from tests.conftest import CAPABILITIES

PACKAGE = Path(sparc_kernels.__file__).parent
CHECKOUT = PACKAGE.parent

needs_cpu_half = pytest.mark.skipif(_native.cpu_reason() is not None, reason=str(_native.cpu_reason()))
needs_checkout = pytest.mark.skipif(not (CHECKOUT / "setup.py").is_file(), reason="runs from a checkout only")

# op -> its signature as the room has it
SCHEMAS = {
    f"{op.name}_{name}": each.schema
    for room in rooms()
    if not room.dtypes.keys().isdisjoint(("cpu", "cuda"))
    for op in room.ops
    for name, each in (("forward", op.forward), ("backward", op.backward))
}


# Loading


@needs_cpu_half
@pytest.mark.parametrize("op", SCHEMAS)
def test_schemas_of_both_languages_agree(op: str) -> None:
    registered = getattr(torch.ops.sparc_kernels, op).default._schema
    assert str(registered) == str(torch._C.parse_schema(f"sparc_kernels::{op}{SCHEMAS[op]}"))


def test_missing_library_gives_a_reason(tmp_path: Path) -> None:
    reason = _native._load(tmp_path / "libsparc_cpu.so", "`pip install .` builds it")
    assert reason is not None
    assert "libsparc_cpu.so is missing" in reason
    assert "pip install" in reason


def test_broken_library_gives_a_reason(tmp_path: Path) -> None:
    library = tmp_path / "libsparc_cpu.so"
    library.write_bytes(b"no shared object")
    reason = _native._load(library, "")
    assert reason is not None
    assert "cannot be loaded by PyTorch" in reason


def test_cuda_half_wants_a_cuda_build_of_torch() -> None:
    reason = _native.cuda_reason()
    if torch.version.cuda is None:
        assert reason is not None
        assert "not a CUDA build" in reason


def test_package_without_the_library_runs_eager(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "sparc_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = """
import torch, sparc_kernels as sk
from sparc_kernels.ops import _samples
from sparc_kernels.ops._room import rooms
assert sk.available_backends()["eager"] is None
assert "not built" in sk.available_backends()["cpu"], sk.available_backends()
room = next(room for room in rooms() if "cpu" in room.dtypes)
entry = room.entries[0]
arguments = _samples.entry_arguments(room, entry, torch.device("cpu"), torch.float32)
assert _samples.one_tensor(entry.function(**arguments)).isfinite().all()
try:
    entry.function(**arguments, backend="cpu")
except NotImplementedError as error:
    assert "libsparc_cpu.so is missing" in str(error), error
else:
    raise AssertionError("an explicit request fell back")
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@needs_cpu_half
def test_build_info() -> None:
    info = _native.build_info()
    assert info["cpu_capability"] in CAPABILITIES
    assert Path(str(info["cpu_library"])).parent == PACKAGE
    assert (info["cuda_library"] is None) == (info["cuda_architectures"] is None)


@needs_cpu_half
@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_library_knows_nothing_of_the_interpreter() -> None:
    listed = subprocess.run(
        ["nm", "-D", PACKAGE / "libsparc_cpu.so"], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split()[-1] for line in listed.splitlines()]
    assert not [name for name in names if name.startswith(("Py", "_Py"))]
    assert not [name for name in names if "c10" in name or "2at" in name], "symbols outside the stable ABI"


# Instruction sets


@pytest.mark.parametrize(
    "room, entry",
    [pytest.param(room, x, id=x.name) for room in rooms() if "cpu" in room.dtypes for x in room.entries],
)
def test_every_instruction_set_serves_every_room(room: Room, entry: Entry, capability: str) -> None:
    """That it runs, and roughly; the tests of the rooms hold it to the truth."""
    for dtype in room.dtypes["cpu"]:
        arguments = _samples.entry_arguments(room, entry, torch.device("cpu"), dtype)
        expected, found = (entry.function(**arguments, backend=backend) for backend in ("eager", "cpu"))
        found, expected = map(_samples.one_tensor, (found, expected))
        torch.testing.assert_close(found, expected, rtol=0.05 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


@needs_cpu_half
def test_unknown_capability() -> None:
    with pytest.raises(RuntimeError, match="expected baseline, avx2, avx512 or avx512_bf16, got 'sse9'"):
        torch.ops.sparc_kernels.set_cpu_capability("sse9")


# Building


def _setup(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=CHECKOUT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_checkout
def test_build_choice_is_checked() -> None:
    result = _setup({"SPARC_BUILD_CUDA": "yes"}, "--name")
    assert result.returncode != 0
    assert "SPARC_BUILD_CUDA must be auto, 0 or 1, got 'yes'" in result.stderr


@needs_checkout
def test_cuda_build_without_nvcc_fails_loudly() -> None:
    result = _setup({"SPARC_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"}, "--name")
    assert result.returncode != 0
    assert "SPARC_BUILD_CUDA=1, but no nvcc was found" in result.stderr
    assert _setup({"SPARC_BUILD_CUDA": "auto", "CUDA_HOME": "/nowhere"}, "--name").returncode == 0


@needs_checkout
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(("wanted", "named"), [("75", "'75'"), ("90,potato", "'potato'"), ("sm_90", "'sm_90'")])
def test_architecture_choice_is_checked(wanted: str, named: str) -> None:
    result = _setup({"SPARC_CUDA_ARCHITECTURES": wanted}, "--name")
    assert result.returncode != 0
    assert "SPARC_CUDA_ARCHITECTURES must list compute capabilities from 80 on" in result.stderr
    assert f"got {named}" in result.stderr
    assert _setup({"SPARC_CUDA_ARCHITECTURES": "80, 90"}, "--name").returncode == 0


@needs_checkout
@pytest.mark.parametrize(
    ("wanted", "targets"),
    [
        (None, "sm_80 sm_90 sm_100 sm_120 compute_80 compute_100"),
        ("90", "sm_90 compute_90"),
        ("120, 80", "sm_80 sm_120 compute_80"),
        ("110", "sm_110 compute_110"),
    ],
)
def test_ptx_for_devices_that_no_code_fits(
    wanted: str | None, targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nprintf 'compute_%s\\n' 75 80 86 90 100 110 120 121\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("SPARC_BUILD_CUDA", "0")
    monkeypatch.delenv("SPARC_CUDA_ARCHITECTURES", raising=False)
    if wanted is not None:
        monkeypatch.setenv("SPARC_CUDA_ARCHITECTURES", wanted)
    with mock.patch("setuptools.setup"):
        build = runpy.run_path(str(CHECKOUT / "setup.py"))
    assert build["cuda_targets"](nvcc) == targets.split()


@needs_checkout
def test_what_nvcc_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Architectures of one PTX share it; headers may not tell them apart then, and a source that does gets its own."""
    monkeypatch.setenv("SPARC_BUILD_CUDA", "0")
    with mock.patch("setuptools.setup"):
        build = runpy.run_path(str(CHECKOUT / "setup.py"))
    targets = ["sm_80", "sm_90", "sm_100", "sm_120", "compute_80", "compute_100"]
    shared = ["compute_80,code=[sm_80,sm_90,compute_80]", "compute_100,code=[sm_100,sm_120,compute_100]"]
    assert build["generated"](targets, each=False) == [f"-gencode=arch={flag}" for flag in shared]
    assert build["generated"](["sm_90", "compute_90"], each=False) == [
        "-gencode=arch=compute_90,code=[sm_90,compute_90]"
    ]
    assert len(build["generated"](targets, each=True)) == 4
    headers = [path for suffix in ("h", "cuh") for path in (CHECKOUT / "csrc").rglob(f"*.{suffix}")]
    assert headers
    assert not [path for path in headers if "__CUDA_ARCH__" in path.read_text()]
    for release, flags in (("12.9", []), ("13.0", ["--compress-mode=size"])):
        nvcc = tmp_path / release
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.48'\n")
        nvcc.chmod(0o755)
        assert build["compression"](nvcc) == flags


@needs_checkout
def test_cuda_half_is_left_out_on_request() -> None:
    """What would be built; that it builds, test_packaging.py sees."""
    code = """
import setuptools  # brings distutils along
from distutils.core import run_setup
print(*(extension.name for extension in run_setup("setup.py", stop_after="init").ext_modules))
"""
    environment = {**os.environ, "SPARC_BUILD_CUDA": "0"}
    planned = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=environment, check=True, capture_output=True, text=True
    )
    assert planned.stdout.split() == ["sparc_kernels.libsparc_cpu"]


def _cuobjdump() -> str | None:
    """The disassembler of the CUDA toolkit, or the one that lies in the Triton wheel."""
    bundled = Path(sysconfig.get_paths()["purelib"], "triton/backends/nvidia/bin/cuobjdump")
    return shutil.which("cuobjdump") or (str(bundled) if bundled.exists() else None)


@pytest.mark.skipif(not (PACKAGE / "libsparc_cuda.so").exists(), reason="the CUDA half is not built")
def test_cuda_half_holds_every_architecture() -> None:
    cuobjdump = _cuobjdump()
    if cuobjdump is None:
        pytest.skip("needs cuobjdump")

    def listed(what: str) -> str:
        return subprocess.run(
            [cuobjdump, what, PACKAGE / "libsparc_cuda.so"], check=True, capture_output=True, text=True
        ).stdout

    binaries, portable = listed("-lelf"), listed("-lptx")
    for architecture in ("sm_80", "sm_90", "sm_100", "sm_120"):
        assert architecture in binaries, architecture
    for architecture in ("sm_80", "sm_100"):
        assert architecture in portable, "PTX for GPUs between the architectures, and newer ones"
    assert cuda_resources.compiled_with() is not None, "which tables hold for it?"
    assert _native.build_info()["cuda_architectures"] == "sm_80,sm_90,sm_100,sm_120,compute_80,compute_100"


@pytest.mark.skipif(not (PACKAGE / "libsparc_cuda.so").exists(), reason="the CUDA half is not built")
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_cuda_half_brings_its_runtime() -> None:
    dynamic = subprocess.run(
        ["readelf", "-d", PACKAGE / "libsparc_cuda.so"], check=True, capture_output=True, text=True
    ).stdout
    assert "libcudart" not in dynamic
    assert "libtorch.so" in dynamic, "libtorch pulls in libtorch_cuda when the library is loaded"


@pytest.mark.gpu
def test_cuda_half_runs() -> None:
    assert _native.cuda_reason() is None
    architecture, warp = torch.ops.sparc_kernels.cuda_build_info(torch.empty(0, device="cuda")).tolist()
    major, minor = torch.cuda.get_device_capability()
    assert architecture <= 100 * major + 10 * minor
    assert warp == 32
