"""The emulator itself: correct kernels run and agree with numpy, every planted fault is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.host import build
from tests.emulation.host.run import Result, server

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

Array = np.ndarray[Any, Any]

TYPES = ("bf16", "f16", "tf32")
SHAPES = {"bf16": (100, 80, 72), "f16": (64, 96, 32), "tf32": (70, 76, 36)}  # rows, inner, columns
PRODUCT_FAULTS = {
    "no wait": "is under way",
    "no arrival barrier": "race",
    "no reuse barrier": "race",
}


def apart(collective: str) -> str:
    """What the message says of a collective that lanes of a warp reach at two lines."""
    place = rf"{collective} at fault_kernels\.cuh:"
    return rf"{place}(?P<line>\d+) while lanes of its warp wait at {place}(?!(?P=line)\b)\d+ \(divergent"


# What the message says of each kernel of fault_kernels.cuh.
FAULTS = {
    "missing_block_barrier": "race|never written",
    "write_after_read": "race",
    "one_writes_what_all_read": "thread 20 .*race",
    "write_after_read_in_warp": "race",
    "missing_warp_barrier": "race|never written",
    "warp_barrier_across_warps": "race|never written",
    "shared_out_of_bounds": "thread 63 .* writes shared memory offset 1024: out of bounds",
    "global_out_of_bounds": "AddressSanitizer: heap-buffer-overflow",
    "unwritten_read": "thread 5 .* reads shared memory bytes 20..23: byte 20 was never written",
    "divergent_barrier": "divergent barrier",
    "divergent_collective": "divergent collective",
    "mixed_collectives": "(shuffle|ballot).*divergent collective",
    "collective_against_barrier": "warp_barrier.*divergent collective",
    "shuffle_in_branches": apart("shuffle_xor"),
    "shuffle_in_ragged_loop": apart("shuffle"),
    "collectives_of_a_helper": apart("shuffle_xor"),
    "same_in_warp_in_branch": apart("warp_barrier"),
    "ballot_in_branches": apart("ballot"),
    "barrier_in_branches": apart("block_barrier"),
    "misaligned_load_matrices": "lane 9.* misaligned",
    "unordered_load_matrices": "race|never written",
    "misaligned_copy": "thread 40 .* misaligned",
    "abandoned_copy": "ends with 1 copies",
    "long_copy": "20 bytes, not 0 to 16",
    "copy_out_of_bounds": "source is out of bounds",
    "wait_for_the_wrong_group": "is under way",
    "scratch_race": "scratch 0 .*(race|never written)",
    "scratch_changed_under_way": "source in scratch was changed",
    "copy_from_shared": "not global memory",
    "scratch_of_another_block": "scratch 0 .* another block",
    "scratch_out_of_bounds": "scratch 0 offset .* out of bounds",
    "plain_read_of_shared": "AddressSanitizer: use-after-poison",
    "integer_overflow": "runtime error: signed integer overflow",
}
SEEDS = (0, 1, 2)
BORDERS = (65519.996, 65520, 65536, 3.4e38, 1e-45, 1e-40, 2**-25)  # of float16 and of float32


def bf16_of(values: Array) -> Array:
    """Bits of float32 numbers, rounded to nearest even, by the definition: the nearer of the two neighbours."""
    bits = values.view(np.uint32)
    low = (bits >> 16).astype(np.uint16)
    rest = bits & 0xFFFF
    up = (rest > 0x8000) | ((rest == 0x8000) & (low & 1 == 1))
    return np.where(np.isnan(values), 0x7FFF, low + up).astype(np.uint16)


def float_of_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def tf32_of(values: Array) -> Array:
    """float32 numbers rounded to 10 bits of mantissa, ties away from zero."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    scaled = mantissa * 2**11
    return np.ldexp(np.copysign(np.floor(np.abs(scaled) + 0.5), scaled), exponent - 11).astype(np.float32)


def operand(type_: str, rng: np.random.Generator, *shape: int) -> tuple[Array, Array]:
    """Random numbers of a type as the kernels take them, and their values."""
    values = rng.standard_normal(shape).astype(np.float32)
    if type_ == "bf16":
        bits = bf16_of(values)
        return bits, float_of_bf16(bits)
    if type_ == "f16":
        half = values.astype(np.float16)
        return half, half.astype(np.float32)
    return values, (values.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32)  # what the instruction sees


def hard_floats() -> Array:
    """Numbers at which a conversion to 16 bits may go wrong: ties, borders, subnormals, infinities, NaN."""
    halves = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        middles = (halves[:-1] + halves[1:]) / 2
    borders = np.concatenate([halves, middles, np.array(BORDERS, np.float32)])
    near = np.concatenate([borders, np.nextafter(borders, np.float32(0)), np.nextafter(borders, np.float32(np.inf))])
    bits = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    values = np.concatenate([near, -near, bits.view(np.float32), ties.view(np.float32)])
    return np.concatenate([values, np.array([0, -0.0, np.inf, -np.inf, np.nan], np.float32)])


def product_arguments(type_: str) -> tuple[dict[str, Any], Array]:
    rng = np.random.default_rng(TYPES.index(type_))
    rows, inner, columns = SHAPES[type_]
    a, a_values = operand(type_, rng, rows, inner)
    b, b_values = operand(type_, rng, inner, columns)
    exact = a_values.astype(np.float64) @ b_values.astype(np.float64)
    return {"a": a, "b": b, "type": type_}, exact


def fragments(type_: str) -> tuple[dict[str, Any], Array, Array, Array]:
    """Operands of a matrix instruction by lane, after the tables of the PTX ISA, and whole: a, b, c."""
    rng = np.random.default_rng(5)
    lane = np.arange(32)
    group, member = lane // 4, lane % 4
    c = rng.standard_normal((16, 8)).astype(np.float32)
    by_lane_c = np.stack([c[group + 8 * (i // 2), 2 * member + i % 2] for i in range(4)], axis=1)
    if type_ == "tf32":
        a, a_values = operand(type_, rng, 16, 8)
        b, b_values = operand(type_, rng, 8, 8)
        by_lane_a = np.stack([a[group + 8 * (i % 2), member + 4 * (i // 2)] for i in range(4)], axis=1)
        by_lane_b = np.stack([b[member + 4 * i, group] for i in range(2)], axis=1)
    else:
        a, a_values = operand(type_, rng, 16, 16)
        b, b_values = operand(type_, rng, 16, 8)
        # Element i of a lane's eight (or four): register i // 2, its lower half first.
        by_lane_a = np.stack([a[group + 8 * (i // 2 % 2), 2 * member + i % 2 + 8 * (i // 4)] for i in range(8)], axis=1)
        by_lane_b = np.stack([b[2 * member + i % 2 + 8 * (i // 2), group] for i in range(4)], axis=1)
    arguments = {
        "a": np.ascontiguousarray(by_lane_a).view(np.uint32),
        "b": np.ascontiguousarray(by_lane_b).view(np.uint32),
        "c": by_lane_c,
        "type": type_,
    }
    return arguments, a_values, b_values, c


def call(function: str, **arguments: Any) -> Result:
    return server(Path(__file__).with_name("emulator_kernels.cpp")).call(function, **arguments)


def product(type_: str, fault: str = "", seed: int = 0) -> Result:
    return call("product", **product_arguments(type_)[0], fault=fault, seed=seed)


def fault_kernel(name: str, faulty: bool, seed: int = 0) -> Result:
    return call("run_fault_kernel", name=name, in_array=np.arange(256, dtype=np.float32), faulty=faulty, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("type_", TYPES)
def test_product_agrees_with_numpy(type_: str, seed: int) -> None:
    _, exact = product_arguments(type_)
    np.testing.assert_allclose(product(type_, seed=seed).unwrap(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fault", PRODUCT_FAULTS)
@pytest.mark.parametrize("type_", TYPES)
def test_fault_in_product_is_caught(type_: str, fault: str) -> None:
    error = product(type_, fault).error
    assert error is not None
    assert PRODUCT_FAULTS[fault] in error


@pytest.mark.parametrize("type_", ["bf16", "f16"])
def test_wrong_fragments_give_wrong_numbers(type_: str) -> None:
    _, exact = product_arguments(type_)
    assert np.abs(product(type_, "plain b").unwrap() - exact).max() > 1


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str) -> None:
    error = fault_kernel(name, True).error
    assert error is not None
    assert re.search(FAULTS[name], error), error


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_corrected_twin_passes(name: str, seed: int) -> None:
    out = fault_kernel(name, False, seed).unwrap()
    assert not np.isnan(out).any()
    thread = np.arange(64)
    if name in ("missing_block_barrier", "write_after_read"):
        np.testing.assert_array_equal(out, np.tile(63 - thread, 2))
    if name == "missing_warp_barrier":
        np.testing.assert_array_equal(out, np.tile(thread ^ 31, 2))
    if name == "write_after_read_in_warp":
        np.testing.assert_array_equal(out, np.tile((thread + 31) % 32, 2))
    if name == "scratch_race":
        np.testing.assert_array_equal(out, np.tile(4 * (thread ^ 33), 2))
    if name == "long_copy":
        np.testing.assert_array_equal(out, 0)  # 12 bytes of 16


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_laid_over_lanes(transposed: bool) -> None:
    tiles = np.arange(256, dtype=np.uint32).reshape(4, 8, 8)
    if transposed:
        tiles = tiles.transpose(0, 2, 1)
    lane = np.arange(32)
    expected = [tile[lane // 4, 2 * (lane % 4)] | tile[lane // 4, 2 * (lane % 4) + 1] << 16 for tile in tiles]
    rows = np.arange(256, dtype=np.uint16).reshape(32, 8)
    got = call("matrices_of", rows=rows, transposed=transposed).unwrap()
    np.testing.assert_array_equal(got, np.stack(expected, axis=1))


@pytest.mark.parametrize("type_", TYPES)
def test_fragments_are_laid_over_lanes(type_: str) -> None:
    arguments, a, b, c = fragments(type_)
    exact = c + a.astype(np.float64) @ b.astype(np.float64)
    lane = np.arange(32)
    expected = [exact[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] for i in range(4)]
    got = call("multiply_fragments", **arguments).unwrap()
    np.testing.assert_allclose(got, np.stack(expected, axis=1), rtol=1e-6, atol=1e-6)


def test_exchanges() -> None:
    values = np.arange(32, dtype=np.float32) - 10
    got = call("exchanges", values=values, mask=5, source=13).unwrap()
    np.testing.assert_array_equal(got[:, 0], values[np.arange(32) ^ 5])
    np.testing.assert_array_equal(got[:, 1], values[13])
    np.testing.assert_array_equal(got[:, 2], 21)


def test_order_of_threads_is_drawn_from_the_seed() -> None:
    first, again, other = (call("order_of_threads", seed=seed).unwrap() for seed in (0, 0, 1))
    np.testing.assert_array_equal(np.sort(first), np.arange(64))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != np.arange(64)).any()


def test_shared_memory_holds_all_types() -> None:
    assert call("holds_all_types").unwrap() is True


def test_races_are_those_of_a_detector_that_remembers_everything() -> None:
    accesses, races, disagreements = call("compare_with_oracle", seed=0, rounds=20000).unwrap()
    assert accesses > 20000
    assert races > 5000
    assert disagreements == 0


def test_no_answer_in_time_is_an_error() -> None:
    error = call("compare_with_oracle", seed=0, rounds=10**8, timeout=0.5).error
    assert error is not None
    assert "killed: no answer in time" in error


def test_operators_of_watched_memory() -> None:
    assert call("operators").unwrap().tolist() == [21, 20, 50, 50, 48, 50, 7, 1]


def converted(direction: str, type_: str, array: Array) -> Array:
    return call(direction, array=array, type=type_).unwrap()


def test_float16_conversions_agree_with_numpy() -> None:
    values = hard_floats()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    expected = np.where(np.isnan(values), 0x7FFF, expected)
    np.testing.assert_array_equal(converted("from_float", "f16", values), expected)
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(converted("to_float", "f16", every), every.view(np.float16).astype(np.float32))


def test_bfloat16_conversions_are_exact() -> None:
    values = hard_floats()
    np.testing.assert_array_equal(converted("from_float", "bf16", values), bf16_of(values))
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(converted("to_float", "bf16", every), float_of_bf16(every))


def test_tf32_conversion_rounds_ties_away() -> None:
    values = hard_floats()
    normal = np.abs(values) >= np.finfo(np.float32).tiny
    values = np.where(normal & (np.abs(values) < 1e38), values, np.float32(0))
    got = converted("from_float", "tf32", values)
    chosen = values != 0
    np.testing.assert_array_equal(got[chosen].view(np.float32), tf32_of(values[chosen]))
    assert (got & 0x1FFF == 0)[chosen].all()
