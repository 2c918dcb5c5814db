"""A complete op that is no part of the library: the example of docs/adding_an_op.md.

``ops/`` and ``functional/`` lie here as they would lie in the package, which finds them where :func:`add` has put them.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def add() -> None:
    """Put the op into this process's library, as if its files lay in the package."""
    from sparc_kernels import functional, ops
    from sparc_kernels.ops._registration import register
    from sparc_kernels.ops._room import rooms

    ops.__path__.append(str(HERE / "ops"))
    functional.__path__.append(str(HERE / "functional"))
    rooms.cache_clear()
    register(rooms())
