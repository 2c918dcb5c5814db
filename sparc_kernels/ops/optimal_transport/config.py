"""Tile sizes of the Triton kernels and the rules that choose them: from the compiler (registers, spills, shared memory:
``tests/test_triton_compile.py`` looks at them) and from counting; none was compared with others on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairConfig:
    """A program holds the similarities [block_l, block_p] of a pair; their channels come block_d at a time."""

    block_l: int
    block_p: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class TiledConfig:
    """Similarities lie in a workspace, made and used by tiles [block_l, block_p]. ``held``: the blocks [L, P] in which
    one program can hold a pair while it iterates; None where it cannot, and reads them from the workspace each time."""

    held: tuple[int, int] | None
    block_l: int = 32
    block_p: int = 64
    block_d: int = 32
    num_warps: int = 4
    pass_warps: int = 8
    held_warps: int = 8
    num_stages: int = 2
    # Pairs are taken in micro-batches whose workspaces fit here: of the order of an L2 cache, and independent of B.
    workspace_bytes: int = 64 * 2**20


Config = PairConfig | TiledConfig

# Of one program: S in float32 takes 64 registers of a thread with 8 warps, and a step holds one more block like it.
MOST_HELD = 64 * 256


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def choose(n_tokens: int, n_patches: int, n_channels: int, itemsize: int, capability: int) -> Config:
    """The path for captions of n_tokens and images of n_patches, and its tiles, on a device of ``capability`` (ten
    times the major plus the minor compute capability)."""
    block_l, block_p, width = _power_of_two(n_tokens), _power_of_two(n_patches), _power_of_two(n_channels)
    fits = block_l * block_p <= MOST_HELD
    # tcgen05 leaves a thread 128 registers in a kernel that holds so much of its product, and the rest spills.
    by_tensor_memory = 100 <= capability < 120
    if itemsize == 4 or not fits or by_tensor_memory:
        held = (block_l, block_p) if fits else None
        if itemsize == 4:
            return TiledConfig(held, block_d=min(32, width))
        return TiledConfig(held, block_l=min(64, block_l), block_d=min(64, width))
    # mma.sync (8.x, 12.x) takes operands through registers: 32 channels at a time. wgmma reads them from shared memory,
    # where 64 channels are 128 bytes, the widest swizzle.
    from_registers = capability < 90 or capability >= 120
    return PairConfig(
        block_l,
        block_p,
        min(32 if from_registers else 64, width),
        num_warps=4 if block_l * block_p <= 32 * 128 else 8,
        num_stages=3 if capability == 90 else 2,
    )
