"""Which matrix instructions the compiler chooses for the pair path."""

from __future__ import annotations

from tests.test_triton_compile import compiled


def test_instructions_of_each_chip() -> None:
    """Hopper gets wgmma and Blackwell's data-centre chips tcgen05, not the slower mma.sync."""
    expected = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
    for capability, instruction in expected.items():
        forward = [k for k in compiled(capability, "bfloat16", "paper") if k["kernel"] == "pair_forward_kernel"]
        assert forward
        assert all(kernel["matrix"] == [instruction] for kernel in forward)
