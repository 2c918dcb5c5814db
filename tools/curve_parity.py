"""How far the loss curves of the backends lie apart, beside what rounding alone does.

    python -m tools.curve_parity [--steps 300] [--batch-size 16] [--out docs/images/curve_parity.png]

trains four times from the same weights on the same scenes: eager in float64, the fused CPU kernels in float32, eager in
float32, and eager in float32 from weights that differ by the last bit. The last one says what rounding does to a curve;
the fused one has to lie as close to eager. Training is chaotic, so all of them part in time: only before that do curves
tell anything of a backend. float64 parts sooner, since there all is rounded otherwise, the towers too.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sparc_kernels.train.checkpoint import read_log
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import load_data
from sparc_kernels.train.record import LOG
from sparc_kernels.train.trainer import Trainer

TRUTH, FUSED, EAGER, NUDGED = (
    "eager, float64",
    "fused, float32",
    "eager, float32",
    "eager, float32, last bit of weights",
)
COLUMNS = ("loss", "grad_norm")
Floats = npt.NDArray[np.float64]


def curves(config: TrainConfig, fused: str = "cpu", nudge: float = 2.0**-23) -> dict[str, Floats]:
    """Loss and gradient norm of each step, [steps, 2], in the four runs by name; ``config.out`` receives their folders.

    ``nudge``: relative change of the last run's weights.
    """
    start = Trainer(config, data := load_data(config, lambda line: None), progress=False)
    found = {}
    for name, backend, dtype in (
        (TRUTH, "eager", torch.float64),
        (FUSED, fused, torch.float32),
        (EAGER, "eager", torch.float32),
        (NUDGED, "eager", torch.float32),
    ):
        with default_dtype(dtype):
            run = Trainer(
                replace(config, backend=backend, out=str(Path(config.out, name.replace(", ", "-")))),
                data,
                progress=False,
            )
            run.model.load_state_dict(start.model.state_dict())
            run.loss.load_state_dict(start.loss.state_dict())
            if name == NUDGED:
                with torch.no_grad():
                    for parameter in run.model.parameters():
                        parameter.mul_(1 + nudge)
            run.fit()
        found[name] = np.array([[float(row[name]) for name in COLUMNS] for row in read_log(run.run / LOG)])
    return found


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def distances(found: dict[str, Floats], origin: str = TRUTH) -> dict[str, Floats]:
    """Of each other run, the largest relative distance from ``origin`` up to each step, of both columns."""
    truth = found[origin]
    return {
        name: np.maximum.accumulate((np.abs(curve - truth) / np.abs(truth)).max(1))
        for name, curve in found.items()
        if name != origin
    }


def draw(found: dict[str, Floats], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.0), layout="constrained")
    steps = np.arange(1, len(found[TRUTH]) + 1)
    styles = {TRUTH: ("black", "-"), FUSED: ("tab:red", "-"), EAGER: ("tab:blue", "--"), NUDGED: ("tab:cyan", ":")}
    for name, curve in found.items():
        left.plot(steps, curve[:, 0], label=name, color=styles[name][0], linestyle=styles[name][1], linewidth=1.1)
    for name, distance in distances(found, EAGER).items():
        right.semilogy(steps, distance, label=name, color=styles[name][0], linestyle=styles[name][1], linewidth=1.3)
    left.set_title("loss", fontsize=9)
    right.set_title("distance from eager, float32: largest so far", fontsize=9)
    for axis in (left, right):
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, linewidth=0.6)
    left.legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("docs/images/curve_parity.png"), metavar="PNG")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            out=folder, steps=options.steps, batch_size=options.batch_size, warmup_steps=options.steps // 10,
            eval_pairs=2, checkpoint_every=options.steps, device="cpu", threads=1,
        )  # fmt: skip
        found = curves(config)
    far = distances(found, EAGER)
    print("| steps | " + " | ".join(far) + " |")
    print("|---:" * (1 + len(far)) + "|")
    for step in (1, 2, 5, 10, 20, 40, 100, 200, 400):
        if step <= options.steps:
            print(f"| {step} | " + " | ".join(f"{distance[step - 1]:.1e}" for distance in far.values()) + " |")
    draw(found, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
