"""The SPARC loss on the towers of open_clip, which hand out patches and tokens once ``output_tokens`` is set.

    pip install open_clip_torch && python examples/train_open_clip.py

Random weights at a small size. For yours: ``open_clip.get_model_config("ViT-B-32")``, ``output_tokens`` in both halves
of it, ``CustomTextCLIP(**config)`` and ``open_clip.load_checkpoint``.
"""

import open_clip
import torch
from torch import Tensor, nn

from sparc_kernels import sparc_loss

VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32, "output_tokens": True}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2, "output_tokens": True}
CAPTIONS = ["a red cube", "two blue spheres on a table", "a green cone behind a wall!", "yellow"]


def make() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = open_clip.CustomTextCLIP(32, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT))
    return model, (torch.randn(4, 3, 32, 32), open_clip.SimpleTokenizer(context_length=16)(CAPTIONS))


def words_of(ids: Tensor) -> Tensor:
    """[B, L], True = a token of a word: between the start and the end of text, whose id is the highest."""
    place = torch.arange(ids.shape[1], device=ids.device)
    return (place > 0) & (place < ids.argmax(1, keepdim=True))


def loss_of(model: nn.Module, images: Tensor, ids: Tensor) -> Tensor:
    image_embeds, patches = model.visual(images)  # [B, D], projected; [B, P, width], normed, not projected, without CLS
    text_embeds, tokens = model.text(ids)
    pooled = {"image_embeds": image_embeds, "text_embeds": text_embeds}  # else: means of patches and words
    patches, tokens = patches @ model.visual.proj, tokens @ model.text.text_projection
    scale = model.logit_scale.exp()  # the parameter holds the logarithm
    return sparc_loss(patches, tokens, words_of(ids), logit_scale=scale, **pooled)


def main(steps: int = 5) -> list[float]:
    torch.manual_seed(0)
    model, batch = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, *batch)
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(max=4.6052)  # log(100), as in CLIP
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
