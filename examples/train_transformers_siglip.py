"""``transformers.SiglipModel``: its own sigmoid loss over the batch, and SPARC's fine-grained loss within each pair.

    pip install transformers && python examples/train_transformers_siglip.py

Random weights at a small size; ``from_pretrained(...)`` and the processor (``padding="max_length"``) fit in.
"""

import torch
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

from sparc_kernels import fine_grained_loss

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class FineGrainedSiglip(nn.Module):
    """SigLIP projects neither patches nor words: they get linear adapters, and their loss a scale of its own."""

    def __init__(self, siglip: SiglipModel, dim: int) -> None:
        super().__init__()
        self.siglip = siglip
        self.patch_adapter = nn.Linear(siglip.config.vision_config.hidden_size, dim, bias=False)
        self.token_adapter = nn.Linear(siglip.config.text_config.hidden_size, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """The processor gives no attention mask: SigLIP attends to padding, but padding is no word."""
        out = self.siglip(pixel_values=pixel_values, input_ids=input_ids, return_loss=True)
        patches = self.patch_adapter(out.vision_model_output.last_hidden_state)  # normed already, and has no CLS
        tokens = self.token_adapter(out.text_model_output.last_hidden_state)
        words = input_ids != self.siglip.config.text_config.pad_token_id  # it ends the text as well
        return out.loss + fine_grained_loss(patches, tokens, words, logit_scale=self.log_scale.exp())


def make() -> tuple[FineGrainedSiglip, tuple[Tensor, Tensor]]:
    text = {**SMALL, "vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 1}
    config = SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    ids = torch.randint(2, 100, (4, 16)).where(torch.arange(16) < torch.tensor([[9], [4], [12], [2]]), 1)
    return FineGrainedSiglip(SiglipModel(config), dim=24), (torch.randn(4, 3, 32, 32), ids)


def main(steps: int = 5) -> list[float]:
    torch.manual_seed(0)
    model, batch = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
