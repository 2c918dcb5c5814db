"""Forward and backward in chunks: the loss and the gradients of the whole batch, in the memory of a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sparc_kernels.train.config import LOSSES, PRESETS, TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.losses import build_loss
from sparc_kernels.train.model import DualEncoder
from sparc_kernels.train.step import Batch, TowersAndLoss, backward
from sparc_kernels.train.trainer import Trainer
from tests.train.conftest import float64
from tests.train.test_trainer import Killed, curve, stop_after, train

CLOSE = {"rtol": 1e-10, "atol": 1e-13}


def towers_and_loss(loss: str, dropout: float = 0.0) -> TowersAndLoss:
    torch.manual_seed(0)
    model = DualEncoder(PRESETS["tiny"], 300)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    for block in (*model.image_tower.encoder.layers, *model.text_tower.encoder.layers):
        nn.init.normal_(block.self_attn.out_proj.weight, std=0.1)  # zero at the start
    return TowersAndLoss(model, build_loss(TrainConfig(loss=loss)), nullcontext).double()


def batch(pairs: int = 7, length: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (pairs, 3, 64, 64), dtype=torch.uint8, generator=generator)
    lengths = torch.randint(1, length + 1, (pairs, 1), generator=generator)
    return Batch(pixels, torch.randint(0, 300, (pairs, length), generator=generator), torch.arange(length) < lengths)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_chunks_give_the_gradients_of_the_batch(loss: str, chunks: int) -> None:
    whole, cut = towers_and_loss(loss), towers_and_loss(loss)
    expected, found = backward(whole, batch(), 1), backward(cut, batch(), chunks)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert all(x is not None and x.any() for x in gradients(whole).values())
    torch.testing.assert_close(gradients(cut), gradients(whole), **CLOSE)


def test_gradients_are_added() -> None:
    once, twice = towers_and_loss("siglip"), towers_and_loss("siglip")
    backward(once, batch(), 3)
    backward(twice, batch(), 3)
    backward(twice, batch(), 3)
    torch.testing.assert_close(gradients(twice), {n: 2 * x for n, x in gradients(once).items()}, **CLOSE)


def draw(*_: object) -> None:
    torch.rand(2)


def test_random_numbers_are_those_of_the_first_time() -> None:
    """With dropout, and a loss that draws: one graph of all chunks, too large to be kept, draws and gives the same."""
    reference, cut = towers_and_loss("sparc", dropout=0.3), towers_and_loss("sparc", dropout=0.3)
    for module in (reference, cut):
        module.loss.register_forward_hook(draw)
    parts = [Batch(*part) for part in zip(*(x.tensor_split(3) for x in batch()))]
    torch.manual_seed(5)
    patches, tokens = (torch.cat(x) for x in zip(*(reference.model(*part) for part in parts)))
    expected = reference.loss(patches, tokens, batch().mask).loss
    expected.backward()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    torch.testing.assert_close(backward(cut, batch(), 3)[0], expected, **CLOSE)
    torch.testing.assert_close(gradients(cut), gradients(reference), **CLOSE)
    assert torch.equal(torch.rand(3), drawn), "what follows draws on from the end of the first time"


@contextmanager
def kept_for_backward() -> Iterator[list[int]]:
    """The most bytes of distinct memory that graphs in the block held at a time."""
    held: dict[int, list[int]] = {}
    most = [0]

    class Kept:
        def __init__(self, x: Tensor) -> None:
            self.x, self.key = x, x.untyped_storage().data_ptr()
            held.setdefault(self.key, [x.untyped_storage().nbytes(), 0])[1] += 1
            most[0] = max(most[0], sum(size for size, _ in held.values()))

        def __del__(self) -> None:
            held[self.key][1] -= 1
            if not held[self.key][1]:
                del held[self.key]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
        yield most


def test_chunks_hold_the_activations_of_one() -> None:
    most = {}
    for chunks in (1, 4):
        module = towers_and_loss("sparc")
        with kept_for_backward() as held:
            backward(module, batch(16), chunks)
        most[chunks] = held[0] - sum(p.nbytes for p in module.parameters())
    assert most[4] < 0.35 * most[1], most


def test_a_run_in_chunks_follows_the_curve(small: TrainConfig) -> None:
    """In float64, and resumed in other chunks than it began with."""
    with float64():
        whole = train(replace(small, out=small.out + "-whole"))
        broken = Trainer(replace(small, accumulate=2), load_data(small), progress=False)
        stop_after(broken, 4)
        with pytest.raises(Killed):
            broken.fit()
        cut = train(replace(small, accumulate=4), resume=True)
    for row, expected in zip(curve(cut.run), curve(whole.run), strict=True):
        for name in ("loss", "local_loss", "logit_scale", "grad_norm"):
            tolerance = 1e-9 if name == "grad_norm" else 1e-11
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=tolerance), (row["step"], name)


def test_as_many_chunks_as_there_are_pairs_at_most(small: TrainConfig) -> None:
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        replace(small, accumulate=0)
    with pytest.raises(ValueError, match="accumulate must be at most the 4 pairs of a process, got 5"):
        train(replace(small, accumulate=5))
    with pytest.raises(ValueError, match="accumulate must be at most the 2 pairs of a process, got 4"):
        replace(small, accumulate=4).check_share(2)
    with pytest.raises(ValueError, match="batch_size must be at least the number of processes, 5, got 4"):
        small.check_share(5)
