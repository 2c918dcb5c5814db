"""The towers: shapes, what may look at what, and indifference to padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sparc_kernels.train.config import LOSSES, PRESETS, TrainConfig
from sparc_kernels.train.losses import INITIAL_SCALE, SCORES, GlobalLoss, build_loss
from sparc_kernels.train.model import DualEncoder, blocked_pairs, pooled

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("preset", [TINY, replace(TINY, conv_stem=False, positions=True, text_reach=None)])
def test_shapes(preset) -> None:  # type: ignore[no-untyped-def]
    model = DualEncoder(preset, 300)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    ids, mask = torch.randint(0, 300, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    patches, tokens = model(pixels, ids, mask)
    assert patches.shape == (2, 64, 64)
    assert tokens.shape == (2, 7, 64)


def test_blocked_pairs() -> None:
    mask = torch.tensor([[True, True, True, False]])
    everything = blocked_pairs(mask, None)[0].int().tolist()
    assert everything == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    near = blocked_pairs(mask, 1)[0].int().tolist()
    assert near == [[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("reach", [0, 1, None])
def test_padding_changes_nothing(reach: int | None) -> None:
    torch.manual_seed(0)
    model = DualEncoder(replace(TINY, text_reach=reach, positions=True), 300)
    for block in model.text_tower.encoder.layers:  # zero at the start, where nothing could leak
        torch.nn.init.normal_(block.self_attn.out_proj.weight)
    ids = torch.randint(0, 300, (1, 9))
    mask = torch.arange(9)[None] < 5
    short = model.encode_texts(ids[:, :5], mask[:, :5])
    long = model.encode_texts(ids, mask)
    torch.testing.assert_close(long[:, :5], short)
    other = ids.clone()
    other[:, 5:] = 7
    torch.testing.assert_close(model.encode_texts(other, mask)[:, :5], short)
    assert long.isfinite().all()


def test_reach_limits_what_a_token_sees() -> None:
    model = DualEncoder(TINY, 300)
    for block in model.text_tower.encoder.layers:
        torch.nn.init.normal_(block.self_attn.out_proj.weight)
    ids, mask = torch.randint(0, 300, (1, 6)), torch.ones(1, 6, dtype=torch.bool)
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % 300
    change = (model.encode_texts(other, mask) - model.encode_texts(ids, mask))[0].norm(dim=1)
    assert (change > 1e-4).tolist() == [False, False, True, True, True, False]


def test_pooling_leaves_padding_out() -> None:
    embeds = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert pooled(embeds, torch.tensor([[True, True, False]])).tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("loss", LOSSES)
def test_scales_start_where_they_should_and_stay_below_100(loss: str) -> None:
    start = 10 if loss in ("siglip", "pacl", "gloria") else INITIAL_SCALE
    module = build_loss(TrainConfig(loss=loss))
    assert module.logit_scale.item() == pytest.approx(start)
    with torch.no_grad():
        module.log_logit_scale.fill_(10.0)
    embeds = torch.randn(3, 4, 8), torch.randn(3, 4, 8), torch.ones(3, 4, dtype=torch.bool)
    module(*embeds)
    assert module.logit_scale.item() == pytest.approx(100)


def test_both_losses_share_the_global_loss() -> None:
    patches, tokens = torch.randn(5, 6, 8), torch.randn(5, 4, 8)
    mask = torch.arange(4)[None] < torch.tensor([4, 3, 2, 1, 4])[:, None]
    sparc = build_loss(TrainConfig())(patches, tokens, mask)
    torch.testing.assert_close(sparc.global_loss, GlobalLoss()(patches, tokens, mask))


def test_the_sigmoid_loss_is_that_of_pooled_embeddings_and_learns_a_bias() -> None:
    patches, tokens, mask = torch.randn(5, 6, 8), torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.bool)
    module = build_loss(TrainConfig(loss="siglip"))
    loss = module(patches, tokens, mask)
    logits = 10 * torch.cosine_similarity(patches.mean(1)[:, None], tokens.mean(1)[None], dim=-1) - 10
    signs = 2 * torch.eye(5) - 1
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(signs * logits).sum() / 5)
    loss.backward()
    assert module.logit_bias.grad.abs() > 0


def test_filip_is_alone_and_leaves_padding_out() -> None:
    """Both directions of the maxima over cosines, by the definition."""
    patches, tokens = torch.randn(3, 6, 8), torch.randn(3, 5, 8)
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 4])[:, None]
    found = build_loss(TrainConfig(loss="filip"))(patches, tokens, mask)
    cosines = torch.einsum("ipd,jld->ijpl", F.normalize(patches, dim=-1), F.normalize(tokens, dim=-1))
    of_captions = cosines.masked_fill(~mask[:, None], -2).amax(3).mean(2)
    of_images = (cosines.amax(2) * mask).sum(2) / mask.sum(1)
    target = torch.arange(3)
    losses = [F.cross_entropy(INITIAL_SCALE * scores, target) for scores in (of_captions, of_images.T)]
    torch.testing.assert_close(found, sum(losses) / 2)
    for scores, expected in zip(SCORES["filip"](patches, tokens, mask), (of_captions, of_images)):
        torch.testing.assert_close(scores, expected)


def test_pacl_meets_the_mean_of_each_captions_tokens() -> None:
    patches, tokens = F.normalize(torch.randn(3, 6, 8), dim=-1), torch.randn(3, 5, 8)
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 4])[:, None]
    texts = F.normalize(torch.stack([x[m].mean(0) for x, m in zip(tokens, mask)]), dim=-1)
    weights = torch.sigmoid(10 * torch.einsum("ipd,jd->ijp", patches, texts))
    scores = F.cosine_similarity(torch.einsum("ijp,ipd->ijd", weights, patches), texts[None], dim=-1)
    target = torch.arange(3)
    expected = sum(F.cross_entropy(10 * each, target) for each in (scores, scores.T)) / 2
    torch.testing.assert_close(build_loss(TrainConfig(loss="pacl"))(2 * patches, tokens, mask), expected)
    torch.testing.assert_close(SCORES["pacl"](2 * patches, tokens, mask)[0], scores)


def test_gloria_is_its_global_and_its_local_loss_at_a_fixed_scale() -> None:
    patches, tokens, mask = torch.randn(3, 6, 8), torch.randn(3, 5, 8), torch.arange(5) < torch.tensor([[5], [2], [4]])
    module = build_loss(TrainConfig(loss="gloria"))
    assert not list(module.parameters())
    total, global_loss, local_loss = module(patches, tokens, mask)
    torch.testing.assert_close(total, global_loss + local_loss)
    images, texts = F.normalize(patches.mean(1), dim=1), F.normalize(pooled(tokens, mask), dim=1)
    logits, target = 10 * images @ texts.T, torch.arange(3)
    torch.testing.assert_close(global_loss, F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    logits = 10 * SCORES["gloria"](patches, tokens, mask)[0]
    torch.testing.assert_close(local_loss, F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@pytest.mark.parametrize("asked, given", [("auto", "auto"), ("eager", "eager"), ("cpu", "cpu"), ("cuda", "auto")])
def test_backend_of_a_global_loss(asked: str, given: str) -> None:
    for loss in ("clip", "siglip", "filip"):
        assert build_loss(TrainConfig(loss=loss, backend=asked)).backend == given


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_ring_reaches_the_loss(loss: str) -> None:
    """Which refuses the eager backend in it; so do the options, and the loss that has none."""
    module = build_loss(TrainConfig(loss=loss, exchange="ring"))
    module.backend = "eager"
    with pytest.raises(NotImplementedError, match="exchange must be 'gather' with backend='eager', got 'ring'"):
        module(torch.randn(5, 6, 8), torch.randn(5, 4, 8), torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="exchange must be 'gather' with backend eager, got 'ring'"):
        TrainConfig(loss=loss, exchange="ring", backend="eager")
    for other in ("sparc", "filip", "pacl", "gloria"):
        with pytest.raises(ValueError, match=f"exchange must be 'gather' with the loss {other}, got 'ring'"):
            TrainConfig(loss=other, exchange="ring")
