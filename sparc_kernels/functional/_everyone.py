"""Statistics of a similarity matrix whose rows and columns are spread over ranks.

One-sided: each rank has its rows and meets the columns of all, so that its block of the matrix serves both directions.
Columns are gathered, and what a rank finds of a column goes to the rank that the column belongs to, which merges the
ranks' shares in their order; or columns go around a ring (``_ring.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparc_kernels.distributed import Fact, Ranks, Spread, spread_over, spread_without_exchange
from sparc_kernels.functional._candidates import Above, Exclusion, Ids, Pairs, Scope, exclusions

EXCHANGES = ("gather", "ring")
_OTHER = -2  # the id of every row, where ids do nothing but name padding
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Everyone(NamedTuple):
    """The columns of all ranks."""

    cols: Tensor
    """[positions, D], differentiable in this rank's columns; in a ring [capacity, D], this rank's own."""
    spread: Spread
    ring: bool = False

    def own(self, of_columns: Tensor) -> Tensor:
        """[here, ...] of what there is one of per row of ``cols``."""
        return of_columns[: self.spread.here] if self.ring else self.spread.own(of_columns)


def dtype_fact(x: Tensor) -> Fact:
    return str(x.dtype).removeprefix("torch."), DTYPES


def exclusion_facts(exclude: Exclusion | Sequence[Exclusion] | None) -> dict[str, Fact]:
    """Which kinds are given."""
    kinds = {type(each) for each in exclusions(exclude)}
    return {f"exclude {kind.__name__}": kind in kinds for kind in (Ids, Pairs, Above)}


def everyone_of(name: str, cols: Tensor, facts: Mapping[str, Fact], ranks: Ranks, ring: bool = False) -> Everyone:
    """The columns of all ranks, who agree on facts, width, dtype, exchange and on whether a gradient is wanted."""
    own: dict[str, Fact] = {
        f"{name} width": cols.shape[1],
        f"{name} dtype": dtype_fact(cols),
        f"{name} requires_grad": cols.requires_grad,
        "exchange": (EXCHANGES[ring], EXCHANGES),
    }
    if ring:
        spread = spread_without_exchange(cols, {**own, **facts}, ranks)
        return Everyone(spread.padded(cols, 0), spread, True)
    return Everyone(*spread_over(cols, {**own, **facts}, ranks))


def scope_of_everyone(scope: Scope, everyone: Everyone, rows: Tensor, by_position: bool = False) -> Scope:
    """Who takes part in the rows of this rank and the columns of all, where indices count the columns of all through.

    Without ids they name padding alone or, ``by_position``, row i of a rank and its column i. Of columns ids are those
    of ``everyone.cols``: in a ring the others' travel with them.
    """
    spread = everyone.spread
    there = spread.own_there() if everyone.ring else spread.there()
    known: dict[str, Tensor] = {}
    if by_position:
        place = torch.arange(rows.shape[0], device=rows.device)
        named = place + spread.ranks.rank * spread.capacity
        known["row_ids"] = named.masked_fill(place >= spread.here, _OTHER)
        first = spread.ranks.rank * spread.capacity if everyone.ring else 0
        known["col_ids"] = torch.arange(first, first + there.shape[0], device=rows.device).masked_fill(~there, -1)
    elif scope.row_ids is None or scope.col_ids is None:
        known["row_ids"] = torch.full(rows.shape[:1], _OTHER, dtype=torch.int64, device=rows.device)
        known["col_ids"] = torch.where(there, 0, -1)
    elif everyone.ring:
        known["col_ids"] = spread.padded(scope.col_ids, -1).masked_fill(~there, -1)
    else:
        known["col_ids"] = spread.everyone(scope.col_ids, -1)
    if scope.excluded_indices is not None:
        known["excluded_indices"] = spread.positions_of(scope.excluded_indices)
    if scope.guide_cols is not None:
        known["guide_cols"] = spread.everyone(scope.guide_cols)
    return scope._replace(**known)


def merged_logsumexp(parts: Tensor) -> Tensor:
    """[n] of what W ranks have, [W, n], in the order of the ranks; -inf, with gradient 0, where all are."""
    top = parts.detach().amax(0)
    top = top.masked_fill(top == -torch.inf, 0.0)
    total = (parts - top).exp().sum(0)
    none = total == 0
    return (top + total.masked_fill(none, 1.0).log()).masked_fill(none, -torch.inf)
