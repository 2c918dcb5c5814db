"""The tokenizer: round trips, and the way from words to tokens."""

from __future__ import annotations

import pytest
import torch

from sparc_kernels.train.data_scenes import caption, scene
from sparc_kernels.train.tokenizer import PAD, CaptionTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer.train((caption(0, "train", index, 64) for index in range(500)), 1024, 32)


@pytest.mark.parametrize(
    "text", ["a small red striped circle", "an unseen word: xylophone!", "grüße — 猫 🐱", "don't “quote”", "x"]
)
def test_round_trip(tokenizer: CaptionTokenizer, text: str) -> None:
    batch = tokenizer([text])
    assert tokenizer.decode(batch.ids[0].tolist()) == text


def test_stored_and_loaded_it_is_the_same(tokenizer: CaptionTokenizer) -> None:
    loaded = CaptionTokenizer.from_json(tokenizer.to_json(), 32)
    texts = [caption(0, "heldout", index, 64) for index in range(20)] + ["猫 and dog"]
    assert loaded.vocab_size == tokenizer.vocab_size
    assert (loaded(texts).ids == tokenizer(texts).ids).all()


def test_training_is_deterministic() -> None:
    texts = [caption(0, "train", index, 64) for index in range(200)]
    first, second = (CaptionTokenizer.train(texts, 1024, 32) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_padding_truncation_and_case(tokenizer: CaptionTokenizer) -> None:
    batch = tokenizer(["A Red circle", "a red circle above a blue square", "word " * 100])
    assert batch.ids.shape == batch.mask.shape == (3, 32)
    assert batch.mask.sum(1).tolist()[2] == 32
    pad = tokenizer.tokenizer.token_to_id(PAD)
    assert pad is not None
    assert batch.ids[~batch.mask].eq(pad).all()
    assert (batch.ids[0, :3] == batch.ids[1, :3]).all()


def test_scene_words_are_one_token_each(tokenizer: CaptionTokenizer) -> None:
    for index in range(100):
        drawn = scene(0, "heldout", index, 64)
        batch = tokenizer([drawn.caption])
        for word in drawn.words:
            tokens = batch.tokens_of(0, word.start, word.end)
            assert len(tokens) == 1
            assert tokenizer.decode(batch.ids[0, tokens].tolist()) == word.text
        assert batch.mask.sum() == len(drawn.caption.split())


def test_a_word_of_several_tokens_and_a_word_cut_off(tokenizer: CaptionTokenizer) -> None:
    text = "a xylophone"
    batch = tokenizer([text])
    tokens = batch.tokens_of(0, 2, len(text))
    assert len(tokens) > 1
    assert tokenizer.decode(batch.ids[0, tokens].tolist()) == "xylophone"
    long = "red " * 40 + "circle"
    assert tokenizer([long]).tokens_of(0, long.index("circle"), len(long)) == []


def test_a_batch_can_be_made_longer_by_tokens_that_are_not_valid() -> None:
    batch = CaptionTokenizer.train(["a red circle"] * 3, 300, 8)(["red", "a red circle"])
    longer = batch.padded(batch.ids.shape[1] + 2)
    assert longer.ids.shape == longer.mask.shape == (2, batch.ids.shape[1] + 2)
    assert torch.equal(longer.ids[:, :-2], batch.ids)
    assert torch.equal(longer.mask[:, :-2], batch.mask)
    assert not longer.mask[:, -2:].any()
    assert torch.equal(batch.padded(1).ids, batch.ids)
