"""The SPARC loss on ``transformers.CLIPModel``: its projections, applied to every patch and every word.

    pip install transformers && python examples/train_transformers_clip.py

Random weights at a small size; ``CLIPModel.from_pretrained(...)`` and its processor (``padding=True``) fit in.
"""

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from sparc_kernels import sparc_loss

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make() -> tuple[nn.Module, dict[str, Tensor]]:
    text = {**SMALL, "vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99, "max_position_embeddings": 16}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    lengths = torch.tensor([9, 5, 7, 3])  # of the captions, start and end of text included
    place = torch.arange(9)
    ids = torch.randint(1, 98, (4, 9)).where(
        place < lengths[:, None] - 1, 99
    )  # padded with the end of text, as in CLIP
    ids[:, 0] = 98
    inputs = {"input_ids": ids, "attention_mask": (place < lengths[:, None]).long()}  # as the processor gives them
    return CLIPModel(config), {"pixel_values": torch.randn(4, 3, 32, 32), **inputs}


def loss_of(model: CLIPModel, batch: dict[str, Tensor]) -> Tensor:
    out = model(**batch)
    patches = out.vision_model_output.last_hidden_state[:, 1:]  # without CLS, which is no patch
    patches = model.visual_projection(model.vision_model.post_layernorm(patches))  # CLIP norms its CLS alone
    tokens = model.text_projection(out.text_model_output.last_hidden_state)
    # Start and end of text are no words: those are followed by a valid token, and do not come first (padding is right).
    words = nn.functional.pad(batch["attention_mask"][:, 2:], (1, 1)).bool()
    pooled = {"image_embeds": out.image_embeds, "text_embeds": out.text_embeds}
    scale = model.logit_scale.exp()  # the parameter holds the logarithm
    return sparc_loss(patches, tokens, words, logit_scale=scale, **pooled)


def main(steps: int = 5) -> list[float]:
    torch.manual_seed(0)
    model, batch = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(max=4.6052)  # log(100), as in CLIP
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
