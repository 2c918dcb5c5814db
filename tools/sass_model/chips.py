"""What is known of the chips, and from where. Rates are per multiprocessor and cycle of its clock."""

from __future__ import annotations

from dataclasses import dataclass

PAIRS = 1024  # of the batch whose launch is looked at


@dataclass(frozen=True)
class Chip:
    name: str
    architecture: str
    multiprocessors: int
    clock: float  # GHz, at which the vendor's peak is stated
    bandwidth: float  # of DRAM, TB/s, reachable (not the data sheet's)
    shared_kilobytes: int  # that a block can have
    tensor_cycles: float  # of a scheduler for one mma.sync m16n8k16 of 16-bit numbers with float32 sums
    float_cycles: float  # of a scheduler for one float32 instruction of a warp
    l2_bytes: float | None  # from L2 to one multiprocessor per cycle; None: not known
    notes: str

    @property
    def shared_bytes(self) -> int:
        return self.shared_kilobytes << 10

    @property
    def pairs(self) -> int:
        return PAIRS

    @property
    def dram_bytes(self) -> float:
        """Of DRAM, per multiprocessor and cycle."""
        return self.bandwidth * 1e3 / self.clock / self.multiprocessors


# Peaks: 4096 flop are one m16n8k16. A100 312 Tflop/s (GA100 whitepaper) = 2048 flop per multiprocessor and cycle: 8
# cycles of a scheduler. H100 SXM5 989 Tflop/s (H100 whitepaper) = 4096: 4 cycles, of which mma.sync reaches about 62 %
# in microbenchmarks (arXiv 2402.13499). B200: nothing published for mma.sync; taken like H100. RTX PRO 6000: 1024 flop.
# m16n8k8 of tf32 is half the work at half the rate: as many cycles.
# L2: 5120 bytes per cycle for all of an A100 (GA100 whitepaper); taken for H100 as well, not known of the others.
# float32: 64 per cycle on 8.0, 128 on the others (CUDA C++ Programming Guide, arithmetic instructions).
# DRAM: about 90 % of the data sheet, what copies reach.
CHIPS = (
    Chip("A100 80 GB", "sm_80", 108, 1.41, 1.8, 163, 8.0, 2.0, 5120 / 108, "as published"),
    Chip("H100 SXM5", "sm_90", 132, 1.755, 3.0, 227, 4.0 / 0.62, 1.0, 5120 / 132, "mma.sync at 62 %; L2 as A100"),
    Chip("B200", "sm_100", 148, 1.85, 7.2, 227, 4.0 / 0.62, 1.0, None, "rate of mma.sync assumed as on H100"),
    Chip("RTX PRO 6000", "sm_120", 188, 2.6, 1.6, 99, 16.0, 1.0, None, "as published"),
)


def chip_of(architecture: str) -> Chip:
    return next(chip for chip in CHIPS if chip.architecture == architecture)
