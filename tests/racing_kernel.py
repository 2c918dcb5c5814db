# mypy: disable-error-code="no-untyped-def"
"""A kernel that Triton 3.6 compiles with a race for sm_90, for the test of ``tests/pipeline_races.py``.

``python -m tests.racing_kernel <squares> <stages> <described>`` prints the races as JSON. The loop is that of the pair
kernels before they were rewritten: S = T V^T and |t|^2 of one tile t, which on an H200 gave other bits in every run.
"""

import json
import sys

import triton
import triton.language as tl


@triton.jit
def product_and_squares_kernel(
    p_left,
    p_right,
    p_product,
    p_squares,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SQUARES: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """[M, N] = left [M, D] right [N, D]^T, and |left|^2 [M]."""
    o_m, o_n = tl.arange(0, M), tl.arange(0, N)
    b_product = tl.zeros([M, N], tl.float32)
    b_squares = tl.zeros([M], tl.float32)
    if DESCRIBED:
        d_left = tl.make_tensor_descriptor(p_left, [M, D], [D, 1], [M, BLOCK_D])
        d_right = tl.make_tensor_descriptor(p_right, [N, D], [D, 1], [N, BLOCK_D])
    for o_chunk in range(0, D, BLOCK_D):
        o_d = o_chunk + tl.arange(0, BLOCK_D)
        if DESCRIBED:
            b_left, b_right = d_left.load([0, o_chunk]), d_right.load([0, o_chunk])
        else:
            b_left = tl.load(p_left + o_m[:, None] * D + o_d[None, :])
            b_right = tl.load(p_right + o_n[:, None] * D + o_d[None, :])
        b_product = tl.dot(b_left, tl.trans(b_right), b_product)
        if SQUARES:
            b_squares += tl.sum(b_left.to(tl.float32) * b_left.to(tl.float32), axis=1)
    tl.store(p_product + o_m[:, None] * N + o_n[None, :], b_product)
    tl.store(p_squares + o_m, b_squares)


def main() -> None:
    """Compiles it for sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests.pipeline_races import races

    constants = {"D": 512, "M": 64, "N": 256, "BLOCK_D": 64, "SQUARES": bool(int(sys.argv[1]))}
    constants["DESCRIBED"] = bool(int(sys.argv[3]))
    pointers = {"p_left": "*bf16", "p_right": "*bf16", "p_product": "*fp32", "p_squares": "*fp32"}
    kernel = triton.compile(
        ASTSource(
            product_and_squares_kernel,
            pointers | dict.fromkeys(constants, "constexpr"),
            constants,
            {(index,): [["tt.divisibility", 16]] for index in range(len(pointers))},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": 8, "num_stages": int(sys.argv[2])},
    )
    print(json.dumps(races(kernel.asm["ttgir"])))


if __name__ == "__main__":
    main()
