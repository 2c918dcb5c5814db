"""A new op is new files only: all that goes through all ops sees the toy op, and nothing shared knows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOY = "paired_dot"


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_shared_tests_take_the_toy_op() -> None:
    """opcheck, fullgraph compilation, flop counts, vmap and the rest, of a room that no list names."""
    files = ("tests/test_rooms.py", "tests/test_dispatch.py", "tests/toy_op/truth.py")
    out = _run(
        "-m", "pytest", "-p", "tests.toy_op.plugin", "-p", "no:cacheprovider", "-v", "-k", f"{TOY} or truth", *files
    )
    passed = set(re.findall(rf"::(test_\w+)\[[^\]]*(?:{TOY}|\d)[^\]]*\] PASSED", out))
    assert passed >= {
        "test_a_room_is_whole",
        "test_against_truth",
        "test_auto_takes_cuda_then_triton_on_a_gpu",
        "test_backward_ops_do_not_pass_for_constants",
        "test_compile_fullgraph",
        "test_each_room_says_what_serves_it",
        "test_eager_is_the_reference",
        "test_fake_tensors",
        "test_flops_are_counted",
        "test_func_grad",
        "test_gradcheck",
        "test_nothing_is_saved_without_grad",
        "test_opcheck",
        "test_second_derivative_raises",
        "test_vmap",
    }, out
    assert "FAILED" not in out


def test_the_doctor_sees_the_toy_op() -> None:
    code = f"""
from tests import toy_op
toy_op.add()
import sparc_kernels as sk
from sparc_kernels.__main__ import main
assert sk.available_backends({TOY!r})["eager"] is None
main()
"""
    out = _run("-c", "import sys; sys.argv[1:] = []\n" + code)
    assert f"backends of {TOY}:" in out
    assert f"{TOY} has no CUDA kernel" in out


def test_nothing_else_knows_the_toy_op() -> None:
    knows = [
        str(path.relative_to(ROOT))
        for folder in ("sparc_kernels", "tests", "tools", "benchmarks", "csrc")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh") and TOY in path.read_text()
    ]
    assert [path for path in knows if not path.startswith("tests/toy_op/")] == ["tests/test_house.py"]
