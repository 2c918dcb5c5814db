"""What everybody who goes through all ops knows of these four."""

from typing import Any

import torch

from sparc_kernels.ops._dtype import accumulation_dtype
from sparc_kernels.ops._room import KERNEL_DTYPES, Entry, Op, Pass, Room
from sparc_kernels.ops.contrastive import autograd, schema

_REFERENCE = "ops.contrastive.reference"


def _batch(device: torch.device, dtype: torch.dtype, batch: int = 5, channels: int = 12) -> dict[str, Any]:
    """Items of which the middle two share an id and a pair is excluded; a guide that keeps away from its threshold."""
    generator = torch.Generator().manual_seed(0)
    images, texts, guide = (torch.randn(batch, channels, generator=generator) for _ in range(3))
    number = lambda value: torch.tensor(value, dtype=accumulation_dtype(dtype), device=device)  # noqa: E731
    ids = torch.arange(batch)
    ids[batch // 2] = batch // 2 - 1
    indptr = torch.ones(batch + 1, dtype=torch.int64)
    indptr[0] = 0
    return {
        "image_embeds": images.to(device, dtype),
        "text_embeds": texts.to(device, dtype),
        "logit_scale": number(3.0),
        "logit_bias": number(-1.0),
        "rows": images.to(device, dtype),
        "cols": texts.to(device, dtype),
        "row_scale": number(3.0),
        "col_scale": number(2.0),
        "scale": number(3.0),
        "bias": number(-1.0),
        "row_weights": (torch.arange(batch, dtype=torch.float64) / batch).to(device, accumulation_dtype(dtype)),
        "row_ids": ids.to(device),
        "col_ids": ids.to(device),
        "excluded_indptr": indptr.to(device),
        "excluded_indices": torch.tensor([batch - 1], device=device),
        "guide_rows": guide.to(device, dtype),
        "guide_cols": guide.flip(0).to(device, dtype),
        "guide_scale": number(4.0),
        "guide_threshold": number(0.9),
        "by_rows": True,
        "by_cols": True,
    }


ROOM = Room(
    name="contrastive",
    dtypes={backend: KERNEL_DTYPES[backend] for backend in ("triton", "cpu")},
    entries=(
        Entry("functional.contrastive.contrastive_loss", f"{_REFERENCE}.contrastive_reference"),
        Entry("functional.contrastive.sigmoid_loss", f"{_REFERENCE}.sigmoid_reference"),
        Entry("functional.similarity.similarity_logsumexp", f"{_REFERENCE}.similarity_logsumexp_reference"),
        Entry("functional.similarity.similarity_softplus", f"{_REFERENCE}.similarity_softplus_reference"),
        Entry("functional.similarity.paired_cosines", f"{_REFERENCE}.paired_cosines_reference"),
    ),
    sample=_batch,
    sizes=({"batch": 150, "channels": 72},),
    ops=(
        Op(
            "similarity_logsumexp",
            forward=Pass(
                schema.LOGSUMEXP_FORWARD,
                schema.fake_logsumexp_forward,
                schema.forward_flops,
                ((None,) * 17, (None,) * 7),
                "logsumexp_forward",
            ),
            backward=Pass(
                schema.LOGSUMEXP_BACKWARD,
                schema.fake_logsumexp_backward,
                schema.logsumexp_backward_flops,
                ((None,) * 26, (None,) * 4),
                "logsumexp_backward",
            ),
            derivative=autograd.logsumexp_derivative,
        ),
        Op(
            "similarity_softplus",
            forward=Pass(
                schema.SOFTPLUS_FORWARD,
                schema.fake_softplus_forward,
                schema.forward_flops,
                ((None,) * 14, (None,) * 2),
                "softplus_forward",
            ),
            backward=Pass(
                schema.SOFTPLUS_BACKWARD,
                schema.fake_softplus_backward,
                schema.softplus_backward_flops,
                ((None,) * 20, (None,) * 4),
                "softplus_backward",
            ),
            derivative=autograd.softplus_derivative,
        ),
        Op(
            "similarity_softplus_total",
            forward=Pass(
                schema.SOFTPLUS_TOTAL_FORWARD,
                schema.fake_softplus_total_forward,
                schema.softplus_total_forward_flops,
                ((None,) * 18, (None,) * 6),
                "softplus_total_forward",
            ),
            backward=Pass(
                schema.SOFTPLUS_TOTAL_BACKWARD,
                schema.fake_softplus_total_backward,
                schema.softplus_total_backward_flops,
                ((None,) * 7, (None,) * 4),
                "softplus_total_backward",
            ),
            derivative=autograd.softplus_total_derivative,
            kept=schema.SOFTPLUS_TOTAL_KEPT,
        ),
        Op(
            "paired_cosines",
            forward=Pass(
                schema.PAIRED_FORWARD,
                schema.fake_paired_forward,
                schema.paired_forward_flops,
                ((None,) * 3, (None,) * 2),
                "paired_forward",
            ),
            backward=Pass(
                schema.PAIRED_BACKWARD,
                schema.fake_paired_backward,
                schema.paired_backward_flops,
                ((None,) * 7, (None,) * 2),
                "paired_backward",
            ),
            derivative=autograd.paired_cosines_derivative,
        ),
    ),
)
