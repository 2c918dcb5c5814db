"""Misuse that every function of the family answers alike."""

from __future__ import annotations

from typing import Any

import torch

V, T = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
PACKED = torch.randn(9, 8)
OFFSETS = torch.tensor([0, 2, 5, 9])
META = "meta"  # a second device that every machine has

SHARED: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("a list", TypeError, r"image_tokens must be a torch.Tensor of shape \[B, P, D\], got list", {"image_tokens": [1.0]}),
    ("images of rank 2", ValueError, r"image_tokens must have shape \[B, P, D\], got 2 dimensions: \[4, 8\]", {"image_tokens": V[0]}),
    ("texts of rank 2", ValueError, r"text_tokens must have shape \[B, L, D\], got 2 dimensions: \[9, 8\]", {"text_tokens": PACKED}),
    ("packed of rank 3", ValueError, r"text_tokens must have shape \[N, D\], got 3 dimensions", {"cu_seqlens": OFFSETS}),
    ("integers", TypeError, r"image_tokens must be a floating tensor", {"image_tokens": V.long()}),
    ("no patch", ValueError, r"image_tokens of shape \[B, P, D\] may be empty in B only, got \[3, 0, 8\]", {"image_tokens": V[:, :0]}),
    ("packed of no channel", ValueError, r"text_tokens of shape \[N, D\] may be empty in N only, got \[9, 0\]", {"text_tokens": PACKED[:, :0], "cu_seqlens": OFFSETS}),
    ("other width", ValueError, r"text_tokens and image_tokens must have the same D, got D=7", {"text_tokens": T[..., :7]}),
    ("other dtype", TypeError, r"text_tokens and image_tokens must have the same dtype", {"text_tokens": T.double()}),
    ("elsewhere", ValueError, r"text_tokens must be on the device of image_tokens, got meta and cpu", {"text_tokens": T.to(META)}),
    ("float mask", TypeError, r"image_mask must have dtype torch.bool", {"image_mask": torch.ones(3, 4)}),
    ("mask of another shape", ValueError, r"text_mask must have shape \[3, 5\], the first two dimensions of text_tokens, got \[3, 4\]", {"text_mask": torch.ones(3, 4, dtype=torch.bool)}),
    ("mask of packed", ValueError, r"text_mask must be None where cu_seqlens is given", {"text_tokens": PACKED, "cu_seqlens": OFFSETS, "text_mask": torch.ones(3, 5, dtype=torch.bool)}),
    ("a list of offsets", TypeError, r"cu_seqlens must be an integer torch.Tensor or None, got list", {"text_tokens": PACKED, "cu_seqlens": [0, 9]}),
    ("float offsets", TypeError, r"cu_seqlens must have dtype torch.int32 or torch.int64, got torch.float32", {"text_tokens": PACKED, "cu_seqlens": OFFSETS.float()}),
    ("no offset", ValueError, r"cu_seqlens must have shape \[captions \+ 1\], got \[0\]", {"text_tokens": PACKED, "cu_seqlens": OFFSETS[:0]}),
    ("offsets elsewhere", ValueError, r"cu_seqlens must be on the device of text_tokens, got meta and cpu", {"text_tokens": PACKED, "cu_seqlens": OFFSETS.to(META)}),
    ("offsets too short", ValueError, r"cu_seqlens must rise from 0 to 9, the number of tokens, got 0 to 5", {"text_tokens": PACKED, "cu_seqlens": OFFSETS[:3]}),
    ("offsets fall", ValueError, r"cu_seqlens must rise .* falling in between", {"text_tokens": PACKED, "cu_seqlens": torch.tensor([0, 5, 2, 9])}),
    ("longest without offsets", ValueError, r"max_seqlen must be None without cu_seqlens, got 5", {"max_seqlen": 5}),
    ("longest too small", ValueError, r"max_seqlen must be at least 4, the longest caption of cu_seqlens, got 3", {"text_tokens": PACKED, "cu_seqlens": OFFSETS, "max_seqlen": 3}),
    ("longest no number", TypeError, r"max_seqlen must be an integer or None, got float", {"text_tokens": PACKED, "cu_seqlens": OFFSETS, "max_seqlen": 4.0}),
    ("longest 0", ValueError, r"max_seqlen must be at least 1, got 0", {"text_tokens": PACKED, "cu_seqlens": OFFSETS, "max_seqlen": 0}),
    ("no such group", ValueError, r"group must be 'world', a ProcessGroup or None, got 'all'", {"group": "all"}),
    ("a group of nobody", ValueError, r"group='world' needs a process group", {"group": "world"}),
    ("a backend", ValueError, r"backend must be one of", {"backend": "cuda13"}),
]  # fmt: skip
