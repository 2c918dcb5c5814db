"""A LightningModule that holds SparcLoss, so that its temperature is trained, moved and saved with the model.

pip install lightning && python examples/train_lightning.py
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sparc_kernels import SparcLoss


class SparcModule(lightning.LightningModule):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.image_tower = nn.Conv2d(3, dim, 8, 8)  # stand-ins
        self.text_tower = nn.Embedding(100, dim)
        self.criterion = SparcLoss(return_components=True)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        images, ids, mask = batch  # [B, 3, S, S], [B, L], [B, L] bool: True = a word
        patches = self.image_tower(images).flatten(2).transpose(1, 2)  # [B, P, D]
        out = self.criterion(patches, self.text_tower(ids), mask)
        self.log_dict({"loss": out.loss, "local_loss": out.local_loss, "scale": self.criterion.logit_scale})
        return out.loss  # on several devices: see train_ddp.py for what the average over them means

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)  # the criterion's scale is among them


class PrintLoss(lightning.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.losses.append(float(trainer.callback_metrics["loss"]))
        print(f"step {trainer.global_step - 1}: loss {self.losses[-1]:.4f}")


def make() -> tuple[SparcModule, tuple[Tensor, Tensor, Tensor]]:
    mask = torch.arange(12) < torch.randint(2, 13, (16, 1))
    return SparcModule(), (torch.randn(16, 3, 32, 32), torch.randint(0, 100, (16, 12)), mask)


def main(epochs: int = 5) -> list[float]:
    lightning.seed_everything(0, verbose=False)
    module, data = make()
    printer = PrintLoss()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[printer], **quiet)
    trainer.fit(module, DataLoader(TensorDataset(*data), batch_size=16))
    return printer.losses


if __name__ == "__main__":
    main()
