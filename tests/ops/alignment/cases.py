"""Inputs that every backend is tested on, and the float64 truth they are held to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from tests.emulation.host.backend import Device

MARGIN = 1e-5  # normalised similarities nearer than this to the threshold may fall on either side of it


@dataclass(frozen=True)
class Case:
    """One set of inputs. ``lengths``: valid tokens of each caption, ``patches``: valid patches of each image."""

    name: str
    B: int = 2
    P: int = 9
    L: int = 5
    D: int = 16
    lengths: tuple[int, ...] | None = None
    holes: bool = False
    patches: tuple[int, ...] | None = None
    threshold: float | None = None
    scale: float = 1 / 0.07
    magnitude: float = 1.0
    strided: bool = False
    emulated: tuple[str, ...] | None = None  # devices of the emulator, which takes seconds for each; None: all

    def emulated_by(self, device: Device) -> bool:
        rows_fit = (self.L <= 64 or self.lengths is not None) and (self.P <= 256 or self.patches is not None)
        path = str(device).replace("warpgroups", "pair")
        return (rows_fit or not device.pair_path) and (self.emulated is None or path in self.emulated)

    def __str__(self) -> str:
        return self.name


_PAIR = ("bf16-pair", "f16-pair")
_UNEVEN = ("bf16-pair", "bf16-tiled", "float32-tiled")

CASES = (
    Case("small"),
    Case("ragged", B=4, lengths=(5, 1, 3, 4)),
    Case("holes", B=3, L=7, lengths=(5, 4, 7), holes=True),
    Case("empty-caption", B=3, lengths=(4, 0, 2)),
    Case("all-empty", lengths=(0, 0)),
    Case("patch-mask", B=3, lengths=(5, 3, 4), patches=(9, 4, 1)),
    Case("one-patch", P=1, lengths=(5, 2)),
    Case("one-token", L=1),
    Case("one-of-each", B=1, P=1, L=1, D=1),
    Case("two-channels", D=2, P=4, L=3),
    Case("sigma-0", threshold=0.0, lengths=(5, 3)),
    Case("sigma-half", threshold=0.5, lengths=(5, 3)),
    Case("sigma-1", threshold=1.0, lengths=(5, 3)),
    Case("odd-width", D=100, P=13, L=6, lengths=(6, 5)),
    Case("eight-wide", D=8, P=17, L=9, lengths=(9, 4)),
    Case("sharp", scale=100.0, lengths=(5, 4), D=32),
    Case("flat", scale=0.5, lengths=(5, 4)),
    Case("large-similarities", magnitude=30.0, D=64, lengths=(5, 4)),
    Case("small-similarities", magnitude=1e-3, lengths=(5, 4)),
    Case("strided", strided=True, lengths=(5, 3), patches=(9, 6)),
    Case("b-32", P=49, L=12, D=64, lengths=(12, 7), emulated=("bf16-pair", "f16-tiled", "tf32-tiled")),
    Case("b-16", P=196, L=20, D=72, lengths=(20, 11), emulated=_PAIR),
    Case("uneven", P=257, L=33, D=40, lengths=(33, 18), patches=(257, 130), emulated=_UNEVEN),
)
EMPTY_BATCH = Case("empty-batch", B=0)
# Shapes of real models; run on every backend, in one dtype each, since the interpreter is slow.
LARGE = (
    Case("vit-b-16", P=196, L=55, D=512, lengths=(55, 23), emulated=_PAIR),
    Case("clip-text", B=1, P=49, L=77, D=768, lengths=(60,), emulated=("bf16-pair", "bf16-tiled", "tf32-tiled")),
    Case("long-caption", B=1, P=196, L=256, D=128, lengths=(231,), emulated=("f16-pair", "f16-tiled")),
    Case("high-resolution", B=1, P=1024, L=55, D=64, lengths=(50,), emulated=("bf16-tiled",)),
    Case("wide", B=1, P=60, L=20, D=1024, emulated=("bf16-pair", "float32-tiled")),
)


@dataclass
class Inputs:
    patch_embeds: Tensor  # [B, P, D]
    token_embeds: Tensor  # [B, L, D]
    token_mask: Tensor | None  # [B, L]
    patch_mask: Tensor | None  # [B, P]
    logit_scale: Tensor  # []
    threshold: float | None
    upstream: Tensor  # [B, L], the gradient of the per-token loss

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Inputs:
        """The same numbers in another embedding dtype (scale and upstream follow as accumulation dtype) and place."""
        accumulation = torch.float64 if dtype == torch.float64 else torch.float32
        move = lambda mask: None if mask is None else mask.to(device)  # noqa: E731
        return Inputs(
            _keep_strides(self.patch_embeds, dtype, device),
            _keep_strides(self.token_embeds, dtype, device),
            move(self.token_mask),
            move(self.patch_mask),
            self.logit_scale.to(device, accumulation),
            self.threshold,
            self.upstream.to(device, accumulation),
        )

    def require_grad(self) -> Inputs:
        leaf = lambda tensor: tensor.detach().requires_grad_()  # noqa: E731
        return replace(
            self,
            patch_embeds=leaf(self.patch_embeds),
            token_embeds=leaf(self.token_embeds),
            logit_scale=leaf(self.logit_scale),
        )


def _keep_strides(tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return tensor.to(device=device, dtype=dtype, memory_format=torch.preserve_format)


def _mask(generator: torch.Generator, counts: tuple[int, ...] | None, width: int, holes: bool) -> Tensor | None:
    if counts is None:
        return None
    mask = torch.arange(width) < torch.tensor(counts)[:, None]
    if holes:
        order = torch.rand(len(counts), width, generator=generator).argsort(1)
        mask = mask.gather(1, order)
    return mask


def _draw(case: Case, seed: int, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    # Tokens lean towards their own patch, as trained embeddings do.
    patches = torch.randn(case.B, case.P, case.D, generator=generator)
    tokens = torch.randn(case.B, case.L, case.D, generator=generator)
    chosen = torch.randint(case.P, (case.B, case.L), generator=generator)
    tokens += 0.7 * patches.gather(1, chosen[..., None].expand_as(tokens))
    if case.strided:  # channels first in memory, and every second token of a longer buffer
        patches = patches.transpose(1, 2).contiguous().transpose(1, 2)
        tokens = torch.stack([tokens, torch.full_like(tokens, torch.nan)], 2).flatten(1, 2)[:, ::2]
    return Inputs(
        # through dtype and back: every dtype's truth starts from the numbers that the kernel reads
        (patches * case.magnitude).to(dtype).double(),
        (tokens * case.magnitude).to(dtype).double(),
        _mask(generator, case.lengths, case.L, case.holes),
        _mask(generator, case.patches, case.P, False),
        torch.tensor(case.scale, dtype=torch.float64),
        case.threshold,
        torch.rand(case.B, case.L, generator=generator).double() + 0.5,
    )


def threshold_margin(inputs: Inputs) -> float:
    """How near the closest normalised similarity comes to the threshold, or a second smallest one to the minimum.

    Where this is within rounding, a result may rightly differ from the truth by a whole patch.
    """
    similarity = inputs.token_embeds.double() @ inputs.patch_embeds.double().transpose(1, 2)  # [B, L, P]
    if similarity.numel() == 0 or similarity.shape[-1] == 1:
        return torch.inf
    valid = torch.ones_like(similarity, dtype=torch.bool) if inputs.patch_mask is None else inputs.patch_mask[:, None]
    count = valid.expand_as(similarity).sum(-1, keepdim=True)
    low = similarity.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
    high = similarity.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
    normalised = (similarity - low) / (high - low)
    threshold = 1 / count if inputs.threshold is None else inputs.threshold
    distance = (normalised - threshold).abs()
    ends = (normalised == 0) | (normalised == 1)  # the minimum and the maximum fall on their side exactly
    distance = distance.masked_fill(~valid | ends, torch.inf)
    second = normalised.masked_fill(~valid | (normalised == 0), torch.inf).amin(-1)
    if inputs.token_mask is not None:
        distance = distance.masked_fill(~inputs.token_mask[..., None], torch.inf)
        second = second.masked_fill(~inputs.token_mask, torch.inf)
    return float(torch.minimum(distance.nan_to_num(torch.inf).amin(), second.nan_to_num(torch.inf).amin()))


def draw(case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Inputs of a case in float64 whose numbers ``dtype`` holds exactly, none of them at a jump of the threshold."""
    for attempt in range(50):
        inputs = _draw(case, seed + 1000 * attempt, dtype)
        if threshold_margin(inputs) > MARGIN:
            return inputs
    raise RuntimeError(f"no inputs for case {case} keep away from the threshold")


@dataclass
class Result:
    token_loss: Tensor  # [B, L]
    grad_patch_embeds: Tensor  # [B, P, D]
    grad_token_embeds: Tensor  # [B, L, D]
    grad_logit_scale: Tensor  # []

    def named(self) -> list[tuple[str, Tensor]]:
        return list(vars(self).items())


def least_of(name: str, inputs: Inputs) -> float:
    """Size under which an element of a result is what cancellation leaves over, from the scale of its terms."""
    upstream, scale = float(inputs.upstream.abs().mean().nan_to_num()), float(inputs.logit_scale)
    if name == "grad_logit_scale":  # each token's cosines, at most 1, weighed by its upstream gradient
        return 0.01 * upstream * inputs.upstream.numel()
    if name == "token_loss":
        return 1e-3
    embeds = inputs.patch_embeds if name == "grad_patch_embeds" else inputs.token_embeds
    rms, width = float(embeds.nan_to_num().square().mean().sqrt()), embeds.shape[-1]
    rows = inputs.patch_embeds.shape[1] if name == "grad_patch_embeds" else 1
    return 0.1 * scale * upstream / max(rms * width * rows, 1e-30)


def reference(inputs: Inputs, compute_dtype: torch.dtype | None = None) -> Result:
    """The eager definition and its gradients by autograd."""
    leaves = inputs.require_grad()
    token_loss = fine_grained_reference(
        leaves.patch_embeds,
        leaves.token_embeds,
        leaves.token_mask,
        leaves.patch_mask,
        leaves.logit_scale,
        leaves.threshold,
        compute_dtype=compute_dtype,
    )
    return differentiate(token_loss, leaves)


def differentiate(token_loss: Tensor, leaves: Inputs) -> Result:
    """Gradients of the upstream-weighted sum of a per-token loss."""
    grads = torch.autograd.grad(
        token_loss,
        (leaves.patch_embeds, leaves.token_embeds, leaves.logit_scale),
        leaves.upstream,
    )
    return Result(token_loss.detach(), *grads)
