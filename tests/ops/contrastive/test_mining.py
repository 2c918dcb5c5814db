"""Hard negatives against a sorted dense matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparc_kernels as sk
from sparc_kernels import Above, Ids
from sparc_kernels.functional import mining
from tests.ops.contrastive.dense import (
    GUIDE,
    IDS,
    IMAGES,
    OTHER,
    PADDED,
    WEIGHTS,
    WIDE,
    B,
    Definition,
    cosines,
    csr,
)  # fmt: skip

WIDE_GUIDE = (GUIDE[0], torch.cat([GUIDE[1], GUIDE[0][:3]]))
MINING = [
    None,
    Ids(IDS, torch.cat([IDS, IDS[:3]])),
    csr({0: [0, 1, 9], 6: range(B + 3)}, B),
    Above(*WIDE_GUIDE, 0.1),
    Above(*WIDE_GUIDE, WEIGHTS - 0.8),
    [Ids(PADDED, torch.cat([OTHER, IDS[:3]])), csr({0: [1], 1: [2, 4]}, B), Above(*WIDE_GUIDE, 0.3)],
]


@pytest.mark.parametrize("chunk_bytes", [mining._CHUNK_BYTES, 8 * (B + 3) * 2])
@pytest.mark.parametrize("exclude", MINING)
@pytest.mark.parametrize("at_most", [None, 0.2, torch.linspace(-0.2, 0.3, B)])
def test_mining(exclude: Any, at_most: Any, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "_CHUNK_BYTES", chunk_bytes)
    images, texts = IMAGES.clone().requires_grad_(), WIDE
    found = sk.mine_negatives(images, texts, 4, exclude=exclude, at_most=at_most)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.int64, (B, 4), False)
    definition = Definition(IMAGES, texts, {"exclude": exclude, "targets": csr({}, B)})
    similar = cosines(IMAGES, texts)
    for i, row in enumerate(found.tolist()):
        limit = torch.inf if at_most is None else float(torch.as_tensor(at_most).expand(B)[i])
        allowed = [j for j in range(len(texts)) if definition.part[i, j] and similar[i, j] <= limit]
        expected = sorted(allowed, key=lambda j: -similar[i, j].item())[:4]
        assert row == expected + [-1] * (4 - len(expected))


def test_mining_in_low_precision_and_empty() -> None:
    images, texts = IMAGES.to(torch.bfloat16), WIDE.to(torch.bfloat16)
    exact = sk.mine_negatives(images.double(), texts.double(), 3)
    assert sk.mine_negatives(images, texts, 3).equal(exact)
    assert sk.mine_negatives(images[:0], texts, 3).shape == (0, 3)
