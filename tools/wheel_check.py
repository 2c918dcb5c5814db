"""What every combination of ``tools/wheel_matrix.py`` has to pass. Runs inside the combination's own environment.

Prints one JSON object: versions, backends, what of the CUDA half could be seen. Fails with a traceback. A file of its
own that imports nothing from the checkout, since the wheel is what it tests.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import sparc_kernels as sk
from sparc_kernels import _native

DTYPES = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2}


def gradients(function: Any, dtype: torch.dtype, backend: str, **options: Any) -> list[torch.Tensor]:
    """The result of the function, and the gradients of its weighted sum."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 19, 32, generator=generator).to(dtype)
    tokens = (torch.randn(3, 7, 32, generator=generator) + patches[:, :7]).to(dtype).requires_grad_()
    patches.requires_grad_()
    out = function(patches, tokens, backend=backend, **options)
    weights = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    (out * weights).sum().backward()
    assert patches.grad is not None
    assert tokens.grad is not None
    return [out.detach(), patches.grad, tokens.grad]


def check_cpu_ops() -> None:
    """Forward and backward of the C++ ops against the eager definition in the same dtype."""
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    runs: list[tuple[Any, dict[str, Any]]] = [
        (sk.fine_grained_loss, {"token_mask": mask, "reduction": "none"}),
        (sk.sparc_loss, {"token_mask": mask}),
        (sk.language_grouped_embeddings, {}),
        (sk.alignment_weights, {}),
    ]
    for function, options in runs:
        for dtype, tolerance in DTYPES.items():
            eager = gradients(function, dtype, "eager", **options)
            for got, expected in zip(gradients(function, dtype, "cpu", **options), eager):
                assert got.dtype == expected.dtype
                largest = expected.abs().max().clamp(min=1e-30)
                error = ((got.double() - expected.double()).abs().max() / largest).item()
                assert error <= tolerance, (
                    f"{function.__name__} {dtype}: {error:.1e} of the largest, {tolerance:.0e} allowed"
                )


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
    on_cuda = [op for op in ops if torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")]
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
