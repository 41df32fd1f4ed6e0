"""A MemorizingTransformer in a LightningModule, unchanged, its KNN memories kept in several ways.

``memorizing-transformers-pytorch``; its memories are plain objects that know of no layer: each is
handed through the forward to the attention that reads and fills it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from memorizing_transformers_pytorch import KNNMemory, MemorizingTransformer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

TOKENS, ROWS, LENGTH, DIM = 11, 2, 6, 8
MOST = 20
"""Memories that an index may hold; LENGTH does not divide it, so that a wipe is not at its end."""
SLOT_BYTES = 2 * DIM * 4
ASKED = 3
"""Memories looked for by each query."""
HEADS = 2
OWNED = ("memories.0", "memories.1")
"""Layers of memories that the module holds."""
PASSED = ("net.layers.0.0.fn", "net.layers.2.0.fn")
"""Layers of memories that are only passed: the attention that takes them."""


def network(folder: Path) -> MemorizingTransformer:
    """Three layers, the first and the last with a memory."""
    return MemorizingTransformer(
        num_tokens=TOKENS,
        dim=DIM,
        depth=3,
        dim_head=DIM,
        heads=HEADS,
        memorizing_layers=(1, 3),
        max_knn_memories=MOST,
        num_retrieved_memories=ASKED,
        knn_memories_directory=str(folder / "knn"),
    )


class KNNModule(pl.LightningModule):
    """Trains the network, two passes for each batch; subclasses say where the memories are.

    Args:
        folder: where the memories' files are.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = network(folder)

    def passes(self, ids: Tensor, memories: Any) -> Tensor:
        """Two segments; the second pass of some batches only reads."""
        first, second = ids[:, :LENGTH], ids[:, LENGTH:]
        loss = self.net(first[:, :-1], memories, labels=first[:, 1:])
        reads = int(ids[0, 0]) % 3 == 0
        return loss + self.net(
            second[:, :-1], memories, labels=second[:, 1:], add_knn_memory=not reads
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class OwnedModule(KNNModule):
    """Holds its memories in an attribute; forgets one row's at one step and one layer's later."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.memories = self.net.create_knn_memories(batch_size=ROWS)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 5:
            self.memories.clear_memory(batch_indices=[1])
        if batch_idx == 9:
            self.memories[1].clear()
        return self.passes(batch[0], self.memories)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.passes(batch[0], self.memories))


class ClosureModule(KNNModule):
    """Makes its memories when training starts; only a function knows them."""

    def on_train_start(self) -> None:
        memories = self.net.create_knn_memories(batch_size=ROWS)

        def run(ids: Tensor, batch_idx: int) -> Tensor:
            if batch_idx in (4, 7):
                memories[batch_idx % 2].clear(batch_indices=[0] if batch_idx == 7 else None)
            return self.passes(ids, memories)

        self.run: Callable[[Tensor, int], Tensor] = run

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.run(batch[0], batch_idx)


class ContextModule(KNNModule):
    """Makes new memories for each step, as the package's documentation shows.

    Attributes:
        made: the memories that were made, none of which this keeps alive.
        left: how many of them were still there when a step began.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.made: list[weakref.ref[KNNMemory]] = []
        self.left: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.left.append(sum(ref() is not None for ref in self.made))
        with self.net.knn_memories_context(batch_size=ROWS) as memories:
            self.made += map(weakref.ref, memories)
            for _ in range(2):  # so that the index is full once in each step
                self.passes(batch[0], memories)
            if batch_idx % 4 == 1:
                memories[1].clear()
            return self.passes(batch[0], memories)


def loader(batches: int, seed: int = 1) -> Any:
    """Random ids, two segments in each row, and the next token of each."""
    make = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, TOKENS, (batches * ROWS, 2 * LENGTH), generator=make)
    return DataLoader(TensorDataset(ids), ROWS)
