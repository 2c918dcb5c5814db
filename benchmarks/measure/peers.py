"""What others publish, as far as it is installed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


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
