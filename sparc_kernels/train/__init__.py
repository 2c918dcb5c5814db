"""The thin reference trainer: a small image tower, a small text tower, and the SPARC loss between them.

``python -m sparc_kernels.train --help`` is the way in, ``load_run`` the way out; docs/training.md is their guide.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = {
    "numpy": "numpy",
    "PIL": "pillow",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "tensorboard": "tensorboard",
    "matplotlib": "matplotlib",
    "filelock": "filelock",
}
if sys.version_info < (3, 11):
    _NEEDED["tomli"] = "tomli"  # what became tomllib


def missing_requirements() -> list[str]:
    """The distributions of the extra ``train`` that are not installed."""
    return [distribution for module, distribution in _NEEDED.items() if find_spec(module) is None]


if _missing := missing_requirements():
    raise ImportError(
        f'sparc_kernels.train needs {", ".join(_missing)}, not installed here: pip install "sparc-kernels[train]"'
    )

from sparc_kernels.train.load import LoadedRun, load_run  # noqa: E402

__all__ = ["LoadedRun", "load_run", "missing_requirements"]
