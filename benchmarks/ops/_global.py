"""Who computes the global losses beside us: the papers' listings, eager in chunks, what others publish, bare products.

All take normalised embeddings but the chunked ones, which stand in for the definitions where those need too much
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.measure.case import BOTH, Case, Function, Provider, one_size
from benchmarks.measure.peers import peer
from benchmarks.measure.providers import PROVIDERS
from benchmarks.ops._pairs import PairInputs
from sparc_kernels.functional import _streamed

CHUNK = 1024  # rows whose similarities are there at a time
INF_CL_WIDTH = 256  # inf_cl cuts embeddings into pieces of this width


@dataclass
class GlobalInputs(PairInputs):
    """Images and texts [B, D]."""

    bias: Tensor  # [], of the sigmoid


Loss = Callable[
    [Tensor, Tensor, GlobalInputs], Tensor
]  # of normalised images and texts; scale and bias from the inputs


def of_normalised(loss: Loss) -> Function:
    return lambda x: loss(F.normalize(x.first, dim=-1), F.normalize(x.second, dim=-1), x)


# The papers' listings


def clip_listing(images: Tensor, texts: Tensor, x: GlobalInputs) -> Tensor:
    """Figure 3 of Radford et al. (2021): two cross-entropies against the diagonal."""
    logits = x.scale.to(images.dtype) * images @ texts.T
    target = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def siglip_listing(images: Tensor, texts: Tensor, x: GlobalInputs) -> Tensor:
    """Algorithm 1 of Zhai et al. (2023)."""
    logits = x.scale.to(images.dtype) * images @ texts.T + x.bias.to(images.dtype)
    labels = 2 * torch.eye(len(images), dtype=images.dtype, device=images.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


# Eager, a chunk of rows at a time, computed again in the backward pass


def _products(rows: Tensor, cols: Tensor, x: GlobalInputs) -> Tensor:
    logits = rows @ cols.T
    return x.scale * (logits if logits.dtype == torch.float64 else logits.float())


def _normalised(x: GlobalInputs, compute_dtype: torch.dtype) -> tuple[Tensor, ...]:
    wide = torch.float64 if x.first.dtype == torch.float64 else torch.float32
    return tuple(F.normalize(side.to(wide), dim=-1).to(compute_dtype) for side in (x.first, x.second))


def _positives(images: Tensor, texts: Tensor, x: GlobalInputs) -> Tensor:
    return x.scale * (images.to(x.scale.dtype) * texts.to(x.scale.dtype)).sum(-1)


def chunked_contrastive(x: GlobalInputs, compute_dtype: torch.dtype, chunk: int = CHUNK) -> Tensor:
    images, texts = _normalised(x, compute_dtype)

    def part(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        logits = _products(rows, cols, x)
        return logits.logsumexp(1), logits.logsumexp(0)

    found = [_again_later(part, rows, texts) for rows in images.split(chunk)]
    by_rows, by_cols = torch.cat([rows for rows, _ in found]), torch.stack([cols for _, cols in found]).logsumexp(0)
    return (by_rows + by_cols - 2 * _positives(images, texts, x)).sum() / (2 * len(images))


def chunked_sigmoid(x: GlobalInputs, compute_dtype: torch.dtype, chunk: int = CHUNK) -> Tensor:
    images, texts = _normalised(x, compute_dtype)

    def part(rows: Tensor, cols: Tensor) -> Tensor:
        return F.softplus(_products(rows, cols, x) + x.bias).sum()

    total = torch.stack([_again_later(part, rows, texts) for rows in images.split(chunk)]).sum()
    return (total - (_positives(images, texts, x) + x.bias).sum()) / len(images)  # softplus(z) - z = softplus(-z)


def _again_later(part: Callable[..., Any], *args: Tensor) -> Any:
    return checkpoint(part, *args, use_reentrant=False, preserve_rng_state=False)


# What others publish


def _open_clip(name: str) -> Callable[[Any], Loss]:
    def loss_of(module: Any) -> Loss:
        loss = getattr(module, name)()
        bias = (lambda x, like: (x.bias.to(like.dtype),)) if name == "SigLipLoss" else (lambda x, like: ())
        return lambda images, texts, x: loss(images, texts, x.scale.to(images.dtype), *bias(x, images))

    return loss_of


def _inf_cl(module: Any) -> Loss:
    def loss(images: Tensor, texts: Tensor, x: GlobalInputs) -> Tensor:
        ways = (images, texts), (texts, images)
        one, other = (module.cal_flash_loss(*way, scale=x.scale, head_dim=INF_CL_WIDTH).mean() for way in ways)
        return (one + other) / 2

    return loss


def _cut_cross_entropy(module: Any) -> Loss:
    def loss(images: Tensor, texts: Tensor, x: GlobalInputs) -> Tensor:
        target, scale = torch.arange(len(images), device=images.device), x.scale.to(images.dtype)
        one, other = (
            module.linear_cross_entropy(scale * rows, cols, target) for rows, cols in ((images, texts), (texts, images))
        )
        return (one + other) / 2

    return loss


def _siglip_kernel(module: Any) -> Loss:
    return lambda images, texts, x: module.fused_siglip_loss(images, texts, x.scale.log(), x.bias)


def _peer(
    package: str,
    loss_of: Callable[[Any], Loss],
    refuses: Callable[[Case], str | None] = lambda case: None,
    part: str = "",
    gpu: bool = True,
    **options: Any,
) -> Provider:
    """A loss of normalised images and texts that others publish. ``options``: as a peer's."""

    def op_of(module: Any) -> Function:
        return of_normalised(loss_of(module))

    return peer(package, op_of, refuses=refuses, takes_part=one_size, part=part, gpu=gpu, **options)


def _width(case: Case) -> str | None:
    return f"it takes multiples of {INF_CL_WIDTH} channels" if case["channels"] % INF_CL_WIDTH else None


OPEN_CLIP = {name: _peer("open_clip", _open_clip(name), part="loss", gpu=False) for name in ("ClipLoss", "SigLipLoss")}
INF_CL = _peer(
    "inf_cl",
    _inf_cl,
    _width,
    inside={"bfloat16": "tfloat32", "float16": "tfloat32", "float32": "tfloat32"},
    note="its InfoNCE of normalised embeddings, called once for each direction; products in TF32, whatever the dtype.",
)
CUT_CROSS_ENTROPY = _peer(
    "cut_cross_entropy",
    _cut_cross_entropy,
    lambda case: "its backward takes half precision alone" if case.dtype == "float32" and case.mode == BOTH else None,
    note="its linear cross-entropy of normalised embeddings, called once for each direction, with its default filter, "
    "which leaves out of the gradients what is below 1/4096 in a whole tile (bfloat16).",
)
SIGLIP_KERNEL = _peer(
    "siglip_kernel",
    _siglip_kernel,
    note="its loss of normalised embeddings by the way that it takes by itself; the gradients are computed in its "
    "forward pass, of scale and bias too.",
)


# Providers that each of the losses has


def listing(loss: Loss) -> tuple[Provider, Provider]:
    """Eager, and under torch.compile where a plan names it."""

    def compiled(case: Case) -> Function:
        return torch.compile(of_normalised(loss), dynamic=False)

    return (
        Provider("listing", "listing", lambda case: of_normalised(loss), takes_part=one_size, label="paper's listing"),
        Provider("compile_listing", "compile", compiled, takes_part=one_size, label="compile of the listing"),
    )


def chunked(loss: Callable[[GlobalInputs, torch.dtype], Tensor]) -> Provider:
    def build(case: Case) -> Function:
        return lambda x: loss(x, case.torch_dtype)

    def takes_part(case: Case, device: torch.device) -> bool:
        return device.type == "cuda" or not case.axis  # on a CPU the largest batches would take it half a minute

    note = f"`eager` in chunks of {CHUNK} rows, each computed again in the backward pass (`torch.utils.checkpoint`)."
    return Provider("eager_chunked", "eager", build, takes_part=takes_part, label="eager, chunked", note=note)


def streamed() -> Provider:
    """Ours on the CPU without the similarities that it would keep for the backward pass."""
    (cpu,) = (provider for provider in PROVIDERS if provider.name == "cpu")

    def build(case: Case) -> Function:
        def call(x: GlobalInputs) -> Tensor:
            usual, _streamed.KEEP_BYTES = _streamed.KEEP_BYTES, 0
            try:
                return case.op.public(x, "cpu")
            finally:
                _streamed.KEEP_BYTES = usual

        return call

    def takes_part(case: Case, device: torch.device) -> bool:
        kept = case["batch"] ** 2 * max(4, case.itemsize)
        return device.type == "cpu" and case.mode == BOTH and kept <= _streamed.KEEP_BYTES

    note = f"ours without keeping the similarities of small batches (up to {_streamed.KEEP_BYTES >> 20} MB)."
    return replace(cpu, name="streamed", build=build, takes_part=takes_part, label="streamed", note=note)


def bare_products(count: int, why: str) -> Provider:
    """``count`` products of B x B x D through torch.mm and nothing else."""

    def build(case: Case) -> Function:
        drawn: list[Tensor] = []  # once, on the first call

        def products(x: GlobalInputs) -> Tensor:
            images, texts = x.first.detach(), x.second.detach()
            if not drawn:
                drawn.append(torch.randn(case["batch"], case["batch"], device=images.device).to(images.dtype))
            for _ in range(count - 2):
                torch.mm(images, texts.T)
            torch.mm(drawn[0], texts)
            return torch.mm(drawn[0].T, images)

        return products

    def takes_part(case: Case, device: torch.device) -> bool:
        return case.mode == BOTH and not case.frozen and not case.axis

    note = f"the {count} matrix products of B x B x D ({why}) through `torch.mm` and nothing else."
    name = f"bare_{count}_products"
    return Provider(name, "floor", build, takes_part=takes_part, label=f"{count} bare products", note=note)
