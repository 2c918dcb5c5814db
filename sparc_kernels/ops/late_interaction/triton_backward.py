# mypy: disable-error-code="no-untyped-def"
"""The backward kernel: W of some images and some tokens, from the indices, as an operand of products.

W has at most one entry per (image, token) and one per (image, caption, patch), so rows could be gathered instead of
multiplied. On a GPU that loses: two gathered rows of D numbers for L + P tokens of a pair take more time from L2 than
matrix units need for L P D products, up to some hundred tokens on both sides (docs/performance_log.md).
"""

import triton
import triton.language as tl

from sparc_kernels.ops._captions.triton_rows import load_caption
from sparc_kernels.ops._triton.tiles import store_tile
from sparc_kernels.ops.late_interaction.triton_rows import weight


@triton.jit(do_not_specialize=["FIRST_TOKEN", "LAST_TOKEN", "FIRST_IMAGE", "N_IMAGES", "J", "L", "N"])
def one_hot_kernel(
    p_grad_image,  # [I, J] or None
    p_grad_text,  # [I, J] or None
    p_best_token,  # [I, J, P]
    p_best_patch,  # [I, J * L], packed [I, N]
    p_image_inverse,  # [I * P]
    p_text_inverse,  # [J * L]
    p_patch_counts,  # [I] int32 or None
    p_counts,  # [J] int32 or None
    p_offsets,  # [J + 1] int64 or None
    p_owners,  # [N] int32 or None: captions of packed tokens, negative for none
    p_power,  # [2] or None: a power of two in front of W
    p_matrix,  # [tokens, N_IMAGES * P], stride_w from row to row
    stride_w,
    FIRST_TOKEN, LAST_TOKEN,  # of the tokens, the first and the end of this launch
    FIRST_IMAGE, N_IMAGES,
    J, L, N,
    P: tl.constexpr,
    AVERAGE: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """W times both inverse norms, [tokens, patches of images]. A program makes some rows of one image, in TILES tiles:
    unrolled, or LLVM packs comparisons into words and takes them apart again."""
    GROUPS: tl.constexpr = (P + TILES * BLOCK_P - 1) // (TILES * BLOCK_P)
    pid = tl.program_id(0)
    group, image = pid % GROUPS, pid // GROUPS % N_IMAGES
    o_i = (FIRST_IMAGE + image).to(tl.int64)
    o_n = FIRST_TOKEN + pid // (GROUPS * N_IMAGES) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < LAST_TOKEN
    if p_owners is None:
        o_j = o_n // L
    else:
        o_j = tl.load(p_owners + o_n, mask=m_n, other=-1)
    m_own = m_n & (o_j >= 0)
    b_first, b_length = load_caption(p_counts, p_offsets, tl.where(m_own, o_j, 0), J, L, N)
    o_pair = o_i * J + tl.where(m_own, o_j, 0)
    b_factor = tl.load(p_text_inverse + o_n, mask=m_own, other=0.0)
    if p_power is not None:
        b_factor *= tl.load(p_power)
    if p_grad_text is not None:
        b_patch = tl.load(p_best_patch + o_i * N + o_n, mask=m_own, other=-1).to(tl.int32)
        b_of_text = tl.load(p_grad_text + o_pair, mask=m_own, other=0.0) * weight(b_length, AVERAGE) * b_factor
    if p_grad_image is not None:
        patches = tl.zeros([BLOCK_N], tl.int32) + P
        if p_patch_counts is not None:
            patches = tl.zeros([BLOCK_N], tl.int32) + tl.load(p_patch_counts + o_i)
        b_of_image = tl.load(p_grad_image + o_pair, mask=m_own, other=0.0) * weight(patches, AVERAGE) * b_factor
    for tile in tl.static_range(TILES):
        o_p = (group * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        b_matrix = tl.zeros([BLOCK_N, BLOCK_P], tl.float32)
        if p_grad_text is not None:
            b_matrix = tl.where(b_patch[:, None] == o_p[None, :], b_of_text[:, None], 0.0)
        if p_grad_image is not None:
            m_tile = m_own[:, None] & (o_p < P)[None, :]
            b_token = tl.load(p_best_token + (o_pair * P)[:, None] + o_p[None, :], mask=m_tile, other=-1).to(tl.int32)
            b_matrix += tl.where(b_token == (o_n - b_first)[:, None], b_of_image[:, None], 0.0)
        b_matrix *= tl.load(p_image_inverse + o_i * P + o_p, mask=o_p < P, other=0.0)[None, :]
        if p_power is not None:
            b_matrix = tl.minimum(tl.maximum(b_matrix, -65504.0), 65504.0)
        store_tile(p_matrix + image * P, b_matrix, o_n - FIRST_TOKEN, o_p, m_n, P, stride_w, UPCAST)
