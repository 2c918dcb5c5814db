"""What instructions do that look at other lanes of a warp."""

from __future__ import annotations

import numpy as np

from tools.sass_model.disassembly import TRUE, Instruction
from tools.sass_model.memory import LANES, Lanes
from tools.sass_model.operands import Action, State, converged, integer, predicate, setter


def vote(state: State, it: Instruction) -> Action:
    result, source = it.operands[0], predicate(state, it.operands[-1])
    put = setter(state, result, it.uniform)
    weights = np.uint32(1) << np.arange(LANES, dtype=np.uint32)

    def act(lanes: Lanes) -> None:
        asked = (source() & lanes).reshape(-1, LANES)
        if result.kind == "register":
            put(np.repeat((asked * weights).sum(axis=1, dtype=np.uint32), LANES), lanes)
        elif it.has("ANY"):
            put(np.repeat(asked.any(axis=1), LANES), lanes)
        elif it.has("ALL"):
            put(np.repeat((asked | ~lanes.reshape(-1, LANES)).all(axis=1), LANES), lanes)
        else:
            raise NotImplementedError(it.text)

    if result.kind == "register" and it.operands[1].index != TRUE:
        raise ValueError("a second result")
    return act


def shuffle(state: State, it: Instruction) -> Action:
    flag, put = setter(state, it.operands[0]), setter(state, it.operands[1])
    value, by = integer(state, it.operands[2]), integer(state, it.operands[3])
    lane = np.arange(state.threads, dtype=np.uint32)
    if not it.has("BFLY", "IDX"):
        raise ValueError("form of SHFL")

    def act(lanes: Lanes) -> None:
        converged(it, lanes)
        source = lane ^ by() if it.has("BFLY") else lane // LANES * LANES + by() % np.uint32(LANES)
        put(value()[source], lanes)
        flag(np.ones(state.threads, bool), lanes)

    return act


def elect(state: State, it: Instruction) -> Action:
    """ELECT: true in the first of the lanes that are there."""
    put = setter(state, it.operands[0])

    def act(lanes: Lanes) -> None:
        warps = lanes.reshape(-1, LANES)
        put((np.arange(LANES) == warps.argmax(axis=1)[:, None]).reshape(-1), lanes)

    return act


def reduce(state: State, it: Instruction) -> Action:
    """REDUX.SUM: over the lanes of a warp that are there."""
    put, get = setter(state, it.operands[0], True), integer(state, it.operands[1])
    if not it.has("SUM"):
        raise ValueError("form of REDUX")

    def act(lanes: Lanes) -> None:
        sums = np.where(lanes, get(), np.uint32(0)).reshape(-1, LANES).sum(axis=1, dtype=np.uint32)
        put(np.repeat(sums, LANES), lanes)

    return act
