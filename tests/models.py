"""A small memory model with a real bounded store.

What a row is worth is a function of its integer key alone, so that counts do not depend on how a
device or a compiler rounds; `tests.integration.tap` counts them again by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cmr_monitor_callbacks import CMRProbe

LAYERS = (2, 4, 6)
DIM = 8


def wanted(key: Any) -> Any:
    """Rows that pass the selection."""
    return key % 7 != 6


def well_formed(key: Any) -> Any:
    """Rows whose capture succeeds."""
    return key % 11 != 10


def accepted(key: Any, layer: int) -> Any:
    """Rows that the store of a layer takes: one in ``layer``."""
    return key % layer == 0


class Store(nn.Module):
    """The newest ``capacity`` states of one layer, and a cache of their mean.

    All of it is tensors that are written in place, so that it works inside compiled code, is saved
    in a checkpoint, and can be rewound. ``live`` is off in a backward: a checkpoint's recompute
    reads again but stores nothing.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer, self.capacity = layer, layer + 2
        self.register_buffer("rows", torch.zeros(self.capacity + 1, DIM))  # the last is scrap
        self.register_buffer("cached", torch.zeros(DIM))
        for name in ("head", "entries"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))
        self.register_buffer("stale", torch.ones((), dtype=torch.bool))
        self.register_buffer("live", torch.ones((), dtype=torch.bool), persistent=False)

    def put(self, states: Tensor, keys: Tensor, handed: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the rows that are handed over and accepted; gives back stored and evicted."""
        taken = accepted(keys, self.layer) & handed & self.live
        places = (self.head + taken.cumsum(0) - 1) % self.capacity
        self.rows[torch.where(taken, places, self.capacity)] = states.to(self.rows.dtype)
        stored = taken.sum()
        evicted = (self.entries + stored - self.capacity).clamp(min=0)
        self.entries.add_(stored - evicted)
        self.head.copy_((self.head + stored) % self.capacity)
        self.stale.logical_or_(stored > 0)
        return stored, evicted

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean of what is held, how many states are in it, and whether it was cached."""
        mean = self.rows[: self.capacity].sum(0) / self.entries.clamp(min=1)
        hit = ~self.stale & (self.entries > 0)
        self.cached.copy_(torch.where(self.stale, mean, self.cached))
        self.stale.logical_and_(~self.live)
        return self.cached.clone(), self.entries.clone(), hit.long()


class MemoryBlock(nn.Module):
    """Reads its store, adds what it remembers to the stream, and stores what is worth it."""

    def __init__(self, layer: int, *, tensors: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(dropout)
        self.recall = nn.Linear(DIM, DIM, bias=False)
        self.store = Store(layer)
        self.tensors = tensors
        self.clock: Callable[[], float] | None = None if tensors else time.perf_counter
        self.probe = CMRProbe(layer)

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Shapes ``(rows, DIM)`` and ``(rows,)`` in, ``(rows, DIM)`` out."""
        start = self._now()
        memory, used, hit = self.store.read()
        read = self._since(start)
        self._tell(self.probe.retrieval, (1, used, hit), seconds=read)
        out = x + self.dropout(torch.relu(self.linear(x))) + self.recall(memory)
        self._tell(self.probe.reconstruction, (used,), seconds=read)

        start = self._now()
        before = self.store.entries.clone()
        handed = wanted(keys) & well_formed(keys)
        stored, evicted = self.store.put(x.detach(), keys, handed)
        written = self._since(start)
        attempted = wanted(keys).sum()
        counts = (attempted, handed.sum(), stored)
        self._tell(self.probe.capture, counts, seconds=written, considered=len(x))
        held = before + stored - evicted
        self._tell(self.probe.buffer, (held, self.store.capacity, held * DIM * 4, evicted))
        return out

    def _tell(self, method: Callable[..., None], counts: tuple[Any, ...], **more: Any) -> None:
        if not self.tensors:
            counts = tuple(int(count) for count in counts)
        method(*counts, **more)

    def _now(self) -> float:
        return 0.0 if self.clock is None else self.clock()

    def _since(self, start: float) -> float | None:
        return None if self.clock is None else self.clock() - start


class MemoryModule(pl.LightningModule):
    """Blocks and a head.

    Args:
        layers: ids of the layers.
        recompute: activation checkpointing, ``reentrant`` or ``direct``; empty: none.
        tensors: probes are given 0-d tensors instead of ints.
        backend: compile each block whole with this backend; empty: do not compile.
        dropout: share of activations dropped.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = LAYERS,
        *,
        recompute: str = "",
        tensors: bool = False,
        backend: str = "",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            MemoryBlock(layer, tensors=tensors, dropout=dropout) for layer in layers
        )
        self.head = nn.Linear(DIM, 1)
        self.recompute, self.backend = recompute, backend
        self.losses: list[float] = []

    def compile_blocks(self) -> None:
        """Compile each block in place; with tensors no graph may break."""
        for block in self.blocks:
            block.compile(backend=self.backend, fullgraph=self.blocks[0].tensors)  # type: ignore[index]

    def on_fit_start(self) -> None:
        if self.backend:
            self.compile_blocks()

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """One number for each row."""
        for block in self.blocks:
            if self.recompute and self.training:
                reentrant = self.recompute == "reentrant"
                x = checkpoint(block, x.requires_grad_(), keys, use_reentrant=reentrant)
            else:
                x = block(x, keys)
        out: Tensor = self.head(x)
        return out

    def _loss(self, batch: Any) -> Tensor:
        return self(*batch).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.losses.append(float(loss.detach()))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(*batch)

    def on_before_backward(self, loss: Tensor) -> None:
        self._set_live(False)

    def on_after_backward(self) -> None:
        self._set_live(True)

    def _set_live(self, value: bool) -> None:
        for block in self.blocks:
            block.store.live.fill_(value)  # type: ignore[union-attr,operator]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def rows(batches: int, batch_size: int = 3, seed: int = 1) -> Dataset[Any]:
    """Random rows and keys, the same in every call."""
    make = torch.Generator().manual_seed(seed)
    count = batches * batch_size
    return TensorDataset(
        torch.randn(count, DIM, generator=make), torch.randint(0, 1000, (count,), generator=make)
    )


def loader(batches: int, batch_size: int = 3, *, shuffle: bool = False, seed: int = 1) -> Any:
    """A loader of `rows`."""
    return DataLoader(rows(batches, batch_size, seed), batch_size, shuffle=shuffle)


def trainer(root: Any, callbacks: list[Any], **settings: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU, with windows of 5 steps."""
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
