"""The machine code of the native library as instructions: ``cuobjdump`` prints it, here it is parsed."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import sparc_kernels

LIBRARY = Path(sparc_kernels.__file__).with_name("libsparc_cuda.so")
ZERO = 255  # RZ; PT among predicates is the last one as well
TRUE = 7
UNIFORM = 256  # uniform registers stand behind the general ones,
UNIFORM_PREDICATES = 8  # and uniform predicates behind the general ones
LENGTH = 16  # bytes of an instruction
BANK = 4096  # bytes of constant bank 0 (parameters) that are kept; bank 2 (the compiler's) follows


@dataclass(frozen=True)
class Operand:
    """``kind``: register, predicate, number, constant, address, or other."""

    kind: str
    text: str
    index: int = ZERO  # register or predicate; of a constant or an address: the register added, ZERO where none is
    negative: bool = False  # -x; of a predicate: !p
    inverted: bool = False  # ~x
    magnitude: bool = False  # |x|
    value: int = 0  # bits of a number; the offset of a constant or an address
    uniform: int = ZERO  # of an address: the uniform register added
    wide: bool = False  # of an address: the register is a pair
    scale: int = 1  # of an address: of the register
    part: int = 0  # of R2P: which byte


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: Operand | None
    opcode: str  # without modifiers and without the U of the uniform datapath
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str
    uniform: bool  # of the uniform datapath

    def has(self, *modifiers: str) -> bool:
        return any(modifier in self.modifiers for modifier in modifiers)


def tool(name: str = "cuobjdump") -> str | None:
    """A disassembler of the CUDA toolkit, or the one that lies in the Triton wheel."""
    bundled = Path(sysconfig.get_paths()["purelib"], "triton/backends/nvidia/bin", name)
    return shutil.which(name) or (str(bundled) if bundled.exists() else None)


@dataclass(frozen=True)
class Kernel:
    name: str  # mangled
    architecture: str
    code: tuple[Instruction, ...]
    constants: bytes  # of bank 2
    registers: int  # of a thread
    local: int  # bytes of a thread beyond them


@functools.cache
def _names(library: Path) -> tuple[str, ...]:
    """Mangled names of the kernels, which the host part of the library knows them by."""
    return tuple(sorted({name.decode() for name in re.findall(rb"_ZN5sparc\d+\w+_kernel\w+", library.read_bytes())}))


def _printed(what: str, architecture: str, name: str, library: Path) -> str:
    found = tool()
    if found is None:
        raise FileNotFoundError("cuobjdump is neither installed nor in the Triton wheel")
    command = [found, what, "-arch", architecture, "-fun", name, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def kernel(architecture: str, *words: str, library: Path = LIBRARY) -> Kernel:
    """The one kernel whose mangled name holds all ``words``."""
    names = [name for name in _names(library) if all(word in name for word in words)]
    if len(names) != 1:
        raise LookupError(f"{len(names)} kernels are called {' '.join(words)}")
    (name,) = names
    code = parse(_printed("-sass", architecture, name, library).splitlines())
    second = any(operand.kind == "constant" and operand.value >= BANK for it in code for operand in it.operands)
    bank = _second_bank(_printed("-elf", architecture, name, library), name) if second else b""
    return Kernel(name, architecture, code, bank, *usage(_printed("-res-usage", architecture, name, library)))


def of_file(path: Path, architecture: str) -> Kernel:
    """The one kernel of a cubin."""
    found = tool()
    if found is None:
        raise FileNotFoundError("cuobjdump is neither installed nor in the Triton wheel")

    def printed(what: str) -> str:
        return subprocess.run([found, what, str(path)], check=True, capture_output=True, text=True).stdout

    listing = printed("-sass")
    (name,) = re.findall(r"Function : (\w+)", listing)
    code = parse(listing.splitlines())
    second = any(operand.kind == "constant" and operand.value >= BANK for it in code for operand in it.operands)
    bank = _second_bank(printed("-elf"), name) if second else b""
    return Kernel(name, architecture, code, bank, *usage(printed("-res-usage")))


def usage(text: str) -> tuple[int, int]:
    """Registers and bytes of local memory of a thread, in what ``-res-usage`` prints of one kernel."""
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _second_bank(text: str, name: str) -> bytes:
    match = re.search(rf"^\.nv\.constant2\.{re.escape(name)}\n((?:0x[0-9a-f]+[ \n]+)+)", text, re.M)
    if match is None:
        raise ValueError(f"no constant bank 2 of {name} was found")
    return b"".join(struct.pack("<I", int(word, 16)) for word in match.group(1).split())


def parse(lines: list[str]) -> tuple[Instruction, ...]:
    found: list[Instruction] = []
    for line in lines:
        if match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?)\s*;\s*/\*", line):
            address, text = int(match.group(1), 16), re.split(r"\s+[?&]", match.group(2))[0].strip()
            if address != LENGTH * len(found):
                raise ValueError(f"the listing jumps to {address:#x}: {line}")
            found.append(_instruction(address, text))
    if not found:
        raise ValueError("no instruction was found in the listing: its form has changed")
    return tuple(found)


def _instruction(address: int, text: str) -> Instruction:
    guard = None
    body = text
    if match := re.match(r"@(!?U?P[T\d])\s+(.*)", text):
        guard, body = _operand(match.group(1)), match.group(2)
    name, _, rest = body.partition(" ")
    opcode, *modifiers = name.split(".")
    if opcode == "RET":
        rest = rest.replace(" ", ", ")
    operands = tuple(_operand(part.strip()) for part in rest.split(",") if part.strip())
    uniform = opcode.startswith("U") and opcode != "UNDEF"
    if opcode in ("LDCU", "VOTEU", "S2UR", "R2UR"):
        opcode, uniform = {"LDCU": "LDC", "VOTEU": "VOTE", "S2UR": "S2R", "R2UR": "R2UR"}[opcode], True
    elif uniform:
        opcode = {"UVIMNMX": "VIMNMX", "ULDC": "LDC"}.get(opcode, opcode[1:])
    return Instruction(address, guard, opcode, tuple(modifiers), operands, text, uniform)


@functools.cache
def _operand(text: str) -> Operand:
    negative, inverted, magnitude, bare = False, False, False, text.replace(".reuse", "")
    if bare.startswith("!"):
        negative, bare = True, bare[1:]
    if match := re.fullmatch(r"(U?)P(T|\d+)", bare):
        base = UNIFORM_PREDICATES if match.group(1) else 0
        number = TRUE if match.group(2) == "T" else base + int(match.group(2))
        return Operand("predicate", text, number, negative)
    sign = bare
    if sign.startswith("-") and not re.match(r"-(\d|INF|QNAN)", sign):
        negative, sign = True, sign[1:]
    if sign.startswith("~"):
        inverted, sign = True, sign[1:]
    if match := re.fullmatch(r"\|(.*)\|", sign):
        magnitude, sign = True, match.group(1)
    if match := re.fullmatch(r"(U?)R(Z|\d+)(?:\.B(\d))?(?:\.64)?(?:\.H\d_H\d)?", sign):
        if "_H" in sign:
            return Operand("other", text)
        return Operand(
            "register",
            text,
            _register(*match.groups()[:2]),
            negative,
            inverted,
            magnitude,
            part=int(match.group(3) or 0),
        )
    if match := re.fullmatch(r"c\[0x([02])\]\[(.*)\]", sign):
        index, offset = ZERO, BANK if match.group(1) == "2" else 0
        for term in match.group(2).split("+"):
            if name := re.fullmatch(r"(U?)R(Z|\d+)", term):
                index = _register(*name.groups())
            else:
                offset += int(term, 16)
        return Operand("constant", text, index, negative, inverted, magnitude, offset)
    if match := re.fullmatch(r"(?:desc\[UR\d+\])?\[(.*)\]", sign):
        return _address(text, match.group(1))
    if re.fullmatch(r"-?0x[0-9a-f]+", bare):
        return Operand("number", text, value=int(bare, 16))
    if re.fullmatch(r"[+-]?(\d[\d.e+-]*|INF|QNAN|NAN)", bare):
        real = float(bare.replace("QNAN", "nan").replace("INF", "inf"))
        return Operand("number", text, value=struct.unpack("<I", struct.pack("<f", real))[0])
    return Operand("other", text)


def _register(uniform: str, number: str) -> int:
    if number == "Z":
        return ZERO
    return int(number) + (UNIFORM if uniform else 0)


def _address(text: str, terms: str) -> Operand:
    index, uniform, offset, wide, scale = ZERO, ZERO, 0, False, 1
    for term in terms.split("+"):
        if match := re.fullmatch(r"(U?)R(Z|\d+)(\.64|\.U32)?(?:\.X(\d+))?", term):
            register = _register(match.group(1), match.group(2))
            if match.group(1):
                uniform = register
            else:
                index, wide, scale = register, match.group(3) == ".64", int(match.group(4) or 1)
        elif term:
            offset += int(term, 16)
    return Operand("address", text, index, value=offset, uniform=uniform, wide=wide, scale=scale)
