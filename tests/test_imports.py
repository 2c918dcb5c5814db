"""Who may import whom (docs/design.md), enforced over the import graph; and what importing the package needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sparc_kernels

ROOT = Path(sparc_kernels.__file__).parent
ROOMS = sorted(p.name for p in (ROOT / "ops").iterdir() if (p / "MATH.md").exists())
SHARED = {"sparc_kernels.ops._dtype"}
REGISTRATION = {"sparc_kernels.ops._registration"}

# module name, its rooms written as {room}  ->  what of the package it may import
RULES = {
    "ops.{room}.reference": SHARED | {"sparc_kernels.ops._eager"},
    "ops.{room}.schema": SHARED,
    "ops.{room}.config": set(),
    "ops.{room}.autograd": {
        "sparc_kernels",
        "sparc_kernels._native",
        "sparc_kernels.ops.{room}",
        "sparc_kernels.ops.{room}.schema",
        *REGISTRATION,
    },
    "ops._registration": {"sparc_kernels._compile", "sparc_kernels._flops"},
    "ops._eager": SHARED | {"sparc_kernels.ops._alignment.flatness"},
    "ops._alignment.flatness": set(),
    "ops._dtype": set(),
    "modules": {"sparc_kernels._validate", "sparc_kernels.functional"},
    "_arrays": set(),
    "_compile": set(),
    "_flops": set(),
    "_validate": set(),
    "_native": {"sparc_kernels._elf"},
    "_elf": set(),
    "_version": set(),
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
    assert {"fine_grained", "grouping", "contrastive"} <= set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_import_rules(name: str) -> None:
    imports = _imports(MODULES[name]) - {"sparc_kernels.ops"}
    short = name.removeprefix("sparc_kernels.")
    assert not {m for m in imports if m.split(".")[0] in ("tests", "benchmarks", "tools")}
    if not short.startswith("train"):
        assert not {m for m in imports if m.startswith("sparc_kernels.train")}, "nothing imports train"
    if short not in ("functional", "_arrays"):
        assert "sparc_kernels._arrays" not in imports, "arrays become tensors at the door, the rooms know tensors only"
    room = next((r for r in ROOMS if short.startswith(f"ops.{r}")), None)
    if room is not None:
        others = {m for m in imports for r in ROOMS if r != room and m.startswith(f"sparc_kernels.ops.{r}")}
        assert not others, "rooms never import each other"
    for rule, allowed in RULES.items():
        if (room and short == rule.format(room=room)) or short == rule:
            assert imports <= {m.format(room=room) for m in allowed}
    if short.startswith(("ops._triton", "ops._alignment", f"ops.{room}.triton")):
        allowed_prefixes: tuple[str, ...] = ("sparc_kernels.ops._triton", f"sparc_kernels.ops.{room}.")
        if not short.startswith("ops._triton"):  # what any op can use knows of no family
            allowed_prefixes += ("sparc_kernels.ops._alignment",)
        stray = {m for m in imports - SHARED - REGISTRATION if not m.startswith(allowed_prefixes)}
        assert not stray
    if not short.startswith(("functional", "ops._eager")) and not short.endswith("reference"):
        assert not {m for m in imports if "reference" in m or "_eager" in m}, (
            "no kernel file imports a reference: no fallback can pose as a kernel"
        )
    if short.startswith("train"):
        stray = {m for m in imports if not m.startswith("sparc_kernels.train")}
        assert stray <= {"sparc_kernels", "sparc_kernels.functional", "sparc_kernels.modules"}


@pytest.mark.parametrize("room", ROOMS)
def test_reference_needs_torch_only(room: str) -> None:
    for path in (
        ROOT / "ops" / room / "reference.py",
        ROOT / "ops" / "_eager.py",
        ROOT / "ops" / "_dtype.py",
    ):
        tree = ast.parse(path.read_text())
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
        "heavy = ('sparc_kernels.train', 'sparc_kernels.ops.fine_grained.triton', 'matplotlib', 'tokenizers')\n"
        "found = [m for m in sys.modules if m.startswith(heavy)]\n"
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
    assert result.stderr.count("runs on the eager backend (cpu: no library here)") == 1
