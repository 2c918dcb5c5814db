"""Forward and backward of one batch: at once, or in chunks whose features are kept (GradCache, Gao et al. 2021).

The loss compares each pair with all others, so gradients of parts of a batch do not add up to those of the batch. In
chunks the towers run twice instead: first without a graph, for the features of the whole batch, whose loss gives the
gradient of each feature; then chunk by chunk with a graph, which hands these gradients on to the parameters. Only one
chunk's activations are held at a time; loss and gradients are those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparc_kernels.functional import SparcLossOutput
from sparc_kernels.train.meter import StepClock
from sparc_kernels.train.processes import unsynced

Result = Tensor | SparcLossOutput


class Batch(NamedTuple):
    """``pixels`` [B, 3, S, S] uint8, ``ids`` [B, L], ``mask`` [B, L] bool, True = valid."""

    pixels: Tensor
    ids: Tensor
    mask: Tensor


class Features(NamedTuple):
    """``patches`` [B, P, D], ``tokens`` [B, L, D]."""

    patches: Tensor
    tokens: Tensor


class TowersAndLoss(nn.Module):
    """What DDP or FSDP2 wraps, so that they average the gradients of the loss's own parameters too.

    A wrapper's hooks hang on ``forward``, so all that touches a parameter goes through it: a batch to its loss; a batch
    with ``embed`` to features; a batch with its ``features`` to their loss.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        autocast: Callable[[], torch.autocast],
        clock: StepClock | None = None,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.autocast, self.clock = model, loss, autocast, clock

    def forward(
        self, batch: Batch, features: Features | None = None, embed: bool = False
    ) -> Result | tuple[Tensor, ...]:
        """With ``embed``: patches, tokens, and the loss's parameters, without which the part of the graph that is
        synchronised would lack them, and DDP wait for their gradients."""
        if features is None:
            with self.autocast():  # the towers alone: the loss takes what they give, outside
                features = Features(*self.model(*batch))
        if embed:
            return (*features, *(parameter.clone() for parameter in self.loss.parameters()))
        if self.clock:
            features = Features(*self.clock.watch(*features))
        result: Result = self.loss(*features, batch.mask)
        return result


def backward(wrapped: nn.Module, batch: Batch, chunks: int) -> tuple[Tensor, ...]:
    """The loss of a batch, and the parts it is the sum of if there are any; gradients are added to the parameters'."""
    if chunks > 1:
        return _in_chunks(wrapped, batch, chunks)
    losses = _losses(wrapped(batch))
    losses[0].backward()
    return losses


def settle(wrapped: nn.Module, image_size: int, device: torch.device) -> None:
    """One backward pass of nothing, after which DDP has the order in which it sums gradients for good.

    It takes the order of its first backward pass from the second on. A resumed run, whose first pass is any step, would
    sum in another order than the run before, which shows in the last bit with more than two processes.
    """
    if not isinstance(wrapped, nn.parallel.DistributedDataParallel):
        return
    pixels = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        outputs = wrapped(Batch(pixels, ids, torch.ones_like(ids, dtype=torch.bool)), embed=True)
        torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs])
    wrapped.zero_grad(set_to_none=True)


def _in_chunks(wrapped: nn.Module, batch: Batch, chunks: int) -> tuple[Tensor, ...]:
    parts = [Batch(*part) for part in zip(*(x.tensor_split(chunks) for x in batch))]
    device = batch.pixels.device

    # The features of all chunks, without a graph.
    states, found = [], []
    with torch.no_grad(), unsynced(wrapped):
        for part in parts:
            states.append(_generators(device))
            found.append(wrapped(part, embed=True)[:2])
    features = Features(*(torch.cat(each).requires_grad_() for each in zip(*found)))
    del found

    # The loss of the whole batch, and with it the gradients of the features and of the loss's parameters.
    with unsynced(wrapped):
        losses = _losses(wrapped(batch, features))
        losses[0].backward()

    # Each chunk again, with a graph and with the random numbers of its first time.
    slopes = [torch.zeros_like(x) if x.grad is None else x.grad for x in features]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        of_parts = zip(*(x.tensor_split(chunks) for x in slopes))
        for number, (part, state, of_part) in enumerate(zip(parts, states, of_parts)):
            _set_generators(state, device)
            with unsynced(wrapped) if number < chunks - 1 else nullcontext():
                outputs = wrapped(part, embed=True)
                nothing = [torch.zeros_like(parameter) for parameter in outputs[2:]]  # theirs came with the loss
                torch.autograd.backward(outputs, [*of_part, *nothing])
    return losses


def _losses(result: Result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _generators(device: torch.device) -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def _set_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
