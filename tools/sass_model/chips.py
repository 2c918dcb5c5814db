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
    wgmma_cycles: float = 0.0  # of a scheduler for its quarter of one wgmma m64n64k16
    tcgen05_cycles: float = 0.0  # of a multiprocessor for one column of a tcgen05.mma m128nNk16
    registers: int = 65536
    warps: int = 64  # that a multiprocessor holds
    older: str = ""  # whose code of the library it runs, where there is none of its own

    @property
    def library(self) -> str:
        """The architecture whose code of the library runs there."""
        return self.older or self.architecture

    @property
    def shared_bytes(self) -> int:
        return self.shared_kilobytes << 10

    def blocks(self, registers: int, threads: int, shared_bytes: int) -> int:
        """How many blocks a multiprocessor holds: registers in units of 256 to a warp, of four equal parts; a kilobyte
        of shared memory more for each block, and that much more than a block can have in all (CUDA C++ Programming
        Guide, compute capabilities)."""
        warps = threads // 32
        by_registers = self.registers // 4 // (-(-registers * 32 // 256) * 256) * 4 // warps
        by_shared = (self.shared_kilobytes + 1 << 10) // (shared_bytes + 1024)
        return max(1, min(by_registers, by_shared, self.warps // warps, 32))

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
# wgmma m64n64k16 is 131,072 flop, 32 cycles of a multiprocessor and of each of its schedulers at H100's 4096; N of 64
# and more reach it in microbenchmarks (arXiv 2402.13499). tcgen05.mma: B200 2.25 Pflop/s of 16-bit numbers (HGX B200
# data sheet, half of that with sparsity) = 8192 flop: a column of 128 rows and 16 deep, 4096 flop, is half a cycle.
# m16n8k8 of tf32 is half the work at half the rate: as many cycles.
# L2: 5120 bytes per cycle for all of an A100 (GA100 whitepaper); taken for H100 as well, not known of the others.
# float32: 64 per cycle on 8.0, 128 on the others (CUDA C++ Programming Guide, arithmetic instructions).
# DRAM: about 90 % of the data sheet, what copies reach.
CHIPS = (
    Chip("A100 80 GB", "sm_80", 108, 1.41, 1.8, 163, 8.0, 2.0, 5120 / 108, "as published"),
    Chip(
        "H100 SXM5",
        "sm_90",
        132,
        1.755,
        3.0,
        227,
        4.0 / 0.62,
        1.0,
        5120 / 132,
        "mma.sync at 62 %; L2 as A100",
        wgmma_cycles=32.0,
    ),
    Chip(
        "B200",
        "sm_100",
        148,
        1.85,
        7.2,
        227,
        4.0 / 0.62,
        1.0,
        None,
        "rate of mma.sync assumed as on H100",
        tcgen05_cycles=0.5,
    ),
    Chip("RTX PRO 6000", "sm_120", 188, 2.6, 1.6, 99, 16.0, 1.0, None, "as published", warps=48),
)

# Chips that run the library's code of an older one of their major version, which Triton compiles for themselves. A10:
# 125 Tflop/s, 600 GB/s, 72 multiprocessors at 1.695 GHz; L40S: 362 Tflop/s, 864 GB/s, 142 at 2.52 GHz (data sheets,
# without sparsity): 1024 flop per multiprocessor and cycle. GeForce cards of these chips have half of that for float32
# sums.
RELATIVES = (
    Chip("A10", "sm_86", 72, 1.695, 0.54, 99, 16.0, 1.0, None, "as published", warps=48, older="sm_80"),
    Chip("L40S", "sm_89", 142, 2.52, 0.78, 99, 16.0, 1.0, None, "as published", warps=48, older="sm_80"),
)


def chip_of(architecture: str) -> Chip:
    return next(chip for chip in (*CHIPS, *RELATIVES) if chip.architecture == architecture)
