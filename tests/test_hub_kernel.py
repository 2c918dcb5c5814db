"""The layout for Hugging Face's ``kernels``: written from what is built, loaded by it without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import hub_kernel

CHECKOUT = Path(hub_kernel.__file__).resolve().parent.parent

needs_library = pytest.mark.skipif(
    not (hub_kernel.PACKAGE / hub_kernel.CPU_HALF).is_file(), reason=f"{hub_kernel.CPU_HALF} is not built here"
)

LOAD = """
import sys
from pathlib import Path
import torch
from kernels import get_local_kernel

hub = get_local_kernel(Path(sys.argv[1]))
assert "sparc_kernels" not in sys.modules
import sparc_kernels as installed  # both in one process
assert torch.ops.sparc_kernels.cpu_capability() and hub._native.__file__.startswith(sys.argv[1])

generator = torch.Generator().manual_seed(0)
patches, tokens = (torch.randn(3, n, 16, generator=generator, dtype=torch.float64) for n in (20, 7))
mask = torch.arange(7) < torch.tensor([[7], [3], [0]])

def of(library, backend):
    leaves = [x.clone().requires_grad_() for x in (patches, tokens)]
    criterion = library.SparcLoss(backend=backend).double()
    loss = criterion(*leaves, mask)
    loss.backward()
    return loss.detach(), *(x.grad for x in leaves), criterion.log_logit_scale.grad

expected = of(installed, "eager")
torch.testing.assert_close(of(hub, "cpu"), expected)
torch.testing.assert_close(of(hub, "eager"), expected)
torch.testing.assert_close(of(installed, "cpu"), expected)
torch.testing.assert_close(hub.alignment_weights(patches, tokens), installed.alignment_weights(patches, tokens))
print(hub.__name__)
"""


@needs_library
def test_kernels_loads_it_beside_an_installed_one(tmp_path: Path) -> None:
    if importlib.util.find_spec("kernels") is None:
        pytest.skip("needs Hugging Face's kernels, which is not installed")
    (folder,) = hub_kernel.write(tmp_path, cuda="none")
    assert re.fullmatch(r"torch-stable-abi210-cpu-\w+-linux", folder.name)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sparc_kernels_cpu_")


@needs_library
def test_no_import_by_name_and_a_namespace_of_its_own(tmp_path: Path) -> None:
    (folder,) = hub_kernel.write(tmp_path, cuda="none")
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) sparc_kernels", re.sub(r'""".*?"""', "", text, flags=re.S), re.M), path
        assert "sparc_kernels::" not in text
        assert "ops.sparc_kernels" not in text
    assert b"sparc_kernels" not in (folder / hub_kernel.CPU_HALF).read_bytes()
    assert not (folder / "train").exists()


def test_imports_become_relative() -> None:
    text = (
        '"""from sparc_kernels import x"""\nfrom sparc_kernels.ops import a\nfrom sparc_kernels import b\nimport sys\n'
    )
    text += 'M = "sparc_kernels.ops.c"\n'
    expected = '"""from sparc_kernels import x"""\nfrom ..ops import a\nfrom .. import b\nimport sys\n'
    expected += 'M = __name__.partition(".")[0] + ".ops.c"\n'
    assert hub_kernel.relative_imports("ops/d.py", text) == expected
    with pytest.raises(ValueError, match="line 1"):
        hub_kernel.relative_imports("d.py", "import sparc_kernels.ops")


def test_library_is_renamed_only_where_that_is_safe() -> None:
    assert hub_kernel.renamed_library(b"a\0sparc_kernels\0b", "sparc_1234567") == b"a\0sparc_1234567\0b"
    for library, namespace in (
        (b"a\0sparc_kernels\0b", "sparc_1"),
        (b"a_sparc_kernels\0", "sparc_1234567"),
        (b"", "x"),
    ):
        with pytest.raises(ValueError, match="once"):
            hub_kernel.renamed_library(library, namespace)


def test_architectures() -> None:
    marker = b"..sparc_cuda_architectures=sm_80,sm_90,sm_120,compute_120;.."
    assert hub_kernel.architectures(marker) == ["8.0", "9.0", "12.0+PTX"]


def test_stable_abi_is_what_setup_builds_for() -> None:
    major, minor = re.search(r"TORCH_TARGET_VERSION=0x(..)(..)", (CHECKOUT / "setup.py").read_text()).groups()
    assert f"{int(major, 16)}{int(minor, 16)}" == hub_kernel.STABLE_ABI
