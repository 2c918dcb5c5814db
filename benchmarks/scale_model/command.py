"""The command line: one problem, or the tables of docs/distributed.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.scale_model import page
from benchmarks.scale_model.problem import SIGMOID, SOFTMAX, Problem
from benchmarks.scale_model.rates import H200, NETWORKS, Chip, Network


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def _count(text: str) -> int:
    return int(_positive(str(int(text))))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.scale_model", description=__doc__.splitlines()[0])
    found.add_argument("--write", action="store_true", help="write the tables into docs/distributed.md")
    found.add_argument("--batch", type=int, help="pairs on all ranks; without it: the tables of docs/distributed.md")
    found.add_argument("--width", type=int, default=768, help="channels (768)")
    found.add_argument("--ranks", type=int, nargs="+", default=list(page.RANKS), help="8 64 512 4096")
    found.add_argument("--loss", choices=(SOFTMAX, SIGMOID), default=SOFTMAX)
    found.add_argument("--dtype", choices=sorted(H200.rates), default="bfloat16")
    found.add_argument("--network", choices=sorted(NETWORKS), default="rails", help="others by the options below")
    found.add_argument("--node", type=_count, help="ranks that NVLink joins")
    found.add_argument("--nvlink", type=_positive, help="GB/s of a collective within a node, in one direction")
    found.add_argument("--nics", type=_count, help="links of a node to other nodes")
    found.add_argument("--nic", type=_positive, help="GB/s of one of them")
    found.add_argument("--sweep", type=_positive, help="Tflop/s of the kernel that makes the similarities")
    found.add_argument("--gradients", type=_positive, help="Tflop/s of similarities with both gradients")
    found.add_argument("--matrix", type=_positive, help="Tflop/s of bare products (open_clip's)")
    found.add_argument("--copy", type=_positive, help="GB/s of the chip's memory, read and written")
    found.add_argument("--memory", type=_positive, help="GB that the loss may take")
    return found


def _changed(options: argparse.Namespace) -> tuple[Chip, Network]:
    """The chip and the network with what the options say."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    network = replace(
        NETWORKS[options.network], **{name: given[name] for name in ("node", "nvlink", "nics", "nic") if name in given}
    )
    rates = H200.rates[options.dtype]
    rates = replace(
        rates,
        sweep={options.loss: given.get("sweep", rates.sweep[options.loss])},
        gradients={options.loss: given.get("gradients", rates.gradients[options.loss])},
        matrix=given.get("matrix", rates.matrix),
    )
    chip = replace(H200, **{name: given[name] for name in ("copy", "memory") if name in given})
    return replace(chip, rates={options.dtype: rates}), network


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser()
    options = command.parse_args(arguments)
    if options.write:
        page.write()
        return
    if options.batch is None:
        print(page.section())
        return
    chip, network = _changed(options)
    print(
        f"{chip.name}, {options.dtype}, {options.loss}; nodes of {network.node}, {network.nvlink:g} GB/s within, "
        f"{network.nics} x {network.nic:g} GB/s between them; latency "
        f"{'logarithmic' if network.logarithmic else 'linear'} in the ranks"
    )
    for ranks in options.ranks:
        try:
            problem = Problem(options.batch, options.width, ranks, options.dtype, options.loss)
        except ValueError as error:
            command.error(str(error))
        print(f"\nW = {ranks}, b = {problem.local}\n\n{page.of_modes(problem, chip, network)}")
