"""The model as a LightningModule."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from examples.cmr_lm.model import CMRConfig, FullCMRModel


class CMRLanguageModule(pl.LightningModule):
    """Trains `FullCMRModel` with AdamW and a linear warm-up.

    Args:
        lr: learning rate after the warm-up.
        warmup_steps: steps of the warm-up.
        weight_decay: of AdamW.
        model: fields of `CMRConfig`.
    """

    def __init__(
        self, lr: float = 2e-3, warmup_steps: int = 50, weight_decay: float = 0.01, **model: Any
    ) -> None:
        super().__init__()
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.model = FullCMRModel(CMRConfig(**model))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of shape ``(batch, time, vocabulary)``."""
        logits: Tensor = self.model(input_ids)["logits"]
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Nats per byte."""
        loss: Tensor = self.model(*batch)["loss"]
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Nats and bits per byte."""
        loss = self.model(*batch)["loss"]
        self.log("val/loss", loss, prog_bar=True)
        self.log("val/bits_per_byte", loss / math.log(2))

    def configure_optimizers(self) -> Any:
        """AdamW; the rate rises linearly, then stays."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
