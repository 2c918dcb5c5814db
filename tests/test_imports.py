"""Who may import whom (docs/design.md), enforced over the import graph; and what importing the package needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sparc_kernels
from sparc_kernels.ops._room import rooms

ROOT = Path(sparc_kernels.__file__).parent
ROOMS = [room.name for room in rooms()]
FAMILIES = ("_alignment", "_captions")  # folders of ops/ that the rooms of one family share
MATHEMATICS = {"sparc_kernels.ops._dtype"}
REGISTRATION = {"sparc_kernels.ops._registration"}
# What each room may import of its family: equations for the reference, inputs and the choice of a backend for the
# manifest, sizes for the signature, kernels for the rest.
EAGER = {f"sparc_kernels.ops.{family}.eager" for family in FAMILIES}
SAMPLES = {f"sparc_kernels.ops.{family}.samples" for family in FAMILIES}
CHOICES = {f"sparc_kernels.ops.{family}.choice" for family in FAMILIES}
SIZES = {f"sparc_kernels.ops.{family}.sizes" for family in FAMILIES}

# module name, its rooms written as {room}  ->  what of the package it may import
RULES = {
    "ops.{room}.reference": MATHEMATICS | EAGER,
    "ops.{room}.schema": MATHEMATICS | SIZES,
    "ops.{room}.config": set(),
    "ops.{room}.autograd": {
        "sparc_kernels.ops.{room}",
        "sparc_kernels.ops.{room}.schema",
        *REGISTRATION,
    },
    "ops.{room}.room": {
        "sparc_kernels.ops.{room}",
        "sparc_kernels.ops.{room}.autograd",
        "sparc_kernels.ops.{room}.schema",
        "sparc_kernels.ops._room",
        *MATHEMATICS,
        *SAMPLES,
        *CHOICES,
    },
    "ops._registration": {
        "sparc_kernels",
        "sparc_kernels._compile",
        "sparc_kernels._flops",
        "sparc_kernels._native",
        "sparc_kernels.ops._room",
    },
    "ops._room": set(),
    "ops._samples": {"sparc_kernels.ops._room", *MATHEMATICS},
    "ops._dtype": {"sparc_kernels._compile"},
    "_arrays": set(),
    "_compile": set(),
    "_flops": set(),
    "_validate": set(),
    "_native": {"sparc_kernels._elf"},
    "_elf": set(),
    "_version": set(),
    **{f"ops.{family}.samples": MATHEMATICS for family in FAMILIES},
    # An equation's constants may stand beside it, for the kernels, which may not import it.
    **{f"ops.{family}.eager": MATHEMATICS | {f"sparc_kernels.ops.{family}.flatness"} for family in FAMILIES},
    **{f"ops.{family}.{module}": set() for family in FAMILIES for module in ("flatness", "sizes", "choice")},
}


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere in it, as full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names
            }
    return {name for name in found if name.split(".")[0] in ("sparc_kernels", "tests", "benchmarks", "tools")}


def test_rooms_are_found() -> None:
    assert sorted(p.name for p in (ROOT / "ops").iterdir() if (p / "MATH.md").exists()) == sorted(ROOMS)
    families = sorted(p.name for p in (ROOT / "ops").iterdir() if p.name.startswith("_") and (p / "eager.py").exists())
    assert families == sorted(FAMILIES)


@pytest.mark.parametrize("name", MODULES)
def test_import_rules(name: str) -> None:
    imports = _imports(MODULES[name]) - {"sparc_kernels.ops"}
    short = name.removeprefix("sparc_kernels.")
    assert not {m for m in imports if m.split(".")[0] in ("tests", "benchmarks", "tools")}
    if not short.startswith("train"):
        assert not {m for m in imports if m.startswith("sparc_kernels.train")}, "nothing imports train"
    if not short.startswith(("functional", "_arrays")):
        assert "sparc_kernels._arrays" not in imports, "arrays become tensors at the door, the rooms know tensors only"
    if not short.startswith(("functional", "modules", "train")) and short != "sparc_kernels":
        assert not {m for m in imports if m.startswith(("sparc_kernels.functional", "sparc_kernels.modules"))}
    room = next((r for r in ROOMS if short.startswith(f"ops.{r}")), None)
    if room is not None:
        others = {m for m in imports for r in ROOMS if r != room and m.startswith(f"sparc_kernels.ops.{r}")}
        assert not others, "rooms never import each other"
    for rule, allowed in RULES.items():
        if (room and short == rule.format(room=room)) or short == rule:
            assert imports <= {m.format(room=room) for m in allowed} | {f"sparc_kernels.ops.{f}" for f in FAMILIES}
    families = tuple(f"ops.{family}" for family in FAMILIES)
    if short.startswith(("ops._triton", *families, f"ops.{room}.triton")):
        own = (*families, f"ops.{room}.") if not short.startswith("ops._triton") else ()
        allowed_prefixes = tuple(f"sparc_kernels.{prefix}" for prefix in ("ops._triton", *own))
        stray = {m for m in imports - MATHEMATICS - REGISTRATION if not m.startswith(allowed_prefixes)}
        assert not stray
    if not short.startswith("functional") and not short.endswith(("reference", "eager")):
        assert not {m for m in imports if "reference" in m or m in EAGER}, (
            "no kernel file imports a reference: no fallback can pose as a kernel"
        )
    if short.startswith("functional"):
        stray = {m for m in imports if m.startswith("sparc_kernels.ops") and "triton" in m}
        assert not stray, "the backend chooses the kernels, not the function"
    if short.startswith("modules"):
        stray = {m for m in imports if not m.startswith(("sparc_kernels.functional", "sparc_kernels.modules"))}
        assert stray <= {"sparc_kernels", "sparc_kernels._validate", "sparc_kernels.distributed"}
    if short.startswith("distributed"):
        stray = {m for m in imports if not m.startswith("sparc_kernels.distributed")}
        assert stray <= {"sparc_kernels", "sparc_kernels._compile", "sparc_kernels._validate", *MATHEMATICS}
    if short.startswith("train"):
        stray = {m for m in imports if not m.startswith("sparc_kernels.train")}
        assert stray <= {"sparc_kernels", "sparc_kernels.functional", "sparc_kernels.modules"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.endswith((".reference", ".eager", "._dtype"))])
def test_reference_needs_torch_only(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {n.split(".")[0] for n in names} <= {"torch", "sparc_kernels", *sys.stdlib_module_names}


def test_environment_is_read_in_one_place() -> None:
    readers = [name for name, path in MODULES.items() if "SPARC_" in path.read_text() and "environ" in path.read_text()]
    assert readers == ["sparc_kernels._dispatch"]


def _run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light() -> None:
    """Importing the package imports neither triton's compiler nor the trainer."""
    _run(
        "import sys, sparc_kernels\n"
        "heavy = ('sparc_kernels.train', 'matplotlib', 'tokenizers')\n"
        "found = [m for m in sys.modules if m.startswith(heavy) or m.startswith('sparc_kernels') and 'triton' in m]\n"
        "assert not found, found"
    )


def test_works_without_numpy() -> None:
    """NumPy is no dependency: only its own arrays need it."""
    _run(
        "import sys; sys.modules['numpy'] = None\n"
        "import torch, sparc_kernels as sk\n"
        "v = torch.randn(2, 3, 4)\n"
        "assert sk.alignment_weights(v, v).shape == (2, 3, 3)\n"
        "try: sk.alignment_weights([1.0], v)\n"
        "except TypeError as error: assert 'got list' in str(error), error\n"
        "else: raise AssertionError\n"
    )


def test_works_without_triton() -> None:
    out = _run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, sparc_kernels as sk\n"
        "print(sk.available_backends()['triton'])\n"
        "v = torch.randn(2, 3, 4)\n"
        "sk.sparc_loss(v, v)\n"
        "try: sk.fine_grained_loss(v, v, backend='triton')\n"
        "except NotImplementedError as error: print(error)\n"
    )
    assert out.count("triton cannot be imported") == 2


def test_works_without_the_native_library() -> None:
    """auto falls to eager, and says so; an explicit request says why not."""
    code = (
        "import logging, torch\n"
        "logging.basicConfig()\n"
        "import sparc_kernels._native as native\n"
        "native.cpu_reason = lambda: 'no library here'\n"
        "import sparc_kernels as sk\n"
        "v = torch.randn(2, 3, 4)\n"
        "sk.sparc_loss(v, v); sk.sparc_loss(v, v)\n"
        "try: sk.fine_grained_loss(v, v, backend='cpu')\n"
        "except NotImplementedError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no library here" in result.stdout
    for op in ("fine_grained", "contrastive"):
        assert result.stderr.count(f"{op} on cpu float32 runs on the eager backend (cpu: no library here)") == 1


def test_import_touches_nothing() -> None:
    """Few modules of its own, none of a compiler, and no environment variable."""
    code = (
        "import os, sys, torch\n"
        "modules, environment = set(sys.modules), dict(os.environ)\n"
        "import sparc_kernels\n"
        "new = set(sys.modules) - modules\n"
        "assert dict(os.environ) == environment, 'the environment has changed'\n"
        "heavy = [m for m in new if m.startswith(('triton', 'torch._dynamo', 'torch._inductor', 'numpy'))]\n"
        "assert not heavy, heavy\n"
        "from sparc_kernels.ops._room import rooms\n"
        "assert len(new) <= 33 + 9 * len(rooms()), sorted(new)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_flop_formulas_wait_for_the_counter() -> None:
    code = (
        "import sys, torch, sparc_kernels as sk\n"
        "assert 'torch.utils.flop_counter' not in sys.modules and 'triton' not in sys.modules\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "x = torch.randn(2, 3, 4)\n"
        "with FlopCounterMode(display=False) as counter: sk.fine_grained_loss(x, x)\n"
        "assert counter.get_total_flops() > 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
