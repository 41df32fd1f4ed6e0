"""Titans' neural memories in LightningModules, unchanged: what they remember is weights.

``titans-pytorch``.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from titans_pytorch import MemoryAsContextTransformer, NeuralMemory
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROWS, DIM, TOKENS = 2, 8, 13
CHUNK = 4
"""Positions that are stored together; what is left of a sequence waits in the state."""
PLACES = ("first", "blocks.1.memory")
IN_CONTEXT = ("net.layers.0.4", "net.layers.1.4")
"""Where a MemoryAsContextTransformer has its memories."""


class Block(nn.Module):
    """A memory with a layer before it."""

    def __init__(self, chunk: int, **settings: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.memory = NeuralMemory(dim=DIM, chunk_size=chunk, **settings)

    def forward(self, x: Tensor) -> Tensor:
        remembered, _ = self.memory(torch.tanh(self.linear(x)))
        out: Tensor = x + remembered
        return out


class FastWeights(nn.Module):
    """Two memories: one goes on where it was, one begins anew and renews its weights on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = NeuralMemory(dim=DIM, chunk_size=CHUNK)
        self.blocks = nn.ModuleList([nn.Linear(DIM, DIM), Block(2, batch_size=6)])

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """Shape ``(rows, positions, DIM)``; the first memory is given it in parts."""
        state, remembered = None, []
        for part in x.chunk(parts, dim=1):
            out, state = self.first(part, state=state)
            remembered.append(out)
        x = x + torch.cat(remembered, dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class FastWeightsModule(pl.LightningModule):
    """Trains `FastWeights` on sequences of two lengths, of which one leaves a remainder."""

    def __init__(self) -> None:
        super().__init__()
        made = FastWeights()
        self.first, self.blocks = made.first, made.blocks

    forward = FastWeights.forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0] if batch_idx % 3 else batch[0][:, :8]
        loss = self(x).square().mean()
        if batch_idx % 4 == 1:
            loss = loss + self(x, parts=2).square().mean()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self(batch[0]).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class InContextModule(pl.LightningModule):
    """Trains a tiny MemoryAsContextTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MemoryAsContextTransformer(
            num_tokens=TOKENS,
            dim=DIM,
            depth=2,
            segment_len=4,
            num_persist_mem_tokens=1,
            num_longterm_mem_tokens=1,
            neural_memory_layers=(1, 2),
            neural_memory_segment_len=3,
            dim_head=4,
            heads=2,
            num_residual_streams=2,
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch[0], return_loss=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def loader(batches: int, seed: int = 1, length: int = 11) -> Any:
    """Random sequences of vectors."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(batches * ROWS, length, DIM, generator=make)
    return DataLoader(TensorDataset(x), ROWS)


def token_loader(batches: int, length: int) -> Any:
    """Random sequences of ids."""
    make = torch.Generator().manual_seed(1)
    ids = torch.randint(0, TOKENS, (batches * ROWS, length), generator=make)
    return DataLoader(TensorDataset(ids), ROWS)
