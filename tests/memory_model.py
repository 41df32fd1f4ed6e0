"""A small real memory model, and a tap that counts by itself what the model's buffer does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from cmr_monitor_callbacks import CMRProbe

LAYERS = (2, 4, 6)


class BoundedBuffer:
    """States of one layer, oldest dropped first; refuses every fifth state that it is handed."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.states: list[Tensor] = []
        self.handed = 0
        self.dropped = 0

    def store(self, state: Tensor) -> bool:
        """Take a state in, or refuse it."""
        self.handed += 1
        if self.handed % 5 == 0:
            return False
        if len(self.states) == self.capacity:
            self.states.pop(0)
            self.dropped += 1
        self.states.append(state)
        return True

    def read(self) -> Tensor | None:
        """The newest two states together; shape ``(2, dim)``."""
        return torch.stack(self.states[-2:]) if len(self.states) > 1 else None


class MemoryBlock(nn.Module):
    """Captures states, stores them, reads some back; tells its probe, in ints or in tensors."""

    def __init__(self, layer: int, dim: int = 8, *, tensors: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.linear = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.1)
        self.buffer = BoundedBuffer(capacity=4 * layer)
        self.tensors = tensors
        self.probe = CMRProbe(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes ``(batch, dim)`` in and out."""
        hidden = self.dropout(self.linear(x))
        with self.probe.timer() as timer:
            memory = self.buffer.read()
        self.probe.retrieval(1, 0 if memory is None else 2, 0, timer.seconds)
        self.probe.reconstruction(0 if memory is None else 2, None, timer.seconds)
        if memory is not None:
            hidden = hidden + memory.mean(0).to(hidden.dtype)
        # in the backward of a checkpoint this is a recompute: a real model stores only once
        if torch._C._current_graph_task_id() == -1:
            self._store(x.detach())
        return x + torch.relu(hidden)

    def _store(self, x: Tensor) -> None:
        before = self.buffer.dropped
        with self.probe.timer() as timer:
            taken = [self.buffer.store(state) for state in x]
        counts: list[Any] = [len(x) + 1, len(x), sum(taken)]
        if self.tensors:
            counts = [torch.tensor(count) for count in counts]
        self.probe.capture(*counts, timer.seconds, considered=2 * len(x))
        held = len(self.buffer.states)
        self.probe.buffer(
            held, self.buffer.capacity, held * x.shape[1] * 4, self.buffer.dropped - before
        )


class MemoryModule(pl.LightningModule):
    """Three memory blocks and a head, with dropout."""

    def __init__(self, *, recompute: str = "", tensors: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MemoryBlock(layer, tensors=tensors) for layer in LAYERS)
        self.head = nn.Linear(8, 1)
        self.recompute = recompute
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        """One number for each row."""
        for block in self.blocks:
            if self.recompute and self.training:
                reentrant = self.recompute == "reentrant"
                x = checkpoint(block, x.requires_grad_(), use_reentrant=reentrant)
            else:
                x = block(x)
        out: Tensor = self.head(x)
        return out

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean square."""
        loss = self(batch[0]).square().mean()
        self.losses.append(float(loss.detach()))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Mean square."""
        self.log("val/loss", self(batch[0]).square().mean())

    test_step = validation_step

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One number for each row."""
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The buffers belong to the model's state."""
        checkpoint["buffers"] = [
            (b.buffer.states, b.buffer.handed, b.buffer.dropped) for b in self.blocks
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse."""
        for block, (states, handed, dropped) in zip(
            self.blocks, checkpoint["buffers"], strict=True
        ):
            block.buffer.states = list(states)
            block.buffer.handed, block.buffer.dropped = handed, dropped


class Tap:
    """Counts, on the buffers' class itself, what every buffer of a module does."""

    def __init__(self, module: MemoryModule, monkeypatch: Any) -> None:
        layer_of = {id(block.buffer): block.layer for block in module.blocks}
        self.stored: Counter[int] = Counter()
        self.captured: Counter[int] = Counter()
        self.evicted: Counter[int] = Counter()
        self.read_back: Counter[int] = Counter()
        self.held: dict[int, int] = {}
        store, read = BoundedBuffer.store, BoundedBuffer.read

        def counting_store(buffer: BoundedBuffer, state: Tensor) -> bool:
            layer = layer_of[id(buffer)]
            full = len(buffer.states) == buffer.capacity
            taken = store(buffer, state)
            self.captured[layer] += 1
            self.stored[layer] += taken
            self.evicted[layer] += taken and full
            self.held[layer] = len(buffer.states)
            return taken

        def counting_read(buffer: BoundedBuffer) -> Tensor | None:
            memory = read(buffer)
            if torch._C._current_graph_task_id() == -1:
                self.read_back[layer_of[id(buffer)]] += memory is not None
            return memory

        monkeypatch.setattr(BoundedBuffer, "store", counting_store)
        monkeypatch.setattr(BoundedBuffer, "read", counting_read)

    def counts(self) -> dict[str, dict[int, int]]:
        """What was counted so far, by metric and layer."""
        return {
            "states_captured": dict(self.captured),
            "states_stored": dict(self.stored),
            "eviction_count": {layer: self.evicted[layer] for layer in LAYERS},
            "total_entries": dict(self.held),
            "total_reconstructions": {layer: self.read_back[layer] for layer in LAYERS},
        }


def loader(steps: int = 20, batch_size: int = 3, *, shuffle: bool = False) -> Any:
    """Random rows, the same in every call."""
    data = torch.randn(steps * batch_size, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(data), batch_size=batch_size, shuffle=shuffle)


def trainer(root: Any, callbacks: list[Any], **settings: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 5,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(default_root_dir=root, callbacks=callbacks, **{**defaults, **settings})
