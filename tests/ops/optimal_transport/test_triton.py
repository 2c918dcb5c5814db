"""What the Triton kernels of this room do on each of their paths."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from sparc_kernels.ops.optimal_transport import triton
from sparc_kernels.ops.optimal_transport.config import PairConfig, TiledConfig, choose
from tests import tolerance
from tests.conftest import device_of
from tests.ops.optimal_transport.test_optimal_transport import Shape, make

PATHS = {
    "pair": PairConfig(32, 64, 16, 4, 2),
    "held": TiledConfig((32, 64), 16, 16, 16),
    "tiled": TiledConfig(None, 16, 16, 16, workspace_bytes=4 * 18 * 37),  # one pair at a time
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("proximal", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_paths_agree(path: str, proximal: bool, dtype: torch.dtype) -> None:
    problem = make(Shape(2, 37, 18, 24, masked=True, lean=3.0))
    device = device_of("triton")
    images, texts = (x.to(device, dtype) for x in problem[:2])
    masks = [mask.to(device) for mask in problem.masks.values()]
    beta, upstream = torch.tensor(0.2, device=device), torch.randn(2, 18, device=device)
    inputs = (images, texts, *masks, beta)
    found = []
    for config in (PATHS["pair"], PATHS[path]):
        costs, potentials, plan = triton.forward(*inputs, 4, proximal, True, "highest", config=config)
        options = (4, proximal, True, True, "highest")
        grads = triton.backward(upstream, *inputs, potentials, *options, config=config)
        found.append((costs, plan, *grads))
    for one, other in zip(*found):
        tolerance.assert_close(path, other, one.double(), one, dtype)


def test_choices() -> None:
    """A pair's similarities in registers where they fit, in half precision with the products of the same program."""
    assert choose(55, 196, 512, 2, 90) == PairConfig(64, 256, 64, 8, 3)
    assert choose(55, 196, 512, 2, 80).block_d == 32
    assert choose(20, 49, 24, 2, 90) == PairConfig(32, 64, 32, 4, 3)
    held = choose(55, 196, 512, 4, 90)
    assert isinstance(held, TiledConfig)
    assert held.held == (64, 256)
    large = choose(77, 576, 512, 2, 90)
    assert isinstance(large, TiledConfig)
    assert large.held is None
