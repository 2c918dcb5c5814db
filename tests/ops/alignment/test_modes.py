"""The modes in which people call the ops: compiled with changing sizes, one side frozen, transformed, exported, ...

All but the last section run on every backend.
"""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels import _dispatch, modules
from tests.conftest import BACKENDS, FUSED, device_of
from tests.modes import CLOSE, GradientsWritten, graphs
from tests.ops.alignment import cases

CASE = cases.Case("modes", B=3, P=7, L=4, D=8, lengths=(4, 2, 3), patches=(7, 5, 6), scale=3.0)


def draw(backend: str, case: cases.Case = CASE, dtype: torch.dtype = torch.float32) -> cases.Inputs:
    return cases.draw(case, dtype).to(dtype, device_of(backend)).require_grad()


def sparc(inputs: cases.Inputs, backend: str, **options: Any) -> Any:
    return sk.sparc_loss(
        inputs.patch_embeds,
        inputs.token_embeds,
        inputs.token_mask,
        **{"logit_scale": inputs.logit_scale, "patch_mask": inputs.patch_mask, "backend": backend} | options,
    )


# torch.compile with dynamic shapes


def graphs_after_the_first(function: Callable[..., Tensor], calls: list[tuple[Any, ...]], dynamic: bool | None) -> int:
    """How many graphs all calls but the first add."""
    counts = graphs(function, calls, dynamic)
    return counts[-1] - counts[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_for_all_sizes(backend: str) -> None:
    """At default arguments: their checks must not ask a traced number what it is."""
    batches = [draw(backend, cases.replace(CASE, B=b, P=p, L=l, lengths=None, patches=None)) for b, p, l in
               ((3, 7, 4), (4, 9, 5), (2, 6, 3))]  # fmt: skip
    embeds = [(batch.patch_embeds, batch.token_embeds) for batch in batches]
    module = sk.SparcLoss(backend=backend).to(device_of(backend))
    functions: list[Callable[..., Any]] = [
        lambda v, t: sk.sparc_loss(v, t, backend=backend),
        lambda v, t: sk.fine_grained_loss(v, t, backend=backend),
        lambda v, t: sk.contrastive_loss(v.mean(1), t.mean(1)),
        module,
    ]
    for function in functions:
        assert graphs_after_the_first(function, embeds, dynamic=True) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["similarity_threshold", "logit_scale", "local_weight", "global_weight"])
def test_a_ramp_takes_two_graphs(name: str, backend: str) -> None:
    """The first value as a constant, any other as an input."""
    inputs = draw(backend)
    ramp = [(value,) for value in (0.11, 0.23, 0.31, 0.42, 0.53, 0.64, 0.72, 0.83, 0.91)]
    assert graphs_after_the_first(lambda value: sparc(inputs, backend, **{name: value}), ramp, dynamic=None) <= 1


# Gradients of one side only


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", ["patches", "tokens", "patches and tokens", "scale"])
def test_frozen_sides(frozen: str, backend: str) -> None:
    """The gradients that are left are the same."""
    inputs = draw(backend)
    leaves = {"patches": inputs.patch_embeds, "tokens": inputs.token_embeds, "scale": inputs.logit_scale}
    whole = dict(zip(leaves, torch.autograd.grad(sparc(inputs, backend), tuple(leaves.values()))))
    some = {name: x.detach().requires_grad_(name not in frozen) for name, x in leaves.items()}
    other = cases.replace(inputs, patch_embeds=some["patches"], token_embeds=some["tokens"], logit_scale=some["scale"])
    wanted = [name for name in some if name not in frozen]
    for name, grad in zip(wanted, torch.autograd.grad(sparc(other, backend), [some[name] for name in wanted])):
        torch.testing.assert_close(grad, whole[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("side", [0, 1])
def test_nothing_is_allocated_for_a_frozen_side(side: int, backend: str) -> None:
    """The backward op returns nothing for it, and the scale alone needs no backward op."""
    inputs = draw(backend)
    written = GradientsWritten("fine_grained_backward")
    embeds = (inputs.patch_embeds, inputs.token_embeds)
    for frozen in ((1 - side,), (0, 1)):
        patches, tokens = (x.detach().requires_grad_(i not in frozen) for i, x in enumerate(embeds))
        with written:
            sparc(cases.replace(inputs, patch_embeds=patches, token_embeds=tokens), backend).backward()
    assert written.calls == [(side == 0, side == 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [True, False])
def test_features_made_in_inference_mode(masked: bool, backend: str) -> None:
    inputs = draw(backend)
    if not masked:
        inputs = cases.replace(inputs, token_mask=None, patch_mask=None)
    expected = torch.autograd.grad(sparc(inputs, backend), (inputs.token_embeds, inputs.logit_scale))
    with torch.inference_mode():
        stored = inputs.patch_embeds.detach().clone()
    frozen = cases.replace(inputs, patch_embeds=stored)
    found = torch.autograd.grad(sparc(frozen, backend), (inputs.token_embeds, inputs.logit_scale))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)
    groups = sk.language_grouped_embeddings(stored, inputs.token_embeds, backend=backend)
    assert torch.autograd.grad(groups.sum(), inputs.token_embeds)[0].isfinite().all()


# One-element scales


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scale_of_one_element(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    """Its gradient has its shape and dtype."""
    inputs = draw(backend)
    scale = torch.full(shape, 3.0, dtype=dtype, device=device_of(backend), requires_grad=True)
    (grad,) = torch.autograd.grad(sparc(inputs, backend, logit_scale=scale), scale)
    assert (grad.shape, grad.dtype) == (scale.shape, dtype)
    expected = torch.autograd.grad(sparc(inputs, backend), inputs.logit_scale)[0]
    torch.testing.assert_close(
        grad.reshape(()).float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0
    )


# torch.export


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strict", [True, False])
def test_exported_graphs_train(strict: bool, backend: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(8, 8)
            self.criterion = sk.SparcLoss(backend=backend)

        def forward(self, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
            return self.criterion(self.head(patches), tokens, mask)

    inputs, model = draw(backend), Model().to(device_of(backend))
    arguments = (inputs.patch_embeds.detach(), inputs.token_embeds.detach(), inputs.token_mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, arguments, strict=strict).module()
    for module in (model, exported):
        module(*arguments).backward()
    for (name, one), other in zip(model.named_parameters(), exported.parameters()):
        torch.testing.assert_close(other.grad, one.grad, **CLOSE, msg=name)


# torch.func


def _function(backend: str, inputs: cases.Inputs) -> Callable[..., Any]:
    return lambda patches, tokens, scale: sk.sparc_loss(
        patches, tokens, inputs.token_mask, logit_scale=scale, patch_mask=inputs.patch_mask, backend=backend
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_func_grad_and_vjp(backend: str) -> None:
    inputs = draw(backend)
    leaves = (inputs.patch_embeds, inputs.token_embeds, inputs.logit_scale)
    expected = torch.autograd.grad(sparc(inputs, backend), leaves)
    plain = tuple(x.detach() for x in leaves)
    function = _function(backend, inputs)
    loss, pull, *_ = torch.func.vjp(function, *plain)
    for found in (torch.func.grad(function, argnums=(0, 1, 2))(*plain), pull(torch.ones_like(loss))):
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_call(backend: str) -> None:
    inputs, module = draw(backend), sk.SparcLoss(backend=backend).to(device_of(backend))
    arguments = (inputs.patch_embeds.detach(), inputs.token_embeds.detach(), inputs.token_mask)
    module(*arguments).backward()
    grads = torch.func.grad(lambda p: torch.func.functional_call(module, p, arguments))(dict(module.named_parameters()))
    torch.testing.assert_close(grads["log_logit_scale"], module.log_logit_scale.grad, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend: str) -> None:
    """Over stacks of batches, with a scale each; and the gradients of each."""
    one, two = draw(backend), cases.draw(CASE, torch.float32, seed=1).to(torch.float32, device_of(backend))
    stacks = [torch.stack([getattr(x, name).detach() for x in (one, two)]) for name in ("patch_embeds", "token_embeds")]
    scales = torch.tensor([3.0, 5.0], device=device_of(backend))

    def loss(patches: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
        return sk.fine_grained_loss(patches, tokens, one.token_mask, logit_scale=scale, backend=backend)

    each = [loss(*x) for x in zip(*stacks, scales)]
    vmap: Any = torch.func.vmap  # annotated as if what it returns took the arguments of vmap
    torch.testing.assert_close(vmap(loss)(*stacks, scales), torch.stack(each), **CLOSE)
    grads = vmap(torch.func.grad(loss, argnums=(0, 2)), in_dims=(0, 0, None))(*stacks, scales[0])
    for i in range(2):
        expected = torch.func.grad(loss, argnums=(0, 2))(stacks[0][i], stacks[1][i], scales[0])
        for found, wanted in zip(grads, expected):
            torch.testing.assert_close(found[i], wanted, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jacrev(backend: str) -> None:
    inputs = draw(backend)

    def losses(scale: Tensor) -> Tensor:
        return sk.fine_grained_loss(
            inputs.patch_embeds.detach(),
            inputs.token_embeds.detach(),
            logit_scale=scale,
            reduction="none",
            backend=backend,
        )

    found = torch.func.jacrev(losses)(inputs.logit_scale.detach())
    step = 1e-2
    numeric = (losses(inputs.logit_scale.detach() + step) - losses(inputs.logit_scale.detach() - step)) / (2 * step)
    torch.testing.assert_close(found, numeric, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("backend", FUSED)
def test_forward_mode_says_what_serves(backend: str) -> None:
    inputs = draw(backend)
    scale = inputs.logit_scale.detach()
    function = lambda s: sparc(inputs, backend, logit_scale=s)  # noqa: E731
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivatives .* use backend='eager'"):
        torch.func.jvp(function, (scale,), (torch.ones_like(scale),))


# Meta and fake tensors, DTensor


def test_meta_tensors() -> None:
    patches, tokens = torch.empty(2, 5, 8, device="meta", requires_grad=True), torch.empty(2, 3, 8, device="meta")
    mask = torch.ones(2, 5, dtype=torch.bool, device="meta")
    loss = sk.sparc_loss(patches, tokens, patch_mask=mask)
    assert (loss.shape, loss.device.type) == ((), "meta")
    assert torch.autograd.grad(loss, patches)[0].shape == patches.shape
    assert sk.alignment_weights(patches, tokens).shape == (2, 3, 5)


def test_module_on_meta() -> None:
    with torch.device("meta"):
        module = sk.SparcLoss(logit_scale=7.0)
    assert "logit_scale=<meta>" in repr(module)
    module.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(module.logit_scale, torch.tensor(7.0))


def test_dtensors_are_told_what_to_pass() -> None:
    code = """
import torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import sparc_kernels as sk
patches = distribute_tensor(torch.randn(2, 5, 8), init_device_mesh("cpu", (1,)), [Shard(0)])
for call, sentence in (
    (lambda: sk.sparc_loss(patches, torch.randn(2, 3, 8)), "got a DTensor: pass patch_embeds.to_local()"),
    (lambda: sk.sparc_loss(patches.to_local(), torch.randn(2, 3, 8), logit_scale=patches[0, 0, :1]),
     "got a DTensor: pass logit_scale.full_tensor()"),
):
    try: call()
    except TypeError as error: assert sentence in str(error), error
    else: raise AssertionError(sentence)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Counting


@pytest.mark.parametrize("backend", FUSED)
def test_flop_counter(backend: str) -> None:
    """The forward pass has eager's products; a frozen side takes its own away."""
    from torch.utils.flop_counter import FlopCounterMode

    b, p, l, d = 3, 7, 4, 8
    across, within = 2 * b * l * p * d, 2 * b * l * l * d
    inputs = draw(backend)

    def counted(backend: str, *wanted: Tensor) -> int:
        leaves = (inputs.patch_embeds, inputs.token_embeds, inputs.logit_scale)
        patches, tokens, scale = (x if any(x is y for y in wanted) else x.detach() for x in leaves)
        with FlopCounterMode(display=False) as counter:
            loss = sk.fine_grained_loss(patches, tokens, logit_scale=scale, backend=backend)
            if wanted:
                torch.autograd.grad(loss, wanted)
        return counter.get_total_flops()

    assert counted(backend) == counted("eager") == 2 * across + within
    assert counted(backend, inputs.patch_embeds, inputs.token_embeds) == 8 * across + 4 * within
    assert counted(backend, inputs.patch_embeds) == 7 * across + 3 * within
    assert counted(backend, inputs.token_embeds) == 6 * across + 4 * within
    assert counted(backend, inputs.logit_scale) == 2 * across + within
    with FlopCounterMode(display=False) as counter:
        sk.language_grouped_embeddings(inputs.patch_embeds, inputs.token_embeds, backend=backend).sum().backward()
        sk.alignment_weights(inputs.patch_embeds, inputs.token_embeds, backend=backend).sum().backward()
    assert counter.get_total_flops() == 11 * across


# Memory


@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_costs_no_copy(dtype: torch.dtype, backend: str) -> None:
    """``sparc_loss`` has no tensor of the size of the patches beyond those of ``fine_grained_loss``: one gradient."""
    patches = torch.randn(4, 64, 96).to(dtype).requires_grad_()
    tokens = torch.randn(4, 8, 96).to(dtype).requires_grad_()

    def large_tensors(function: Callable[..., Tensor]) -> int:
        made: set[int] = set()
        kept: list[Tensor] = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                for x in torch.utils._pytree.tree_leaves(result):
                    if isinstance(x, Tensor) and x.untyped_storage().nbytes() >= patches.nbytes:
                        made.add(x.untyped_storage().data_ptr())
                        kept.append(x)  # so that no address is used twice
                return result

        with Watch():
            torch.autograd.grad(function(patches, tokens, backend=backend), (patches, tokens))
        return len(made - {patches.untyped_storage().data_ptr()})

    assert large_tensors(sk.fine_grained_loss) == 1
    assert large_tensors(sk.sparc_loss) == 1


# The module: shapes that DDP, FSDP2 and older checkpoints know


def test_parameter_shape_and_older_checkpoints() -> None:
    module = sk.SparcLoss(logit_scale=3.0, local_logit_scale=5.0)
    assert all(p.shape == (1,) for p in module.parameters())
    older = {name: value.reshape(()) for name, value in copy.deepcopy(module.state_dict()).items()}
    twin = torch.nn.ModuleDict({"criterion": sk.SparcLoss(local_logit_scale=1.0)})
    twin.load_state_dict({f"criterion.{name}": value for name, value in older.items()})
    torch.testing.assert_close(twin["criterion"].logit_scale, torch.tensor(3.0))


def test_clamp_and_reset() -> None:
    module = sk.SparcLoss(logit_scale=3.0)
    with torch.no_grad():
        module.log_logit_scale.fill_(9.0)
    module.clamp_logit_scale()
    torch.testing.assert_close(module.log_logit_scale.detach(), torch.tensor([math.log(100.0)]))
    module.reset_parameters()
    torch.testing.assert_close(module.logit_scale, torch.tensor(3.0))


# Modes that cannot be served: a sentence each


def test_numpy_inside_compile() -> None:
    numpy = pytest.importorskip("numpy")
    patches, tokens = (numpy.ones((2, n, 8), numpy.float32) for n in (5, 3))
    with pytest.raises(Exception, match=r"torch\.compile .* torch\.from_numpy"):
        torch.compile(lambda: sk.alignment_weights(patches, tokens), fullgraph=True)()


def test_onnx_takes_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.onnx

    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert _dispatch.resolve("fine_grained", "auto", cpu, torch.float32) == "eager"
    assert _dispatch.resolve("fine_grained", "cpu", cpu, torch.float32) == "cpu"


@pytest.mark.parametrize(
    "module", [name for name in modules.__all__ if issubclass(getattr(modules, name), torch.nn.Module)]
)
def test_jit_script(module: str) -> None:
    """Within a model, too."""
    sizes = (8, 2) if module.startswith("Token") else ()
    with pytest.raises(NotImplementedError, match=rf"{module} cannot be scripted by torch\.jit: use torch\.compile"):
        torch.jit.script(torch.nn.Sequential(getattr(modules, module)(*sizes)))
