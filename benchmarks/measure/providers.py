"""Who is measured: our backends, the eager definition, torch.compile of it, the paper's listing, installed peers.

A provider says why it cannot serve a case, or builds a function of :class:`benchmarks.cases.Inputs`. Every kind but
``floor`` computes the op and is held to the reference before it is timed; a floor is a part of the work and nothing
else.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparc_kernels as sk
from benchmarks.cases import BOTH, SCALE, Case, Inputs
from benchmarks.listing import fine_grained_listing
from sparc_kernels.ops.contrastive.reference import contrastive_reference
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.grouping.reference import alignment_weights_reference, grouped_embeddings_reference

Op = Callable[[Inputs], Tensor]
OURS = ("cuda", "triton", "cpu")  # the order in which `auto` takes them


@dataclass(frozen=True)
class Provider:
    """``reason`` is None where the provider can serve the case; ``build`` may take long (it compiles).

    ``takes_part`` is False where the provider has nothing to do with the case, which is not worth a line of a report.
    """

    name: str
    kind: str  # ours, eager, compile, listing, peer or floor
    reason: Callable[[Case, torch.device], str | None]
    build: Callable[[Case], Op]
    takes_part: Callable[[Case, torch.device], bool] = lambda case, device: True


def token_mean(token_loss: Tensor, mask: Tensor | None) -> Tensor:
    return token_loss.mean() if mask is None else token_loss.sum() / mask.sum()


def valid_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L, D] to [B, D], the way a user writes it."""
    if mask is None:
        return tokens.mean(1)
    return tokens.masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(tokens.dtype)


def definition(case: Case, compute_dtype: torch.dtype) -> Op:
    """The shipped reference, computing in ``compute_dtype``."""
    if case.op == "contrastive":
        return lambda x: contrastive_reference(x.first, x.second, x.scale, compute_dtype=compute_dtype)
    if case.op == "grouping":
        return lambda x: grouped_embeddings_reference(x.first, x.second, compute_dtype=compute_dtype)
    if case.op == "weights":
        return lambda x: alignment_weights_reference(x.first, x.second, compute_dtype=compute_dtype)

    def loss(x: Inputs) -> Tensor:
        token_loss = fine_grained_reference(x.first, x.second, x.mask, None, x.scale, compute_dtype=compute_dtype)
        return token_mean(token_loss, x.mask)

    def with_global_loss(x: Inputs) -> Tensor:
        means = x.first.mean(1), valid_mean(x.second, x.mask)
        return 0.5 * contrastive_reference(*means, x.scale, compute_dtype=compute_dtype) + loss(x)

    return with_global_loss if case.op == "sparc" else loss


def public(op: str, backend: str) -> Op:
    """The public function of an op, on an explicit backend: it serves or raises, and never falls back."""
    if op == "contrastive":
        return lambda x: sk.contrastive_loss(x.first, x.second, logit_scale=x.scale, backend=backend)
    if op == "grouping":
        return lambda x: sk.language_grouped_embeddings(x.first, x.second, backend=backend)
    if op == "weights":
        return lambda x: sk.alignment_weights(x.first, x.second, backend=backend)
    loss = sk.sparc_loss if op == "sparc" else sk.fine_grained_loss
    return lambda x: loss(x.first, x.second, x.mask, logit_scale=x.scale, backend=backend)


def _ours(backend: str) -> Provider:
    def reason(case: Case, device: torch.device) -> str | None:
        if backend == "triton" and device.type == "cpu":
            return "on the CPU it runs in Triton's interpreter only, whose speed means nothing"
        first, second = (torch.empty(0, count, 8, dtype=case.torch_dtype, device=device) for count in (2, 3))
        if case.op == "contrastive":
            first = second = first[:, 0]
        try:  # an empty batch launches nothing, but is refused for the same reasons
            public(case.op, backend)(Inputs(first, second, None, None, torch.ones((), device=device)))
        except NotImplementedError as error:
            return str(error).split(": ", 1)[-1]
        return None

    return Provider(backend, "ours", reason, lambda case: public(case.op, backend))


def _serves(case: Case, device: torch.device) -> str | None:
    return None


def _compiled(name: str, mode: str) -> Provider:
    def build(case: Case) -> Op:
        torch._dynamo.reset()
        function = torch.compile(definition(case, case.torch_dtype), mode=mode, dynamic=False)

        def call(x: Inputs) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # or a CUDA graph would keep what the last step gave out
            return function(x)

        return call

    def takes_part(case: Case, device: torch.device) -> bool:
        return device.type == "cuda" or not mode.endswith("no-cudagraphs")

    return Provider(name, "compile", _serves, build, takes_part)


def _has_the_loss(case: Case, device: torch.device) -> bool:
    return case.op == "fine_grained"


def _in_half_precision(case: Case, device: torch.device) -> bool:
    return case.dtype in ("bfloat16", "float16")  # elsewhere it is the same as eager


def _in_products(case: Case, device: torch.device) -> bool:
    """On a GPU the floor is memory, not these products."""
    whole = case.op == "fine_grained" and case.mode == BOTH and not case.frozen
    return whole and device.type == "cpu"


def _products(repeats: int) -> Callable[[Case], Op]:
    """The products of L x P x D of forward and backward through torch.bmm and nothing else: 8, or 6 with two kept."""

    def build(case: Case) -> Op:
        drawn: list[Tensor] = []  # once, on the first call

        def products(x: Inputs) -> Tensor:
            v, t = x.first.detach(), x.second.detach()
            if not drawn:
                drawn.append(torch.randn(case.batch, case.tokens, case.patches, device=t.device).to(t.dtype))
            (weights,) = drawn
            for _ in range(repeats):
                torch.bmm(t, v.mT)  # S
                torch.bmm(weights, v)  # C'
            torch.bmm(t, v.mT)  # C' V^T
            torch.bmm(weights.mT, t)  # dV, first part
            torch.bmm(weights.mT, t)  # dV, second part
            return torch.bmm(weights, v)  # dT

        return products

    return build


def _peer(module: str, build: Callable[[Case], Op]) -> Provider:
    def reason(case: Case, device: torch.device) -> str | None:
        return None if importlib.util.find_spec(module) else f"{module} is not installed"

    return Provider(module, "peer", reason, build, lambda case, device: case.op == "contrastive")


def _open_clip(case: Case) -> Op:
    loss = importlib.import_module("open_clip").ClipLoss()

    def call(x: Inputs) -> Tensor:
        images, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (x.first, x.second))
        result = loss(images, texts, x.scale.to(images.dtype))
        assert isinstance(result, Tensor)
        return result

    return call


def _inf_cl(case: Case) -> Op:
    loss = importlib.import_module("inf_cl").cal_inf_loss

    def call(x: Inputs) -> Tensor:
        images, texts = (torch.nn.functional.normalize(side, dim=-1) for side in (x.first, x.second))
        result = loss(images, texts, scale=SCALE)
        assert isinstance(result, Tensor)
        return result

    return call


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        *map(_ours, OURS),
        Provider("eager", "eager", _serves, lambda case: definition(case, case.torch_dtype)),
        Provider("eager_float32", "eager", _serves, lambda case: definition(case, torch.float32), _in_half_precision),
        Provider("listing", "listing", _serves, lambda case: _listing, _has_the_loss),
        _compiled("compile", "default"),
        _compiled("compile_max_autotune", "max-autotune"),
        _compiled("compile_max_autotune_no_graphs", "max-autotune-no-cudagraphs"),
        _peer("open_clip", _open_clip),
        _peer("inf_cl", _inf_cl),
        Provider("bare_products", "floor", _serves, _products(2), _in_products),
        Provider("bare_products_kept", "floor", _serves, _products(1), _in_products),
    )
}


def _listing(x: Inputs) -> Tensor:
    return fine_grained_listing(x.first, x.second, x.mask, x.scale)


def select(case: Case, device: torch.device, compiled: tuple[str, ...], without: tuple[str, ...]) -> list[Provider]:
    """Every provider that has to do with the case, of torch.compile's modes only those named, less ``without``."""
    return [
        provider
        for name, provider in PROVIDERS.items()
        if provider.takes_part(case, device)
        and (provider.kind != "compile" or name in compiled)
        and name not in without
    ]
