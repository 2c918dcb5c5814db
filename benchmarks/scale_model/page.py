"""The tables of docs/distributed.md. The same rates give the same text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure.machine import CHECKOUT
from benchmarks.report.markers import between
from benchmarks.report.tables import megabytes, milliseconds, table
from benchmarks.scale_model.modes import GATHER, MODES, OPEN_CLIP, OPEN_CLIP_BOTH, RING, SCATTERED, SWAPPED, Mode
from benchmarks.scale_model.problem import FORWARD, SIGMOID, SOFTMAX, Problem
from benchmarks.scale_model.rates import H200, LOGARITHMIC, NETWORKS, NIC400, NVLINK4, ONE_LINK, RAILS, Chip, Network
from benchmarks.scale_model.times import collective, step
from benchmarks.scale_model.traffic import ALL_GATHER, MOST_SWAPPED, Exchange
from benchmarks.scale_model.work import LEAST_ROWS, PARTIALS, WORKSPACE

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

# NVIDIA/nccl issue 1218: an all-gather of 2 GB over 256 H100 with 8 x 400 Gb/s reached about 200 GB/s.
REPORTED = Exchange("", FORWARD, ALL_GATHER, 2**31 // 256, "")

INTRODUCTION = """\
Written by `python -m benchmarks.scale_model --write`; edits here are lost. **Arithmetic, not measurements**: nothing
here ran on more than one GPU. Bytes and products of `gather`, `ring` and open_clip's modes are held against those
counted in runs of the code with 2 and 4 processes (`tests/benchmarks/test_scale_model.py`).
`python -m benchmarks.scale_model --help` takes another batch, chip or network.

- Chip: the rates at which one {chip} ran the losses (similarities alone, and similarities with both gradients:
  {softmax}; {sigmoid}) and eager PyTorch (for what open_clip does
  beside its products), 2026-11-26, commit ca26e6b (the sigmoid loss: 8b26dd7). Both have become faster since.
- Links, each way: {nvlink:.0f} GB/s on NVLink 4 in a node of 8 (measured on H100: NVIDIA/nccl issue 1281), {nic:.0f}
  GB/s on a 400 Gb/s link (NVIDIA/nccl-tests issue 290). A collective uses all links of a node, an all-to-all one per
  GPU (nccl-tests issue 267); of the ring's hops, one crosses each pair of nodes, on one link.
- Latency: NCCL's own prediction for its rings (`src/graph/tuning.cc` at b6475625), linear in the ranks. *Logarithmic*:
  as if steps between nodes grew with their logarithm (PAT, arXiv 2506.20252). The model may flatter large groups: it
  gives {reported:.0f} GB/s for an all-gather of 2 GB on 256 GPUs that reached about 200 (nccl issue 1218).
- Assumed: blocks of few rows run at the rates of square ones, down to {least} rows, or at the copy bandwidth where that
  takes longer; nothing else runs on chip and links; a message of an all-to-all costs 1 us; autocast around open_clip's
  loss; the host launches in time, which at that commit it did not: for 4096 pairs it took ten times as long as the
  kernels. The towers and the averaging of their gradients are not counted.

Letters: B pairs on W ranks, b = B / W on each, D channels, i bytes of a number of the embeddings, w of the accumulation
dtype (4; float64: 8). Bytes are those that leave a rank (as many arrive); MB are 10^6 of them."""

CHOICE = """\
**When to choose which**

- `gather` is what `group=` does, `ring` is `exchange="ring"`. Within a node of 8 `gather` waits for {small:.0f} % of a
  step at 32,768 x 768, and for {large:.0f} % at 163,840 x 1280; a ring waits a quarter as long, or less.
- Across nodes with a link per GPU a ring pays from {rails:,} pairs per rank on (softmax, 64 ranks), because each of
  its hops waits for one link where an all-gather has all; with one link per node from {one_link:,}. At 1,048,576 x 768
  on 64 ranks it would save {saved:.0f} % of the step with one link per node, {saved_rails:.0f} % with a link per GPU.
- Half-precision gradients of up to {most} ranks travel as they are, in an all-to-all: half the bytes of a float32
  reduce-scatter. But each GPU has one link to other nodes for it, and nothing is added up on the way: within a node of
  8 `gather` waits {swap_inside:.1f} times as long with it as with the reduce-scatter, on 16 ranks {swap_two:.1f} times,
  on 64 {swap:.1f} times with a link per GPU and {swap_one:.1f} times with one per node (163,840 x 1280). So more ranks
  than {most} reduce-scatter in float32.
- Memory: `gather` holds all texts and their gradients, {kilobytes:.1f} kB per pair of the *global* batch at D = 768,
  however many ranks there are: {million:.1f} GB at a million pairs. Where that does not fit, take a ring, which holds a
  few blocks of the *local* batch.
- From some hundred ranks on the mode matters less than the latency: at 32,768 x 768 on 512 ranks products are
  {products:.1f} % of a step, and most of the rest is the latency of NCCL's rings. `gather` makes {calls} collective
  calls in a step, open_clip {others}: there `gather` is the slower one. What helps is a larger batch per rank, or
  collectives of logarithmic latency.
- Of open_clip's flags set both. It then takes {least_ratio:.1f} to {most_ratio:.1f} times as long as `gather` on up
  to 64 ranks, where it fits at all. Without `local_loss` every rank makes the whole matrix: {matrix:.0f} GB at 32,768
  pairs."""


def section() -> str:
    """All of it, between the markers."""
    return "\n\n".join([_introduction(), _choice(), _exchanges(), _plan(), _crossings()])


def _introduction() -> str:
    rates = H200.rates["bfloat16"]
    softmax, sigmoid = (
        f"{loss} {rates.sweep[loss]:.0f} and {rates.gradients[loss]:.0f} Tflop/s" for loss in (SOFTMAX, SIGMOID)
    )
    reported = REPORTED.sent(256) / collective(REPORTED, 256, RAILS) / 1e9
    return INTRODUCTION.format(
        chip=H200.name,
        softmax=softmax,
        sigmoid=sigmoid,
        nvlink=NVLINK4,
        nic=NIC400,
        least=LEAST_ROWS,
        reported=reported,
    )


def _choice() -> str:
    clip, large, million = (Problem(batch, width, 8) for batch, width, _ in WORKLOADS)
    spread = replace(million, ranks=64)
    thin = step(GATHER, replace(clip, ranks=512), H200, RAILS)
    fitting = [p for _, p in _problems() if p.loss == SOFTMAX and p.ranks <= 64 and _fits(OPEN_CLIP_BOTH, p, H200)]
    ratios = [_ratio(OPEN_CLIP_BOTH, GATHER, p, RAILS) for p in fitting]
    return CHOICE.format(
        small=100 * _share_waiting(clip),
        large=100 * _share_waiting(large),
        rails=crossing(SOFTMAX, 64, RAILS),
        one_link=crossing(SOFTMAX, 64, ONE_LINK),
        saved=100 * (1 - _ratio(RING, GATHER, spread, ONE_LINK)),
        saved_rails=100 * (1 - _ratio(RING, GATHER, spread, RAILS)),
        swap_inside=_swap(large, RAILS),
        most=MOST_SWAPPED,
        swap_two=_swap(replace(large, ranks=16), RAILS),
        swap=_swap(replace(large, ranks=64), RAILS),
        swap_one=_swap(replace(large, ranks=64), ONE_LINK),
        kilobytes=(GATHER.memory(replace(million, ranks=4096)) - WORKSPACE - PARTIALS) / million.batch / 1e3,
        million=GATHER.memory(replace(million, ranks=4096)) / 1e9,
        products=100 * thin.computing / thin.total,
        calls=len(GATHER.exchanges(clip)),
        others=len(OPEN_CLIP_BOTH.exchanges(clip)),
        least_ratio=min(ratios),
        most_ratio=max(ratios),
        matrix=OPEN_CLIP[1].memory(clip) / 1e9,
    )


def _swap(problem: Problem, network: Network) -> float:
    """What ``gather`` waits for with an all-to-all of gradients, over that with the reduce-scatter."""
    found, other = (step(mode, problem, H200, network).waiting for mode in (SWAPPED, SCATTERED))
    return found / other


def _share_waiting(problem: Problem) -> float:
    found = step(GATHER, problem, H200, RAILS)
    return found.waiting / found.total


def _ratio(mode: Mode, other: Mode, problem: Problem, network: Network) -> float:
    """Of their times."""
    return step(mode, problem, H200, network).total / step(other, problem, H200, network).total


def _fits(mode: Mode, problem: Problem, chip: Chip) -> bool:
    return mode.memory(problem) < 1e9 * chip.memory


def _exchanges() -> str:
    e = EXAMPLE
    rows = []
    for mode in (GATHER, RING, OPEN_CLIP_BOTH):
        for each in mode.exchanges(e):
            count = "W" if each.hops == e.ranks else "(W - 1)"
            sent = each.sent(e.ranks)
            formula = f"{count} {each.formula.replace('*', ' ')}"
            cells = [mode.name, each.phase, each.what, each.collective, each.under or "nothing", formula]
            rows.append([*cells, megabytes(sent) if sent > 1e5 else "0.0"])
        rows.append([mode.name, "", "**all**", "", "", "", f"**{megabytes(mode.sent(e))}**"])
    others = "; ".join(
        f"{mode.name.removeprefix('open_clip: ')} {megabytes(mode.sent(e))} MB ({mode.note})" for mode in OPEN_CLIP
    )
    sigmoid = Problem(e.batch, e.width, e.ranks, e.dtype, SIGMOID)
    return "\n\n".join(
        [
            f"**What a rank sends, and what hides it**, softmax; MB at B = {e.batch:,}, D = {e.width}, {e.dtype}, "
            f"W = {e.ranks}.",
            table(["mode", "pass", "exchange", "collective", "hides under", "bytes", "MB"], rows, 6),
            f"open_clip's four modes (`local_loss` or global, `gather_with_grad` or without): {others}.",
            f"The sigmoid loss has no column statistics: gather {megabytes(GATHER.sent(sigmoid))} MB, ring "
            f"{megabytes(RING.sent(sigmoid))} MB. Its gradients come from one sweep of three products, and go home "
            "within the round of a ring.",
        ]
    )


def _problems(dtype: str = "bfloat16") -> Iterator[tuple[str, Problem]]:
    for loss in (SOFTMAX, SIGMOID):
        for batch, width, who in WORKLOADS:
            for ranks in RANKS:
                yield who, Problem(batch, width, ranks, dtype, loss)


def _beside(*cells: str) -> str:
    return " / ".join(cells)


def _ms(seconds: float) -> str:
    return milliseconds(1e3 * seconds) if seconds else "0"


def _waiting(mode: Mode, problem: Problem, network: Network) -> str:
    return _ms(step(mode, problem, H200, network).waiting)


def fastest(problem: Problem, chip: Chip, network: Network) -> Mode:
    """Of ours, among those that fit into the chip's memory."""
    able = [mode for mode in (GATHER, RING) if _fits(mode, problem, chip)]
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
        steps = {mode: step(mode, p, H200, RAILS) for mode in both}
        memory = [megabytes(mode.memory(p)) for mode in both]
        open_clip = ""
        if p.loss == SOFTMAX:
            needs, fits = megabytes(OPEN_CLIP_BOTH.memory(p)), _fits(OPEN_CLIP_BOTH, p, H200)
            memory.append(needs if fits else f"**{needs}**")
            ratio = _ratio(OPEN_CLIP_BOTH, GATHER, p, RAILS)
            open_clip = ("**{:.1f}**" if ratio < 1 else "{:.1f}").format(ratio) if fits else "does not fit"
        rows.append(
            [
                f"{p.batch:,} x {p.width}, {who}",
                p.loss,
                str(p.ranks),
                f"{p.local:,}",
                f"{GATHER.flop(p) / 1e12:.3g}",
                _beside(*(megabytes(mode.sent(p)) for mode in both)),
                _beside(*(_ms(steps[mode].computing) for mode in both)),
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
            "gradient. Memory: beyond the rank's embeddings and their gradients; bold: `gather` is the slower one, or "
            "more memory than the chip has.",
            table(titles, rows, 2),
        ]
    )


def crossing(loss: str, ranks: int, network: Network, width: int = 768) -> int | None:
    """The least pairs per rank, a power of two, from which up to 2^20 the ring takes less time than the gather."""
    least = None
    for power in reversed(range(21)):
        if _ratio(RING, GATHER, Problem(2**power * ranks, width, ranks, loss=loss), network) >= 1:
            break
        least = 2**power
    return least


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
    return between(document, BEGIN, END, section)


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
        remarks = (
            mode.note if _fits(mode, problem, chip) else f"**does not fit into {chip.memory:.0f} GB**; {mode.note}"
        )
        times = [_ms(x) for x in (found.computing, found.waiting, found.hidden, found.total)]
        flop = f"{mode.flop(problem) / 1e12:.3g}"
        rows.append([mode.name, flop, megabytes(mode.sent(problem)), *times, megabytes(needs), remarks])
    return table(head, rows)
