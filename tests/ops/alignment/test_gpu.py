"""What only a GPU can show: launches beyond 16 and 31 bits, streams, graphs, other devices, memory, repeatability."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _dispatch
from tests import tolerance
from tests.ops.alignment import cases
from tests.ops.fine_grained.test_fine_grained import run

pytestmark = pytest.mark.gpu

BACKENDS = pytest.mark.parametrize("backend", ["cuda", "triton"])


def _leaves(b: int, p: int, l: int, d: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    shape = lambda rows: torch.randn(b, rows, d, generator=generator, device="cuda", dtype=dtype)  # noqa: E731
    return shape(p).requires_grad_(), shape(l).requires_grad_()


def _step(patches: Tensor, tokens: Tensor, backend: str) -> tuple[Tensor, ...]:
    loss = sk.fine_grained_loss(patches, tokens, reduction="none", backend=backend)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (patches, tokens))


def _assert_last_pairs_are_right(patches: Tensor, tokens: Tensor, backend: str, last: int = 2) -> None:
    """The last pairs of a large batch against the same pairs alone, bitwise: no pair sees another."""
    whole = _step(patches, tokens, backend)
    few, alike = (x.detach()[-last:].clone().requires_grad_() for x in (patches, tokens))
    for name, many, alone in zip(("loss", "grad_patches", "grad_tokens"), whole, _step(few, alike, backend)):
        assert torch.equal(many[-last:], alone), name
        assert many.isfinite().all(), name


@BACKENDS
def test_more_pairs_than_16_bits(backend: str) -> None:
    _assert_last_pairs_are_right(*_leaves(70_001, 5, 3, 16), backend)


@BACKENDS
def test_tensors_beyond_31_bits(backend: str) -> None:
    b, p, d = 21_500, 196, 512
    assert b * p * d > 2**31
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GB of GPU memory")
    _assert_last_pairs_are_right(*_leaves(b, p, 4, d), backend)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(8, 196, 55, 512), (3, 300, 70, 96)], ids=["pair", "tiled"])
def test_bits_repeat(backend: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    leaves = _leaves(*shape, dtype)
    first = _step(*leaves, backend)
    for _ in range(3):
        for name, a, b in zip(("loss", "grad_patches", "grad_tokens"), first, _step(*leaves, backend)):
            assert torch.equal(a, b), name


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(8, 196, 55, 512), (3, 300, 70, 96)], ids=["pair", "tiled"])
def test_cuda_graph(backend: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    patches, tokens = _leaves(*shape, dtype)
    expected = _step(patches, tokens, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            _step(patches, tokens, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(patches, tokens, backend)
    for result in captured:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for name, a, b in zip(("loss", "grad_patches", "grad_tokens"), captured, expected):
        assert torch.equal(a, b), name


@BACKENDS
def test_current_stream(backend: str) -> None:
    """Kernels queue behind what stands on the current stream, not on the default one."""
    patches, tokens = _leaves(64, 196, 55, 512)
    expected = _step(patches, tokens, backend)
    filled = torch.zeros_like(patches)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        filled.copy_(patches.detach())
        found = _step(filled.requires_grad_(), tokens, backend)
    torch.cuda.current_stream().wait_stream(stream)
    for name, a, b in zip(("loss", "grad_patches", "grad_tokens"), found, expected):
        assert torch.equal(a, b), name


@BACKENDS
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_that_is_not_current(backend: str) -> None:
    inputs = cases.draw(cases.Case("other-device"), torch.float32)
    expected = run(inputs.to(torch.float32, "cuda:0"), backend)
    with torch.cuda.device(0):
        found = run(inputs.to(torch.float32, "cuda:1"), backend)
    for (name, a), (_, b) in zip(expected.named(), found.named()):
        assert b.device == torch.device("cuda", 1), name
        assert torch.equal(a.cpu(), b.cpu()), name


@BACKENDS
def test_memory_beyond_inputs_and_gradients(backend: str) -> None:
    """O(B L): six statistics and the loss per token, beside the gradients themselves."""
    b, p, l, d = 512, 196, 55, 512
    patches, tokens = _leaves(b, p, l, d)
    _step(patches, tokens, backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = _step(patches, tokens, backend)
    torch.cuda.synchronize()
    gradients = sum(x.numel() * x.element_size() for x in results[1:])
    beyond = torch.cuda.max_memory_allocated() - before - gradients
    assert beyond < 20 * 4 * b * l + (4 << 20)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_precision_of_cuda(precision: str) -> None:
    """Exact products where torch asks for them; three of tf32 otherwise, within the bounds of float32 all the same."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        for case in (cases.CASES[0], cases.LARGE[0]):
            exact = cases.draw(case, torch.float32)
            truth, eager = cases.reference(exact), cases.reference(exact.to(torch.float32))
            found = run(exact.to(torch.float32, "cuda"), "cuda")
            # of tf32, 8 channels at a time, into each sum over channels
            instructions = 3 * exact.token_embeds.shape[2] // 8 if precision == "high" else 0
            for (name, expected), (_, low), (_, result) in zip(truth.named(), eager.named(), found.named()):
                least = cases.least_of(name, exact)
                tolerance.assert_close(name, result, expected, low, torch.float32, least, instructions)
    finally:
        torch.set_float32_matmul_precision(before)


def test_auto_by_size_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    """On a Hopper, of the loss, of groups and of weights: ``ops/_alignment/choice.py``."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("looks at what compute capability 9.0 is served by")

    def taken(room: str, call: Callable[..., object], *given: object) -> str:
        caplog.clear()
        with caplog.at_level("INFO", logger="sparc_kernels"):
            _dispatch._announce.cache_clear()
            call(*given)
        (backend,) = re.findall(rf"{room} on cuda \w+ runs on the (\w+) backend", caplog.text)
        return backend

    for (p, l), dtype, masked, backends in (
        ((49, 55), torch.bfloat16, False, ["cuda", "cuda", "triton"]),
        ((196, 55), torch.bfloat16, True, ["cuda", "cuda", "triton"]),
        ((100, 55), torch.bfloat16, True, ["triton", "triton", "triton"]),
        ((240, 55), torch.bfloat16, False, ["cuda", "cuda", "triton"]),
        ((576, 55), torch.bfloat16, False, ["triton", "cuda", "cuda"]),
        ((196, 77), torch.float16, True, ["cuda", "cuda", "cuda"]),
        ((196, 77), torch.float16, False, ["triton", "cuda", "cuda"]),
        ((196, 55), torch.float32, False, ["triton", "triton", "triton"]),
        ((576, 77), torch.float32, True, ["triton", "triton", "triton"]),
    ):
        patches, tokens = (torch.randn(2, n, 64, device="cuda", dtype=dtype) for n in (p, l))
        mask = torch.ones(2, l, dtype=torch.bool, device="cuda") if masked else None
        found = [taken("fine_grained", sk.fine_grained_loss, patches, tokens, mask)]
        found += [taken("grouping", f, patches, tokens) for f in (sk.language_grouped_embeddings, sk.alignment_weights)]
        assert found == backends, (p, l, dtype, masked)


@pytest.mark.parametrize("start", [1, 4], ids=["within a word", "within a piece"])
@BACKENDS
def test_gradients_of_means_anywhere(backend: str, start: int) -> None:
    """Contiguous, but not at a multiple of 4 or 16 bytes."""
    leaves = _leaves(2, 65, 8, 64)
    scale = torch.tensor(14.0, device="cuda")
    means = sk.FineGrainedLossFunction.apply(*leaves, None, None, scale, None, True, True, backend)[2:4]
    upstream = torch.randn(2 * 64 + start, device="cuda").to(torch.bfloat16)[start:].view(2, 64)
    assert upstream.is_contiguous()
    assert upstream.data_ptr() % 16 == 2 * start
    given, copied = (
        torch.autograd.grad(means, leaves, (grad, grad), retain_graph=True) for grad in (upstream, upstream.clone())
    )
    for one, other in zip(given, copied, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=0)
