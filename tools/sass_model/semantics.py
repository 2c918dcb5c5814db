"""What each instruction does to the lanes of a block.

Only what the kernels use is here; anything else raises ``NotImplementedError`` with the instruction's text, so that a
kernel with a new one is never counted by guess. Meanings follow NVIDIA's "CUDA Binary Utilities" (names) and were
settled by running the kernels: their results must be those of the reference (tests/tools/test_sass_model.py).
"""

from __future__ import annotations

from collections.abc import Callable

from tools.sass_model import accesses, integers, lanes, reals
from tools.sass_model.disassembly import Instruction
from tools.sass_model.operands import Action, State


def action(state: State, instruction: Instruction) -> Action | None:
    """What the instruction does, or None where it changes no number (control is the machine's)."""
    name = instruction.opcode
    if name in IGNORED:
        return None
    maker = MAKERS.get(name)
    if maker is None:
        raise NotImplementedError(f"{instruction.address:#x}: {instruction.text}")
    try:
        return maker(state, instruction)
    except (IndexError, KeyError, ValueError) as error:
        raise NotImplementedError(f"{instruction.address:#x}: {instruction.text} ({error})") from error


CONTROL = {"BRA", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "BAR", "WARPSYNC", "BREAK", "BRX", "BMOV", "YIELD"}
# Waits: everything they wait for has happened by then, since instructions are done in order here.
IGNORED = {*CONTROL, "NOP", "LDGDEPBAR", "DEPBAR", "ENDCOLLECTIVE", "MEMBAR", "ERRBAR", "CCTL"}

MAKERS: dict[str, Callable[[State, Instruction], Action]] = {
    "MOV": integers.move,
    "IADD3": integers.add,
    "IADD": integers.add,
    "VIADD": integers.add,
    "IMAD": integers.multiply_add,
    "IMNMX": integers.extremum,
    "VIMNMX": integers.extremum,
    "VIADDMNMX": integers.extremum,
    "LEA": integers.load_address,
    "LOP3": integers.logic,
    "PLOP3": integers.predicate_logic,
    "ISETP": integers.compare_integers,
    "SEL": integers.select,
    "FSEL": integers.select,
    "SHF": integers.shift,
    "PRMT": integers.permute,
    "POPC": integers.count_bits,
    "IABS": integers.absolute,
    "P2R": integers.predicates_to_register,
    "R2P": integers.register_to_predicates,
    "S2R": integers.special,
    "CS2R": integers.special,
    "R2UR": integers.to_uniform,
    "SGXT": integers.extend,
    "VOTE": lanes.vote,
    "ELECT": lanes.elect,
    "REDUX": lanes.reduce,
    "SHFL": lanes.shuffle,
    "FADD": reals.arithmetic,
    "FMUL": reals.arithmetic,
    "FFMA": reals.arithmetic,
    "FMNMX": reals.real_extremum,
    "FMNMX3": reals.real_extremum,
    "FSETP": reals.compare_reals,
    "FSET": reals.compare_reals,
    "FCHK": reals.check_division,
    "MUFU": reals.function,
    "F2I": reals.to_integer,
    "I2F": reals.from_integer,
    "I2FP": reals.from_integer,
    "F2F": reals.convert,
    "F2FP": reals.convert,
    "HMMA": reals.multiply_matrices,
    "HFMA2": reals.half_constant,
    "LDS": accesses.load_shared,
    "STS": accesses.store_shared,
    "LDSM": accesses.load_matrices,
    "LDG": accesses.load_global,
    "LD": accesses.load_global,  # of any memory: raises where the address lies in no tensor
    "LDL": accesses.local,
    "STL": accesses.local,
    "STG": accesses.store_global,
    "LDGSTS": accesses.copy_to_shared,
    "LDC": accesses.load_constant,
}
