"""Formulas for ``torch.utils.flop_counter``, handed over when somebody imports it: it imports Triton, we do not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_formulas: dict[Any, Callable[..., int]] = {}


class _AfterImport:
    """A finder for ``sys.meta_path`` that calls ``action`` once the module ``name`` has been imported."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                sys.modules[name] = module
                self.action()

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def _register_all() -> None:
    register = sys.modules[_COUNTER].register_flop_formula
    while _formulas:
        op, formula = _formulas.popitem()
        register(op, get_raw=True)(formula)


def count(op: Any, formula: Callable[..., int]) -> None:
    """Let ``FlopCounterMode`` count ``formula(*arguments of the op)`` for calls of ``op``."""
    if not _formulas and _COUNTER not in sys.modules:
        sys.meta_path.insert(0, _AfterImport(_COUNTER, _register_all))
    _formulas[op] = lambda *args, out_val=None, **kwargs: formula(*args, **kwargs)
    if _COUNTER in sys.modules:
        _register_all()
