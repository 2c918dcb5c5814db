"""The cost model of the compiled code: what it runs is right, what it counts is what the emulation counts, what it only
outlines counts as much."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from sparc_kernels import _native
from sparc_kernels.ops.fine_grained.reference import fine_grained_reference
from sparc_kernels.ops.grouping.reference import grouped_embeddings_reference
from tests.emulation.host import build
from tests.emulation.host.backend import Device
from tests.emulation.host.run import server
from tools.sass_model import disassembly, launches, model
from tools.sass_model.chips import CHIPS, chip_of
from tools.sass_model.launches import Launch, Shape


def missing() -> str | None:
    if not disassembly.LIBRARY.exists():
        return "the CUDA half is not built"
    if disassembly.tool() is None:
        return "needs cuobjdump"
    built = set(str(_native.build_info()["cuda_architectures"]).split(","))
    if not {chip.architecture for chip in CHIPS} <= built:
        return "the library was built for some of the architectures only (SPARC_CUDA_ARCHITECTURES)"
    return build.missing()


built = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SMALL = Shape(tokens=20, patches=70, channels=64)
TILED = [path for path in launches.PATHS if path.startswith("tiled")]
RAGGED = Shape(tokens=40, patches=90, channels=200, valid_tokens=18, valid_patches=67)  # the last chunk is not full
LITTLE = Shape(tokens=9, patches=30, channels=96)  # the instance for 64 patches


def run(op: str, backward: bool, shape: Shape, architecture: str, path: str = "pair") -> Launch:
    return launches.run(op, backward, shape, architecture, chip_of(architecture), path)


# What is run is right.


def tensors(launch: Launch) -> dict[str, torch.Tensor]:
    """All tensors of a launch, 16-bit ones widened."""
    found = {}
    for name in launch.memory.offsets.keys() - {"scratch"}:
        array = launch.memory.tensor(name)
        found[name] = torch.from_numpy(launches.widened(array) if array.dtype == np.uint16 else array.copy())
    return found


def reference(launch: Launch, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the launch should have written, in float32 of the same rounded inputs."""
    patches, tokens = given["image_embeds"].requires_grad_(), given["text_embeds"].requires_grad_()
    masks = given.get("text_mask"), given.get("image_mask")
    if launch.op == "fine_grained":
        result = fine_grained_reference(patches, tokens, *masks, given["logit_scale"][0])
        name, upstream = "token_loss", given.get("grad_token_loss")
    else:
        result = grouped_embeddings_reference(patches, tokens, masks[1])
        name, upstream = "output", given.get("grad")
    if not launch.backward:
        return {name: result.detach()}
    result.backward(upstream)
    assert patches.grad is not None
    assert tokens.grad is not None
    return {"grad_patches": patches.grad, "grad_tokens": tokens.grad}


ARCHITECTURES = ["sm_90", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_100", "sm_120"))]


@built
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("op", launches.OPS)
def test_results_are_those_of_the_reference(op: str, backward: bool, architecture: str) -> None:
    """Every instruction that was counted meant what the tool takes it for."""
    check_results(run(op, backward, RAGGED, architecture))


@built
@pytest.mark.slow
@pytest.mark.parametrize(
    "op, path, architecture",
    # docs/cuda_resources.md gives the tiled path on sm_90; of the two ops fine_grained has more to do
    [
        *((op, path, "sm_90") for op in launches.OPS for path in TILED),
        *zip(["fine_grained"] * 3, TILED, ("sm_80", "sm_100", "sm_120")),
        ("fine_grained", "tiled, bf16", "sm_100"),
    ],
)
def test_results_of_the_tiled_path(op: str, path: str, architecture: str) -> None:
    for backward in (False, True):
        check_results(run(op, backward, SMALL, architecture, path))


def check_results(launch: Launch) -> None:
    given = tensors(launch)
    for name, expected in reference(launch, given).items():
        error = (given[name] - expected).norm() / expected.norm()
        # bfloat16 rounds to 0.4 %, U and the results
        assert error < (1e-4 if "32" in launch.path else 0.02), f"{name}: {error}"


# What is counted is what the emulation counts.


def packed(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    strides = [stride // array.itemsize for stride in array.strides]
    return {"buffer": array.reshape(-1), "shape": list(array.shape), "strides": strides}


def emulated_counts(launch: Launch) -> dict[str, int]:
    """The same pair by the same kernel, compiled by g++ and run in the emulation."""
    arrays = {
        name: np.ascontiguousarray(launch.memory.tensor(name)) for name in launch.memory.offsets if name != "scratch"
    }
    names = {"patch_embeds": "image_embeds", "token_embeds": "text_embeds"}
    names |= {"patch_mask": "image_mask", "token_mask": "text_mask"}
    given: dict[str, Any] = {name: packed(arrays[of]) for name, of in names.items() if of in arrays}
    given |= {name: None for name in names if name not in given}
    given |= {"similarity_threshold": None, "pool_patches": False, "pool_tokens": False}
    given |= {"need_patches": True, "need_tokens": True, "grad_pooled_patches": None, "grad_pooled_tokens": None}
    for name, of in (("logit_scale", "logit_scale"), ("grad_token_loss",) * 2, ("stats",) * 2):
        if of in arrays:
            given[name] = packed(arrays[of])
    if "logit_scale" in given:
        given["logit_scale"] |= {"shape": [], "strides": []}
    if "grad" in arrays:
        given["grad_embeddings"] = packed(arrays["grad"])
    emulated = server(build.CHECKOUT / "tests" / "ops" / launch.op / "emulated.cpp")
    name = {"fine_grained": "fine_grained", "grouping": "grouped_embeddings"}[launch.op]
    emulated.call("take_counts").unwrap()
    products = {"pair": "bf16", "tiled, bf16": "bf16", "tiled, tf32 x 3": "tf32", "tiled, float32": "float32"}
    pair_path, shared_bytes = launch.path == "pair", chip_of("sm_90").shared_bytes
    device = Device(products[launch.path], pair_path=pair_path, shared_bytes=shared_bytes, grid=1)
    emulated.call(f"{name}_{'backward' if launch.backward else 'forward'}", given=given, device=asdict(device)).unwrap()
    counts: dict[str, int] = emulated.call("take_counts").unwrap()
    return counts


@built
@pytest.mark.parametrize("shape", [SMALL, RAGGED, LITTLE], ids=["small", "ragged", "little"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("op", launches.OPS)
def test_counts_are_those_of_the_emulation(op: str, backward: bool, shape: Shape) -> None:
    launch = run(op, backward, shape, "sm_90")
    check_counts(launch)
    model.check(launch)


@built
@pytest.mark.slow
@pytest.mark.parametrize("path", TILED)
@pytest.mark.parametrize("op", launches.OPS)
def test_counts_of_the_tiled_path(op: str, path: str) -> None:
    for backward in (False, True):
        check_counts(run(op, backward, RAGGED, "sm_90", path))


def check_counts(launch: Launch) -> None:
    trace, expected = launch.trace, emulated_counts(launch)
    found = {
        "multiply_adds": trace.count("HMMA"),
        "matrix_loads": trace.count("LDSM"),
        "copies": sum(trace.lanes.values()),
        "shuffles": trace.count("SHFL", but="IDX"),  # same_in_warp: the compiler asks once
        "block_barriers": trace.block_barriers,
    }
    assert found == {name: expected[name] for name in found}


# What has changed is noticed.


@built
def test_a_product_that_is_gone_is_noticed() -> None:
    launch = run("fine_grained", False, SMALL, "sm_90")
    trace = launch.trace
    idle = trace.idle.copy()
    place = next(p for p, it in enumerate(trace.instructions) if it.opcode == "HMMA" and trace.done[p])
    idle[place] = trace.issues[place]
    with pytest.raises(model.ModelError, match="matrix instructions were expected"):
        model.check(replace(launch, trace=replace(trace, idle=idle)))


# The table.


def tool_run(*arguments: str) -> str:
    """In a process of its own: under test Triton's interpreter has taken the place of its compiler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=build.CHECKOUT)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
