"""NumPy arrays in, NumPy arrays out: which patch every token looks at, and the embedding it finds there.

    python examples/numpy_arrays.py

Whatever else shares its memory through DLPack (CuPy, ...) does as well. There is no gradient for arrays.
"""

import numpy as np

from sparc_kernels import alignment_weights, language_grouped_embeddings


def make() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patch embeddings [B, P, D], token embeddings [B, L, D], patch mask [B, P]: True = valid."""
    random = np.random.default_rng(0)
    patches = random.standard_normal((2, 49, 64), dtype=np.float32)
    looked_at = np.array([[3, 17, 40], [0, 8, 29]])
    noise = random.standard_normal((2, 3, 64), dtype=np.float32)
    tokens = np.take_along_axis(patches, looked_at[..., None], axis=1) + 0.3 * noise
    return patches, tokens, np.arange(49) < [[49], [30]]


def main() -> np.ndarray:
    patches, tokens, mask = make()
    weights = alignment_weights(patches, tokens, patch_mask=mask)  # [B, L, P], rows sum to 1
    grouped = language_grouped_embeddings(patches, tokens, patch_mask=mask)  # [B, L, D], the patches' weighted mean
    assert np.allclose(grouped, weights @ np.where(mask[..., None], patches, 0), atol=1e-4)
    strongest = weights.argmax(-1)
    print(f"every token's strongest patch: {strongest.tolist()}")
    print(f"share of patches that take part: {(weights > 0).mean(where=mask[:, None]):.2f}")
    return strongest


if __name__ == "__main__":
    main()
