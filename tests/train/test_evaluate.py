"""Retrieval and grounding against cases worked out by hand."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import Data, load_data
from sparc_kernels.train.data_scenes import Item, Scene, Word, scene
from sparc_kernels.train.evaluate import end_to_end, evaluate, grounding, recalls, retrieval, word_maps
from sparc_kernels.train.report import table
from sparc_kernels.train.tokenizer import CaptionTokenizer, TokenBatch


def test_perfect_retrieval() -> None:
    embeds = torch.eye(8)
    results = retrieval(embeds, 3 * embeds, [str(i) for i in range(8)])
    assert results["image_to_text_r1"] == results["text_to_image_r1"] == 1
    assert results["chance_r1"] == pytest.approx(1 / 8)
    assert results["chance_r5"] == pytest.approx(5 / 8)


def test_retrieval_by_hand() -> None:
    # cosines of image i (row) with text j (column); the right text is on the diagonal
    images = torch.eye(3)
    texts = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.5, 0.0], [0.0, 0.0, 1.0]])
    results = retrieval(images, texts, ["a", "b", "c"])
    # image 0: 0.99 against 0.85 and 0: right. image 1: 0.53 against 0.11: right. image 2: right.
    assert results["image_to_text_r1"] == 1
    # text 0: image 0, right. text 1: 0.85 for image 0 against 0.53: wrong. text 2: right.
    assert results["text_to_image_r1"] == pytest.approx(2 / 3)
    assert results["text_to_image_r5"] == 1


def test_constant_embeddings_find_nothing() -> None:
    results = retrieval(torch.ones(10, 4), torch.ones(10, 4), [str(i) for i in range(10)])
    assert results["image_to_text_r5"] == results["text_to_image_r5"] == 0


def test_shuffled_pairs_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 400, 16, generator=generator)
    results = retrieval(images, texts, [str(i) for i in range(400)])
    assert results["image_to_text_r5"] < 5 * results["chance_r5"]


def test_the_same_caption_counts_as_right() -> None:
    images = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])  # the first two are swapped
    assert retrieval(images, texts, ["x", "y", "z"])["image_to_text_r1"] == pytest.approx(1 / 3)
    assert retrieval(images, texts, ["x", "x", "z"])["image_to_text_r1"] == 1


def test_each_way_has_its_own_scores() -> None:
    """Captions are ranked in rows of the first, images in columns of the second."""
    right, wrong = torch.eye(3), torch.eye(3).roll(1, 0)
    found = recalls(right, wrong, ["a", "b", "c"])
    assert (found["image_to_text_r1"], found["text_to_image_r1"]) == (1, 0)
    found = recalls(wrong, torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 1.0], [0.0, 0.0, 2.0]]), ["a", "b", "c"])
    # column 0: 2 against 3, wrong; column 1: 0 against 1, wrong; column 2: 2 against 1, right.
    assert (found["image_to_text_r1"], found["text_to_image_r1"]) == (0, pytest.approx(1 / 3))


def test_batches_of_several_lengths_end_to_end() -> None:
    whole = end_to_end([torch.ones(2, 3, 1), torch.full((1, 4, 1), 2.0)])
    assert whole[..., 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [2, 2, 2, 2]]


class Truth:
    """Towers that know each scene: a patch is the shape it shows, a word the shape that it speaks of. One patch, of the
    background, resembles all words a little and is a hundred times as long as the others."""

    device, autocast = torch.device("cpu"), staticmethod(nullcontext)

    def __init__(self, data: Data, loss: str) -> None:
        self.data, self.config, self.model = data, TrainConfig(loss=loss), self
        self.tokenizer = CaptionTokenizer.train(data.train_captions, 2048, 32)

    def eval(self) -> None:
        """As a module's."""

    def __call__(self, _: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(self.data.captions)
        count = len(self.data.scenes)
        patches, tokens = torch.zeros(count, 64, 4 * count), torch.zeros(*mask.shape, 4 * count)
        for number, drawn in enumerate(self.data.scenes):
            masks = torch.from_numpy(drawn.patch_masks(8)).float()
            patches[number, :, 4 * number : 4 * number + len(masks)] = masks.T
            patches[number, masks.sum(0).argmin(), 4 * number : 4 * number + len(masks)] = 100
            for word in drawn.words:
                tokens[number, batch.tokens_of(number, word.start, word.end), 4 * number + word.item] = 1
        return patches, tokens


def test_what_is_measured_by_products_by_cosines_and_by_the_scores_of_the_loss() -> None:
    data = load_data(TrainConfig(eval_pairs=5))
    results = evaluate(Truth(data, "filip"), data)
    assert results["pointing"] == 0
    assert results["cosine_pointing"] == results["cosine_pointing_shape"] == 1
    assert results["own_image_to_text_r1"] == results["own_text_to_image_r1"] == 1
    assert not [name for name in evaluate(Truth(data, "clip"), data) if name.startswith("own")]


def by_hand() -> Scene:
    """Two shapes on a grid of 2 x 2 patches of 2 pixels: one in patch 0, the other in patches 2 and 3."""
    coverage = np.zeros((2, 4, 4), np.float32)
    coverage[0, :2, :2] = 1
    coverage[1, 2:, :] = 1
    items = (Item("small", "red", "plain", "circle", 1, 1, 1), Item("large", "blue", "plain", "square", 2, 3, 1))
    words = (Word("red", "colour", 0, 2, 5), Word("square", "shape", 1, 8, 14))
    return Scene(np.zeros((4, 4, 3), np.uint8), "a red a square", items, words, coverage)


@pytest.mark.parametrize(
    "red, square, pointing, iou",
    [
        ([1, 0, 0, 0], [0, 0, 0.5, 0.5], 1, 1),
        ([0.5, 0.2, 0.2, 0.1], [0, 0, 1, 0], 1, (1 + 1 / 2) / 2),  # 0.2 is below half of 0.5
        ([0.5, 0.25, 0.25, 0], [0, 0.6, 0.4, 0], 0.5, (1 / 3 + 1 / 3) / 2),
        ([0, 1, 0, 0], [1, 0, 0, 0], 0, 0),
        ([0.25] * 4, [0, 0, 0, 0], 0.5, (1 / 4 + 0) / 2),  # a map of zeros points nowhere
    ],
)
def test_grounding_by_hand(red: list[float], square: list[float], pointing: float, iou: float) -> None:
    results = grounding([by_hand()], [torch.tensor([red, square])], patch_size=2)
    assert results["pointing"] == pytest.approx(pointing)
    assert results["iou"] == pytest.approx(iou)
    assert results["chance"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert results["object_chance"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert results["words"] == 2


def test_the_masks_themselves_ground_perfectly_and_shifted_ones_do_not() -> None:
    scenes = [scene(0, "heldout", index, 64) for index in range(40)]
    masks = [torch.from_numpy(drawn.patch_masks(8)[[word.item for word in drawn.words]]).float() for drawn in scenes]
    perfect = grounding(scenes, masks, 8)
    assert perfect["pointing"] == perfect["iou"] == perfect["pointing_colour"] == 1
    shifted = grounding(scenes, [mask.roll(32, 1) for mask in masks], 8)
    assert shifted["pointing"] < 0.4
    uniform = grounding(scenes, [torch.ones_like(mask) for mask in masks], 8)
    assert uniform["iou"] == pytest.approx(uniform["chance"])


def test_word_maps_average_the_tokens_of_a_word() -> None:
    spans = [[(0, 1), (1, 3), (3, 5), (5, 7), (7, 14)]]  # "red" is cut into two tokens
    ones = torch.ones(1, 5)
    weights = torch.eye(5)[:, :4]
    maps = word_maps(by_hand(), weights, TokenBatch(ones.long(), ones.bool(), spans), 0)
    assert maps[0].tolist() == [0, 0.5, 0.5, 0]
    assert maps[1].tolist() == [0, 0, 0, 0]  # the weight of the fifth token lies outside these four patches


def test_the_table_shows_each_run_beside_chance() -> None:
    scenes = [scene(0, "heldout", index, 64) for index in range(4)]
    masks = [torch.from_numpy(drawn.patch_masks(8)[[word.item for word in drawn.words]]).float() for drawn in scenes]
    results = retrieval(torch.eye(4), torch.eye(4), [drawn.caption for drawn in scenes]) | grounding(scenes, masks, 8)
    text = table({"clip": results, "sparc": results | {"own_image_to_text_r1": 0.5}})
    header, rule, first = text.splitlines()[:3]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["", "chance", "clip", "sparc"]
    assert set(rule) == set("|-:")
    assert "25.0 %" in first
    assert first.count("100.0 %") == 2
    assert "of the texture words" in text
    (own,) = (line for line in text.splitlines() if "by the loss's own scores" in line)
    assert [cell.strip() for cell in own.split("|")[2:-1]] == ["25.0 %", "", "50.0 %"]
