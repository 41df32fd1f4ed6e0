"""What happens to the example on purpose."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class BufferRelief(pl.Callback):
    """At a scheduled step gives one layer's buffer more room, and says so.

    Args:
        at_step: optimizer step.
        layer: id of the memory layer.
        capacity: its capacity from then on, in entries.
    """

    def __init__(self, at_step: int, layer: int, capacity: int) -> None:
        self.at_step = at_step
        self.layer = layer
        self.capacity = capacity

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Enlarge the buffer when the step has come."""
        model: Any = pl_module.model
        if trainer.global_step != self.at_step or not model.config.memory_enabled:
            return
        buffer = model.memory_buffer
        before = buffer.layer_buffers[self.layer].capacity
        if before >= self.capacity:
            return
        buffer.set_capacity(self.layer, self.capacity)
        text = (
            f"[demo] step {self.at_step}: scheduled relief, layer {self.layer}'s buffer grows "
            f"from {before} to {self.capacity} entries"
        )
        if not trainer.is_global_zero:
            return
        bar = trainer.progress_bar_callback
        print(text) if bar is None else bar.print(text)
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_text("demo/relief", text, self.at_step)
