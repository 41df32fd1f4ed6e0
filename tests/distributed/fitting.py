"""Trainers on several CPU ranks, each a process that the test started itself."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.distributed.processes import Rank
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, trainer

STRICT = {"on_monitor_error": "raise"}
Counts = dict[str, dict[int, float]]


class AtSteps(pl.Callback):
    """Keeps what the tap has counted after every optimizer step, by number of the step."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.after: dict[int, Counts] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.after.setdefault(trainer.global_step - 1, self.tap.copy())


def ddp() -> DDPStrategy:
    """Each rank keeps its own stores: by default DDP overwrites them with rank 0's."""
    return DDPStrategy(broadcast_buffers=False, process_group_backend="gloo")


def fitter(rank: Rank, port: int, root: Path, callbacks: list[Any], **settings: Any) -> pl.Trainer:
    """A Trainer that is one rank of several; a plain one where there is only this process."""
    warnings.filterwarnings("ignore")
    if rank.world == 1:
        return trainer(root, callbacks, **settings)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(rank.world),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank.rank),
    }
    return trainer(root, callbacks, **{"devices": rank.world, "strategy": ddp(), **settings})


def logger(root: Path) -> Any:
    """TensorBoard's, in this very folder on every rank."""
    return pl.loggers.TensorBoardLogger(str(root), name="", version="")


def added(parts: list[Counts], name: str) -> dict[int, float]:
    """A count by layer, over the ranks."""
    layers = parts[0][name]
    return {layer: sum(part[name][layer] for part in parts) for layer in layers}


def totals(callback: CMRMonitorCallback) -> dict[str, Any]:
    """Every count and gauge, in the whole and by layer."""
    snapshot = callback.snapshot
    names = (*COUNTED, "total_entries", "capacity", "memory_size_mb", "error_count", "batch_size")
    return {
        "step": snapshot.step,
        "windows": callback.monitor.windows,
        **{name: (snapshot.value(name), snapshot.layers(name)) for name in names},
    }


def module(**model: Any) -> tuple[MemoryModule, Tap]:
    """A model with a tap around its stores."""
    made = MemoryModule(**model)
    return made, Tap(made)
