"""The tables of docs/distributed.md. The same rates give the same text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure.machine import CHECKOUT
from benchmarks.report.tables import megabytes, milliseconds, table
from benchmarks.scale_model.modes import GATHER, MODES, OPEN_CLIP, OPEN_CLIP_BOTH, RING, Mode
from benchmarks.scale_model.problem import SIGMOID, SOFTMAX, Problem
from benchmarks.scale_model.rates import H200, LOGARITHMIC, NETWORKS, NIC400, NVLINK4, ONE_LINK, RAILS, Chip, Network
from benchmarks.scale_model.times import step

DOCUMENT = CHECKOUT / "docs" / "distributed.md"
BEGIN, END = "<!-- scale_model -->", "<!-- end of scale_model -->"
EXAMPLE = Problem(65536, 768, 8)
RANKS = (8, 64, 512, 4096)
# Global batch, width, and who trained so: CLIP (arXiv 2103.00020), OpenCLIP's ViT-G/14 (laion.ai/blog/giant-openclip),
# SigLIP's largest (arXiv 2303.15343; the width of its B/16).
WORKLOADS = (
    (32768, 768, "CLIP ViT-L/14"),
    (163840, 1280, "OpenCLIP ViT-bigG/14"),
    (1048576, 768, "SigLIP's largest batch"),
)

INTRODUCTION = """Written by `python -m benchmarks.scale_model --write`; edits here are lost. **Arithmetic, not measurements**:
nothing here ran on more than one GPU. Bytes and products of `gather` and of open_clip's modes are held against those
counted in runs of the code with 2 and 4 processes (`tests/benchmarks/test_scale_model.py`); `ring` is a design that is
not built. `python -m benchmarks.scale_model --help` takes another batch, chip or network.

- Chip: the rates at which one {chip} ran the losses ({softmax}; {sigmoid} of similarities, and of similarities with
  both gradients) and eager PyTorch (open_clip's element-wise kernels), 2026-11-26, commit ca26e6b.
- Links: {nvlink:.0f} GB/s within a node of 8 (NVLink 4; NVIDIA/nccl issue 1281), {nic:.0f} GB/s for a 400 Gb/s link
  (NVIDIA/nccl-tests issue 290). A collective uses all links of a node, an all-to-all or a hop of the ring one
  (nccl-tests issue 267).
- Latency: NCCL's own prediction for its rings (`src/graph/tuning.cc` at b6475625), linear in the ranks. *Logarithmic*:
  the same with steps between nodes that grow with their logarithm, as of PAT (arXiv 2506.20252).
- Assumed: blocks of few rows run at the rates of square ones, down to {least} rows, or at the copy bandwidth where that
  takes longer; links and chip do nothing else; the host launches in time; 1 us for each message of an all-to-all;
  autocast around open_clip's loss.

Letters: B pairs on W ranks, b = B / W on each, D channels, i bytes of a number of the embeddings, w of the accumulation
dtype (4; float64: 8). MB are 10^6 bytes that leave a rank (as many arrive)."""


def section() -> str:
    """All of it, between the markers."""
    return "\n\n".join([_introduction(), _exchanges(), _plan(), _crossings()])


def _introduction() -> str:
    rates = H200.rates["bfloat16"]
    softmax, sigmoid = (
        f"{loss} {rates.sweep[loss]:.0f} and {rates.gradients[loss]:.0f} Tflop/s" for loss in (SOFTMAX, SIGMOID)
    )
    return INTRODUCTION.format(chip=H200.name, softmax=softmax, sigmoid=sigmoid, nvlink=NVLINK4, nic=NIC400, least=16)


def _exchanges() -> str:
    e = EXAMPLE
    title = (
        f"**What a rank sends**, softmax; MB at B = {e.batch:,}, D = {e.width}, {e.dtype}, W = {e.ranks}. Without *hides "
        "under*, a rank waits."
    )
    rows = []
    for mode in (GATHER, RING, OPEN_CLIP_BOTH):
        for each in mode.exchanges(e):
            times = each.hops if each.hops else e.ranks - 1
            count = "W - 1" if times < e.ranks else "W"
            sent = megabytes(each.sent(e.ranks)) if each.sent(e.ranks) > 1e5 else "0"
            formula = f"({count}) {each.formula.replace('*', ' ')}"
            rows.append([mode.name, each.phase, each.what, each.collective, formula, sent, each.under])
        rows.append([mode.name, "", "**all**", "", "", f"**{megabytes(mode.sent(e))}**", ""])
    others = "; ".join(f"{mode.name.partition(': ')[2]}: {megabytes(mode.sent(e))} MB, {mode.note}" for mode in OPEN_CLIP)
    sigmoid = Problem(e.batch, e.width, e.ranks, e.dtype, SIGMOID)
    return "\n\n".join(
        [
            title,
            table(["mode", "pass", "exchange", "collective", "bytes", "MB", "hides under"], rows, 4),
            f"open_clip's four modes (`local_loss`, `gather_with_grad`): {others}.",
            f"The sigmoid loss has no column statistics: gather {megabytes(GATHER.sent(sigmoid))} MB, ring "
            f"{megabytes(RING.sent(sigmoid))} MB, whose gradients go home within the one sweep.",
        ]
    )


def _problems(dtype: str = "bfloat16") -> Iterator[tuple[str, Problem]]:
    for loss in (SOFTMAX, SIGMOID):
        for batch, width, who in WORKLOADS:
            for ranks in RANKS:
                yield who, Problem(batch, width, ranks, dtype, loss)


def _beside(*cells: str) -> str:
    return " / ".join(cells)


def _waiting(mode: Mode, problem: Problem, network: Network) -> str:
    return milliseconds(1e3 * step(mode, problem, H200, network).waiting)


def fastest(problem: Problem, chip: Chip, network: Network) -> Mode:
    """Of ours, among those that fit into the chip's memory."""
    able = [mode for mode in (GATHER, RING) if mode.memory(problem) < 1e9 * chip.memory]
    return min(able, key=lambda mode: step(mode, problem, chip, network).total)


def _plan() -> str:
    titles = [
        "B x D",
        "loss",
        "W",
        "b",
        "Tflop",
        "MB sent, gather / ring",
        "ms products, gather / ring",
        f"ms waiting, {RAILS.name}: gather / ring / gather, logarithmic",
        f"ms waiting, {ONE_LINK.name}: gather / ring",
        f"least time, {RAILS.name} / {ONE_LINK.name}",
        "open_clip / gather, time",
        "MB memory, gather / ring / open_clip",
    ]
    both = (GATHER, RING)
    rows = []
    for who, p in _problems():
        steps = {mode: step(mode, p, H200, RAILS) for mode in (*both, OPEN_CLIP_BOTH)}
        memory = [megabytes(mode.memory(p)) for mode in both]
        open_clip = ""
        if p.loss == SOFTMAX:
            open_clip = f"{steps[OPEN_CLIP_BOTH].total / steps[GATHER].total:.1f}"
            needs = OPEN_CLIP_BOTH.memory(p)
            memory.append(megabytes(needs) if needs < 1e9 * H200.memory else f"**{megabytes(needs)}**")
            open_clip = open_clip if needs < 1e9 * H200.memory else "does not fit"
        rows.append(
            [
                f"{p.batch:,} x {p.width}, {who}",
                p.loss,
                str(p.ranks),
                f"{p.local:,}",
                f"{GATHER.flop(p) / 1e12:.3g}",
                _beside(*(megabytes(mode.sent(p)) for mode in both)),
                _beside(*(milliseconds(1e3 * steps[mode].computing) for mode in both)),
                _beside(*(_waiting(mode, p, RAILS) for mode in both), _waiting(GATHER, p, LOGARITHMIC)),
                _beside(*(_waiting(mode, p, ONE_LINK) for mode in both)),
                _beside(*(fastest(p, H200, network).name for network in (RAILS, ONE_LINK))),
                open_clip,
                _beside(*memory),
            ]
        )
    described = "; ".join(f"*{network.name}*: {network.described}" for network in NETWORKS.values())
    return "\n\n".join(
        [
            f"**A step of the loss**, forward and backward, bfloat16, per rank. {described}. open_clip: local, with "
            "gradient. Memory: beyond the rank's embeddings and their gradients.",
            table(titles, rows, 2),
        ]
    )


def crossing(loss: str, ranks: int, network: Network, width: int = 768) -> int | None:
    """The least pairs per rank, a power of two up to 2^20, from which the ring takes less time than the gather."""
    for power in range(21):
        problem = Problem(2**power * ranks, width, ranks, loss=loss)
        if step(RING, problem, H200, network).total < step(GATHER, problem, H200, network).total:
            return 2**power
    return None


def _crossings() -> str:
    networks: Sequence[Network] = (RAILS, ONE_LINK)
    head = ["loss", "network", *(f"W = {ranks}" for ranks in RANKS)]
    rows = []
    for loss in (SOFTMAX, SIGMOID):
        for network in networks:
            found = [crossing(loss, ranks, network) for ranks in RANKS]
            rows.append([loss, network.name, *("never" if b is None else f"{b:,}" for b in found)])
    return "\n\n".join(
        ["**Pairs per rank from which the ring takes less time**, D = 768, bfloat16.", table(head, rows, 2)]
    )


def with_section(document: str, section: str) -> str:
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def write(path: Path = DOCUMENT) -> None:
    path.write_text(with_section(path.read_text(), section()))


def of_modes(problem: Problem, chip: Chip, network: Network) -> str:
    """All modes on one problem."""
    head = ["mode", "Tflop", "MB sent", "ms products", "ms waiting", "ms hidden", "ms", "MB memory", "remarks"]
    rows = []
    for mode in MODES:
        if problem.loss not in mode.losses:
            continue
        found, needs = step(mode, problem, chip, network), mode.memory(problem)
        remarks = mode.note if needs < 1e9 * chip.memory else f"**does not fit into {chip.memory:.0f} GB**; {mode.note}"
        times = [milliseconds(1e3 * x) for x in (found.computing, found.waiting, found.hidden, found.total)]
        flop = f"{mode.flop(problem) / 1e12:.3g}"
        rows.append([mode.name, flop, megabytes(mode.sent(problem)), *times, megabytes(needs), remarks])
    return table(head, rows)
