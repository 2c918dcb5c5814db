"""Which kinds of calls there are for ``ops/_alignment/choice.py``, and that the functions say what they ask for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparc_kernels as sk
from sparc_kernels.functional import alignment
from sparc_kernels.ops._alignment import choice
from sparc_kernels.ops._alignment.choice import LONG, SINGLE, TILED, WEIGHTS, kind_of

HALF = torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "tokens", "patches", "masked", "weights", "kind"),
    [
        (HALF, 64, 64, True, False, choice.PATCHES_64),
        (HALF, 64, 65, False, False, choice.PATCHES_128),
        (HALF, 64, 128, False, False, choice.PATCHES_128),
        (HALF, 64, 129, False, False, choice.PATCHES_224),
        (HALF, 64, 225, False, False, choice.PATCHES_256),
        (HALF, 64, 256, True, False, choice.PATCHES_256),
        (HALF, 64, 256, False, True, WEIGHTS),
        (HALF, 64, 257, False, True, TILED),
        (HALF, 65, 196, True, False, LONG),
        (HALF, 65, 196, False, False, TILED),
        (HALF, 65, 257, True, False, LONG),
        (torch.float32, 65, 257, True, False, SINGLE),
        (torch.float64, 5, 9, False, False, None),
    ],
)
def test_kinds(dtype: torch.dtype, tokens: int, patches: int, masked: bool, weights: bool, kind: str | None) -> None:
    assert kind_of(dtype, tokens, patches, masked, weights) == kind


def test_what_no_row_of_the_documented_table_is_of() -> None:
    """Weights go with the embeddings of 196 patches but where they were measured; long captions under a mask never."""
    groups = choice.TRITON_FIRST["grouping"]
    assert all((WEIGHTS in groups[one]) == (choice.PATCHES_224 in groups[one]) for one in groups if one != (9, 0))
    assert WEIGHTS in groups[9, 0]
    assert not any(LONG in kinds for table in choice.TRITON_FIRST.values() for kinds in table.values())


def test_functions_say_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of tokens, and weights."""
    asked: list[tuple[bool, bool]] = []

    def kind(patches: Tensor, tokens: Tensor, token_mask: Tensor | None = None, weights: bool = False) -> None:
        asked.append((token_mask is not None, weights))

    monkeypatch.setattr(alignment, "kind_of_call", kind)
    patches, tokens = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    sk.fine_grained_loss(patches, tokens)
    sk.sparc_loss(patches, tokens, torch.ones(2, 5, dtype=torch.bool))
    sk.language_grouped_embeddings(patches, tokens)
    sk.alignment_weights(patches, tokens)
    assert asked == [(False, False), (True, False), (False, False), (False, True)]
