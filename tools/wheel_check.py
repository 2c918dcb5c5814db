"""What every combination of ``tools/wheel_matrix.py`` has to pass. Runs inside the combination's own environment.

Prints one JSON object: versions, backends, what of the CUDA half could be seen. Fails with a traceback. A file of its
own that imports nothing from the checkout, since the wheel is what it tests.
"""

from __future__ import annotations

import json
import platform
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

import sparc_kernels as sk
from sparc_kernels import _native
from sparc_kernels.ops import _samples
from sparc_kernels.ops._room import Entry, Room, rooms

DTYPES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2}


def gradients(room: Room, entry: Entry, dtype: torch.dtype, backend: str, compiled: bool = False) -> list[torch.Tensor]:
    """The result of a function for the room's sample, and the gradients of its weighted sum."""
    arguments = _samples.entry_arguments(room, entry, torch.device("cpu"), dtype)
    leaves = [x.requires_grad_() for x in arguments.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    function = entry.function
    if compiled:  # traced as a whole, by every release; what it generates is no matter of ours
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    out = _samples.one_tensor(function(**arguments, backend=backend))
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def check_cpu_ops() -> None:
    """Forward and backward of every room's C++ ops, also under torch.compile, against eager in the same dtype."""
    checked = 0
    for room in rooms():
        for entry, dtype in product(room.entries, room.dtypes.get("cpu", ())):
            checked += 1
            eager, found = (gradients(room, entry, dtype, backend) for backend in ("eager", "cpu"))
            traced = gradients(room, entry, dtype, "cpu", compiled=True) if dtype == torch.float32 else []
            for got, expected in (*zip(found, eager), *zip(traced, eager)):
                assert got.dtype == expected.dtype
                largest = expected.abs().max().clamp(min=1e-30)
                error = ((got.double() - expected.double()).abs().max() / largest).item()
                tolerance = DTYPES[dtype]
                assert error <= tolerance, f"{entry.name} {dtype}: {error:.1e} of the largest, {tolerance:.0e} allowed"
    assert checked, "no room has C++ kernels"


def check_arrays() -> None:
    """NumPy in, NumPy out."""
    import numpy as np

    patches = np.random.default_rng(0).standard_normal((2, 9, 16), dtype=np.float32)
    patches.flags.writeable = False
    weights = sk.alignment_weights(patches, patches, patch_mask=np.ones((2, 9), bool))
    assert type(weights) is np.ndarray
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def cuda_half() -> dict[str, Any]:
    """Whether the CUDA half loads, which needs a CUDA build of PyTorch but no GPU, and what it registers."""
    if torch.version.cuda is None:
        return {"loads": None, "why": "a CPU build of PyTorch"}
    if _native._CUDA_REASON is not None:
        raise AssertionError(_native._CUDA_REASON)
    ops = sorted({s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("sparc_kernels::")})
    own = [op for op in ops if not op.endswith("_triton")]  # those are registered for CUDA by the package itself
    on_cuda = [op for op in own if torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")]
    assert on_cuda, "the CUDA half registers nothing"
    return {"loads": True, "ops": on_cuda, "architectures": _native.build_info()["cuda_architectures"]}


def main() -> None:
    """Run the checks, print what was seen."""
    assert Path(sk.__file__).is_relative_to(sys.prefix), f"{sk.__file__} is not the installed wheel"
    assert sk.available_backends()["cpu"] is None, sk.available_backends()["cpu"]
    check_cpu_ops()
    check_arrays()
    seen = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpu_capability": _native.build_info()["cpu_capability"],
        "cuda_half": cuda_half(),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
