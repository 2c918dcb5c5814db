"""What others publish, as far as it is installed here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.measure.case import Case, Function, Provider


def part_of(package: str, part: str) -> ModuleType | None:
    """The module ``package.part`` from its file, without what ``package`` itself imports; None where not installed.

    For a part that needs torch alone, in a package that also wants an extension which may not load beside this build
    of PyTorch.
    """
    name, found = f"{package}.{part}", importlib.util.find_spec(package)
    if name in sys.modules:
        return sys.modules[name]
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / f"{part}.py"
    spec = importlib.util.spec_from_file_location(f"{package}_{part}_alone", path)
    if not path.is_file() or spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer(
    package: str,
    op_of: Callable[[ModuleType], Function],
    *,
    refuses: Callable[[Case], str | None] = lambda case: None,
    takes_part: Callable[[Case, torch.device], bool] = lambda case, device: True,
    part: str = "",
    gpu: bool = True,
    note: str = "",
    inside: Mapping[str, str] | None = None,
) -> Provider:
    """What ``op_of`` makes of a package (of its module ``part`` alone) that others publish.

    ``gpu``: its kernels run nowhere else. ``refuses``: why it cannot serve a case. ``inside``: as a provider's.
    """

    def reason(case: Case, device: torch.device) -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        if gpu and device.type != "cuda":
            return "its kernels need a GPU"
        return refuses(case)

    def build(case: Case) -> Function:
        module = part_of(package, part) if part else importlib.import_module(package)
        assert module is not None
        return op_of(module)

    return Provider(package, "peer", build, reason, takes_part, package, note, inside or {})
