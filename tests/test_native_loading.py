"""What keeps the native library from being used: files cut short, foreign or missing; devices that it cannot run on."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sparc_kernels
from sparc_kernels import __main__ as doctor
from sparc_kernels import _dispatch, _elf, _native

PACKAGE = Path(sparc_kernels.__file__).parent
CHECKOUT = PACKAGE.parent
CPU_LIBRARY = PACKAGE / "libsparc_cpu.so"
CUDA_LIBRARY = PACKAGE / "libsparc_cuda.so"

pytestmark = pytest.mark.skipif(not CPU_LIBRARY.is_file(), reason="the CPU half is not built")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def shared_object(path: Path, source: str) -> Path:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    return path


# Files


@pytest.mark.parametrize("library", [CPU_LIBRARY, CUDA_LIBRARY], ids=lambda path: path.name)
def test_cut_files_are_recognised(library: Path, tmp_path: Path) -> None:
    if not library.is_file():
        pytest.skip(f"{library.name} is not built")
    whole = library.read_bytes()
    assert _elf.incomplete(library) is None
    cut = tmp_path / library.name
    for size in (6, 63, 64, 500, 4096, 120_000, len(whole) // 2, len(whole) - 2000, len(whole) - 1):
        cut.write_bytes(whole[:size])
        needed = "at least 64" if size < 64 else len(whole)
        assert _elf.incomplete(cut) == f"{size} of {needed} bytes"
    cut.write_bytes(whole + b"more")
    assert _elf.incomplete(cut) is None


def test_only_a_segment_is_missing(tmp_path: Path) -> None:
    """A stripped file may have no table of sections: then its segments alone tell its length."""
    whole = bytearray(CPU_LIBRARY.read_bytes())
    struct.pack_into("<Q", whole, 40, 0)  # e_shoff
    struct.pack_into("<H", whole, 60, 0)  # e_shnum
    file = tmp_path / "stripped.so"
    file.write_bytes(whole)
    assert _elf.incomplete(file) is None
    file.write_bytes(whole[: len(whole) // 2])
    assert str(_elf.incomplete(file)).startswith(f"{len(whole) // 2} of ")


@pytest.mark.parametrize("content", [b"", b"no shared object", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x02"])
def test_foreign_files_are_left_to_the_loader(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "libsparc_cpu.so"
    file.write_bytes(content)
    assert _elf.incomplete(file) is None
    with pytest.raises(OSError):
        ctypes.CDLL(str(file))


def test_a_damaged_header_is_survived(tmp_path: Path) -> None:
    file = tmp_path / "libsparc_cpu.so"
    file.write_bytes(b"\x7fELF\x02\x01" + b"\xff" * 200)
    assert _native._load(file, "") is not None


# The package with such a file in the place of its library


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without native libraries."""
    target = tmp_path / "sparc_kernels"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def run(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def reason_in(package: Path) -> str:
    """Why the copy's CPU kernels cannot be used, while everything else of it can."""
    result = run(
        package,
        "-c",
        "import torch, sparc_kernels as sk\n"
        "from sparc_kernels import _dispatch\n"
        "patches, tokens = torch.randn(2, 4, 8), torch.randn(2, 3, 8)\n"
        "assert sk.fine_grained_loss(patches, tokens).isfinite()\n"
        "assert sk.alignment_weights(patches, tokens).isfinite().all()\n"
        "print(_dispatch.supports('fine_grained', 'cpu', torch.device('cpu'), torch.float32))\n",
    )
    assert result.returncode == 0, (result.returncode, result.stderr)
    return result.stdout.strip()


@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_import_survives_a_cut_library(share: float, package: Path) -> None:
    whole = CPU_LIBRARY.read_bytes()
    size = int(share * len(whole))
    (package / CPU_LIBRARY.name).write_bytes(whole[:size])
    assert f"libsparc_cpu.so is incomplete: {size} of {len(whole)} bytes" in reason_in(package)


def test_the_loader_says_why(package: Path) -> None:
    (package / CPU_LIBRARY.name).write_bytes(b"no shared object" * 10)
    reason = reason_in(package)
    assert f"libsparc_cpu.so cannot be loaded by PyTorch {torch.__version__}" in reason
    assert "invalid ELF header" in reason


@needs_gcc
def test_the_missing_symbol_is_named(package: Path) -> None:
    shared_object(
        package / CPU_LIBRARY.name, "int nowhere_to_be_found(void); int f(void) {return nowhere_to_be_found();}"
    )
    assert "undefined symbol: nowhere_to_be_found" in reason_in(package)


@needs_gcc
def test_another_library_is_not_taken_for_ours(package: Path) -> None:
    shared_object(package / CPU_LIBRARY.name, "int answer(void) {return 42;}")
    assert reason_in(package) == "libsparc_cpu.so does not declare the ops of this package"


@pytest.mark.parametrize("change", ["another argument", "an op more"])
def test_a_library_of_other_sources_is_a_reason(change: str, package: Path) -> None:
    """As after an update of the sources without a build: no error at import, and the other rooms are served."""
    shutil.copy(CPU_LIBRARY, package)
    schema = package / "ops" / "fine_grained" / "schema.py"
    text = schema.read_text()
    room = package / "ops" / "fine_grained" / "room.py"
    if change == "another argument":
        schema.write_text(text.replace("bool pool_tokens, ", "bool pool_tokens, bool more, ", 1))
        name = "fine_grained_forward"
    else:
        room.write_text(
            room.read_text().replace('"fine_grained",\n            forward', '"finer",\n            forward', 1)
        )
        name = "finer_forward"
    reason = reason_in(package)
    assert reason == (
        f"libsparc_cpu.so was built from other sources, it declares no such {name} (`pip install .` builds it)"
    )
    served = run(package, "-c", "import sparc_kernels as sk\nprint(sk.available_backends('grouping')['cpu'])")
    assert served.stdout.strip() == "None", served.stderr


# The doctor


def test_doctor_exits_with_0_where_all_is_well(package: Path) -> None:
    shutil.copy(CPU_LIBRARY, package)
    result = run(package, "-m", "sparc_kernels")
    if torch.cuda.is_available():
        pytest.skip("on a GPU that depends on triton: the copy has no CUDA half")
    assert result.returncode == 0, result.stderr
    assert "fault" not in result.stderr


def test_doctor_exits_with_1_where_the_cpu_half_is_missing_or_cut(package: Path) -> None:
    result = run(package, "-m", "sparc_kernels")
    assert result.returncode == 1
    assert "fault: the cpu backend cannot be used: the native library is not built" in result.stderr
    (package / CPU_LIBRARY.name).write_bytes(CPU_LIBRARY.read_bytes()[:120_000])
    result = run(package, "-m", "sparc_kernels")
    assert result.returncode == 1
    assert "fault: the cpu backend cannot be used: libsparc_cpu.so is incomplete: 120000 of" in result.stderr
    assert "eager   usable" in result.stdout


def test_doctor_explains_its_exit_status(package: Path) -> None:
    result = run(package, "-m", "sparc_kernels", "--help")
    assert result.returncode == 0
    assert "Exits with 1 where something does not work that should" in result.stdout


@pytest.mark.parametrize(
    ("half", "capability", "reasons", "expected"),
    [
        ("there", (9, 0), {}, None),
        (
            "there",
            (9, 0),
            {"cuda": "too old a driver"},
            "the cuda backend cannot be used on device 0: too old a driver",
        ),
        ("there", (7, 5), {"cuda": "it needs compute capability 8.0", "triton": "no"}, None),
        (None, (9, 0), {"cuda": "not built"}, None),
        (
            *(None, (9, 0), {"cuda": "not built", "triton": "not installed"}),
            "no kernel serves device 0: cuda: not built; triton: not installed",
        ),
    ],
)
def test_doctors_view_of_a_gpu(
    half: str | None,
    capability: tuple[int, int],
    reasons: dict[str, str],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "cpu_reason", lambda: None)
    monkeypatch.setattr(_native, "build_info", lambda: {"cuda_library": half})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(_dispatch, "supports", lambda op, backend, device, dtype: reasons.get(backend))
    assert doctor.faults() == ([] if expected is None else [expected])


# Devices


@pytest.fixture
def fresh_answers() -> Iterator[None]:
    _native.cuda_device_reason.cache_clear()
    yield
    _native.cuda_device_reason.cache_clear()


FAKE = """
static int asked;
int times_asked(void) { return asked; }
const char* sparc_cuda_refusal(int device) {
  ++asked;
  return device == 0 ? "no kernel image is available for execution on the device" : 0;
}
"""


@pytest.fixture
def fake_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_answers: None) -> Callable[[], int]:
    """A CUDA half that runs on every device but the first; returns how often it was asked."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    library = shared_object(tmp_path / "libsparc_cuda.so", FAKE)
    monkeypatch.setattr(_native, "_CUDA_LIBRARY", library)
    return ctypes.CDLL(str(library)).times_asked


def test_the_device_is_asked_once(fake_half: Callable[[], int]) -> None:
    for _ in range(3):
        assert _native.cuda_device_reason(0) == (
            "libsparc_cuda.so cannot run on CUDA device 0: no kernel image is available for execution on the device"
        )
        assert _native.cuda_device_reason(1) is None
    assert fake_half() == 2


def test_auto_takes_triton_where_the_cuda_half_refuses(
    fake_half: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "cuda_reason", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (11, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setitem(_dispatch._REASONS, "triton", lambda op, device, dtype: None)
    for _ in range(2):
        for device, taken in (("cuda:0", "triton"), ("cuda:1", "cuda"), ("cuda", "cuda")):
            assert _dispatch.resolve("fine_grained", "auto", torch.device(device), torch.bfloat16) == taken
    assert fake_half() == 2
    with pytest.raises(NotImplementedError, match="cannot run on CUDA device 0: no kernel image"):
        _dispatch.resolve("grouping", "cuda", torch.device("cuda:0"), torch.float32)


def test_other_refusals_come_before_the_device_is_asked(
    fake_half: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(_native, "cuda_reason", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability 8.0" in str(_dispatch.supports("grouping", "cuda", gpu, torch.float32))
    assert "not float64" in str(_dispatch.supports("grouping", "cuda", gpu, torch.float64))
    assert fake_half() == 0


@needs_gcc
def test_a_half_without_the_question_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_answers: None
) -> None:
    monkeypatch.setattr(
        _native, "_CUDA_LIBRARY", shared_object(tmp_path / "libsparc_cuda.so", "int f(void) {return 0;}")
    )
    reason = str(_native.cuda_device_reason(0))
    assert reason.startswith("libsparc_cuda.so does not belong to this package")
    assert "undefined symbol: sparc_cuda_refusal" in reason


@needs_gcc
@pytest.mark.skipif(not CUDA_LIBRARY.is_file(), reason="the CUDA half is not built")
def test_the_real_half_refuses_where_there_is_no_driver(tmp_path: Path) -> None:
    """No driver is to the CUDA runtime what too old a driver is: both cannot start it."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is a driver")
    # the one symbol that a CPU build of PyTorch lacks
    source = "int aoti_torch_get_current_cuda_stream(int device, void** stream) {return 1;}"
    stand_in = shared_object(tmp_path / "stand_in.so", source)
    result = run(
        PACKAGE,
        "-c",
        "import ctypes, torch\n"
        "from sparc_kernels import _native\n"
        f"ctypes.CDLL({str(stand_in)!r}, mode=ctypes.RTLD_GLOBAL)\n"
        "assert _native._load(_native._CUDA_LIBRARY, '') is None\n"
        "print(_native.cuda_device_reason(0))\n",
    )
    assert result.returncode == 0, result.stderr
    assert "cannot run on CUDA device 0: CUDA driver version is insufficient" in result.stdout
    assert f"holds {_native.build_info()['cuda_architectures']} and the runtime of CUDA" in result.stdout
    assert "no driver" in result.stdout


@pytest.mark.gpu
def test_the_real_half_runs_on_every_device(fresh_answers: None) -> None:
    before = torch.cuda.current_device()
    for index in range(torch.cuda.device_count()):
        if torch.cuda.get_device_capability(index) >= _dispatch.CUDA_CAPABILITY:
            assert _native.cuda_device_reason(index) is None
    assert torch.cuda.current_device() == before


@pytest.mark.gpu
def test_asking_is_no_part_of_a_graph(fresh_answers: None) -> None:
    torch.zeros(1, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert _native.cuda_device_reason(torch.cuda.current_device()) is None
