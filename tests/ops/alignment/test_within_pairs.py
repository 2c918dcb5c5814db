"""DreamLIP's grouping loss against its definition, and SyCoCa's masks against one chosen patch by patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparc_kernels as sk
from tests.ops.alignment import papers


def draw() -> dict[str, Any]:
    """Sub-captions and patches with holes; NaN stands in the padding."""
    generator = torch.Generator().manual_seed(0)
    patches, subcaptions = (torch.randn(4, n, 10, generator=generator, dtype=torch.float64) for n in (9, 5))
    subcaptions += 0.7 * patches[:, :5]
    patch_mask, mask = (torch.rand(4, n, generator=generator) < 0.7 for n in (9, 5))
    mask[1], mask[2] = torch.arange(5) == 2, False
    patches[~patch_mask], subcaptions[~mask] = torch.nan, torch.nan
    return {
        "patch_embeds": patches.requires_grad_(),
        "subcaption_embeds": subcaptions.requires_grad_(),
        "subcaption_mask": mask,
        "patch_mask": patch_mask,
        "logit_scale": torch.tensor(5.0, dtype=torch.float64, requires_grad=True),
        "similarity_threshold": 0.3,
    }


@pytest.mark.parametrize("backend", ["eager", "cpu"])
@pytest.mark.parametrize("negatives", ["batch", "image"])
def test_grouping_loss_is_that_of_the_paper(negatives: str, backend: str) -> None:
    x = draw()
    leaves = [x[name] for name in ("patch_embeds", "subcaption_embeds", "logit_scale")]
    truth = papers.subcaption_grouping_of(**x, negatives=negatives)
    found = sk.subcaption_grouping_loss(**x, negatives=negatives, backend=backend)
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)
    for grad, expected in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(truth, leaves)):
        torch.testing.assert_close(grad, expected.nan_to_num(), rtol=1e-9, atol=1e-12)


def test_no_subcaption_loses_nothing() -> None:
    x = draw()
    x["subcaption_mask"] = torch.zeros(4, 5, dtype=torch.bool)
    for negatives in ("batch", "image"):
        loss = sk.subcaption_grouping_loss(**x, negatives=negatives)
        assert loss == 0
        for grad in torch.autograd.grad(loss, [x["patch_embeds"], x["subcaption_embeds"]]):
            assert (grad == 0).all()


def chosen_one_by_one(
    patches: Tensor, tokens: Tensor, text_mask: Tensor, patch_mask: Tensor, ratio: float, relevance: str
) -> Tensor:
    chosen = torch.zeros(patches.shape[:2], dtype=torch.bool)
    for i in range(len(patches)):
        words = [t for t, valid in zip(tokens[i], text_mask[i]) if valid]
        left = {
            p: max(float(F.cosine_similarity(patches[i, p].detach(), t.detach(), dim=0)) for t in words)
            for p in range(patches.shape[1])
            if patch_mask[i, p] and words
        }
        for _ in range(round(ratio * len(left))):
            best = (max if relevance == "highest" else min)(left.values())
            first = next(p for p, score in left.items() if score == best)
            chosen[i, first] = True
            del left[first]
    return chosen


@pytest.mark.parametrize("relevance", ["highest", "lowest"])
def test_relevance_masks(relevance: str) -> None:
    x = draw()
    masks = {"text_mask": x["subcaption_mask"], "patch_mask": x["patch_mask"]}
    patches, tokens = x["patch_embeds"], x["subcaption_embeds"]
    for ratio in (0.0, 0.3, 0.5, 1.0):
        found = sk.relevance_mask(patches, tokens, ratio=ratio, relevance=relevance, **masks)
        assert torch.equal(found, chosen_one_by_one(patches, tokens, **masks, ratio=ratio, relevance=relevance)), ratio
    ones = torch.ones(4, 1, 10, dtype=torch.float64)
    valid = torch.ones(4, 9, dtype=torch.bool)
    whole = torch.randn(4, 9, 10, dtype=torch.float64)
    expected = chosen_one_by_one(whole, ones, torch.ones(4, 1, dtype=torch.bool), valid, 0.5, relevance)
    assert torch.equal(sk.relevance_mask(whole, ones[:, 0], relevance=relevance), expected)


def test_ties_take_the_first_patches_and_nan_the_highest() -> None:
    patches, text = torch.ones(1, 6, 4), torch.ones(1, 4)
    for relevance in ("highest", "lowest"):
        mask = sk.relevance_mask(patches, text, ratio=0.5, relevance=relevance)
        assert mask[0].tolist() == [True] * 3 + [False] * 3
    patches[0, 4] = torch.nan
    assert sk.relevance_mask(patches, text, ratio=1 / 6)[0].nonzero().tolist() == [[4]]
    assert sk.relevance_mask(patches, text, ratio=1 / 6, relevance="lowest")[0].nonzero().tolist() == [[0]]
    with torch.autocast("cpu", torch.bfloat16):  # in float32 all the same: in bfloat16 these patches would tie
        close = torch.stack([torch.tensor([1.0, 1e-3]), torch.tensor([1.0, 0.0])])[None]
        assert sk.relevance_mask(close, torch.tensor([[1.0, 0.0]]), ratio=0.5)[0].tolist() == [False, True]


V, T = torch.randn(2, 5, 8), torch.randn(2, 3, 8)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "negatives must be 'batch' or 'image', got 'all'", {"negatives": "all"}),
        (ValueError, r"subcaption_embeds must have shape \[B, K, D\], got 2", {"subcaption_embeds": T[0]}),
        (TypeError, "subcaption_embeds and patch_embeds must have the same dtype", {"subcaption_embeds": T.double()}),
        (ValueError, "similarity_threshold must lie in", {"similarity_threshold": 2.0}),
        (ValueError, r"subcaption_mask must have shape \[2, 3\]", {"subcaption_mask": torch.ones(2, 5).bool()}),
    ],
)
def test_misuse_of_the_loss(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sk.subcaption_grouping_loss(**{"patch_embeds": V, "subcaption_embeds": T} | change)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"ratio must lie in \[0, 1\], got 1.5", {"ratio": 1.5}),
        (ValueError, "relevance must be 'highest' or 'lowest', got 'top'", {"relevance": "top"}),
        (ValueError, r"text_mask must be None where", {"text_embeds": T[:, 0], "text_mask": T[..., 0] > 0}),
        (TypeError, "text_embeds must be a torch.Tensor of shape .* got list", {"text_embeds": [1.0]}),
        (ValueError, r"patch_mask must have shape \[2, 5\]", {"patch_mask": torch.ones(2, 3).bool()}),
    ],
)  # fmt: skip
def test_misuse_of_the_mask(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        sk.relevance_mask(**{"patch_embeds": V, "text_embeds": T} | change)
