"""Scenes: what is drawn, what is said of it, and where the words point."""

from __future__ import annotations

import numpy as np
import pytest

from sparc_kernels.train.data_scenes import COLOURS, SHAPES, SIZES, TEXTURES, caption, scene


@pytest.mark.parametrize("side", [64, 224])
def test_a_scene_depends_on_seed_split_and_index_alone(side: int) -> None:
    first = scene(3, "train", 17, side)
    scene(0, "train", 1, side)
    again = scene(3, "train", 17, side)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.caption == again.caption == caption(3, "train", 17, side)
    others = [scene(4, "train", 17, side), scene(3, "heldout", 17, side), scene(3, "train", 18, side)]
    assert all(not np.array_equal(first.image, other.image) for other in others)


def test_captions_name_every_shape_and_words_stand_where_they_say() -> None:
    vocabulary = {"size": set(SIZES), "colour": set(COLOURS), "texture": set(TEXTURES), "shape": set(SHAPES)}
    for index in range(200):
        drawn = scene(0, "train", index, 64)
        assert 2 <= len(drawn.items) <= 3
        for word in drawn.words:
            assert drawn.caption[word.start : word.end] == word.text
            assert word.text in vocabulary[word.kind]
            assert getattr(drawn.items[word.item], word.kind) == word.text
        for number, item in enumerate(drawn.items):
            said = [word.text for word in drawn.words if word.item == number]
            assert said == [text for _, text in item.words()]
            assert "plain" not in said


def test_relations_are_true() -> None:
    axis = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
    seen = set()
    for index in range(200):
        drawn = scene(1, "train", index, 64)
        first, second = drawn.items[:2]
        offset = (second.x - first.x, second.y - first.y)
        relation = next(words for words in axis if f" {words} " in drawn.caption)
        which, sign = axis[relation]
        assert offset[which] * sign > 0
        assert abs(offset[which]) >= abs(offset[1 - which])
        seen.add(relation)
    assert seen == set(axis)


def test_the_pixels_in_a_words_mask_have_its_colour() -> None:
    for index in range(100):
        drawn = scene(2, "train", index, 64)
        background = drawn.image[drawn.coverage.sum(0) == 0].astype(float)
        for item, cover in zip(drawn.items, drawn.coverage):
            if item.texture != "plain":
                continue
            pixels = drawn.image[cover == 1].astype(float)
            expected = np.array(COLOURS[item.colour], float)
            assert np.abs(np.median(pixels, 0) - expected).max() < 30
            assert np.abs(np.median(background, 0) - expected).max() > 30


def test_shapes_do_not_overlap_and_patch_masks_follow_them() -> None:
    for index in range(100):
        drawn = scene(5, "train", index, 64)
        assert ((drawn.coverage > 0).sum(0) <= 1).all()
        masks = drawn.patch_masks(8)
        assert masks.shape == (len(drawn.items), 64)
        assert masks.any(1).all()
        for mask, cover in zip(masks.reshape(-1, 8, 8), drawn.coverage):
            y, x = np.nonzero(mask)
            shares = [cover[8 * a : 8 * a + 8, 8 * b : 8 * b + 8].mean() for a, b in zip(y, x)]
            assert min(shares) >= 0.1 or len(shares) == 1
            unmasked = cover.reshape(8, 8, 8, 8).mean((1, 3))[~mask]
            assert unmasked.max() < 0.1


def test_large_shapes_are_larger_than_small_ones() -> None:
    areas: dict[str, list[float]] = {"small": [], "large": []}
    for index in range(100):
        drawn = scene(6, "train", index, 64)
        for item, cover in zip(drawn.items, drawn.coverage):
            if item.shape == "circle":
                areas[item.size].append(float(cover.sum()))
    assert max(areas["small"]) < min(areas["large"])
