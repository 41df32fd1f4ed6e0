"""A checkpoint has rank 0's entries: no other rank's memory is compared with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.distributed.fitting import STRICT, fitter
from tests.distributed.processes import Rank, free_port, start
from tests.memory_models.small import SmallModule, loader

pytestmark = pytest.mark.distributed
TABLE = list(loader(12))


class Module(SmallModule):
    """Each rank has batches of its own, and stores a number of states of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        step, rank = self.trainer.global_step, self.trainer.global_rank
        if rank and step % 2:
            batch = [part.clone() for part in TABLE[step]]
            batch[1][:] = 2  # of no relevance
        else:
            batch = TABLE[step]
        return super().training_step(batch, batch_idx)


class Saves(pl.Callback):
    """Saves a checkpoint after 3 steps, and says what is held."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            self.held = held(module)
            trainer.save_checkpoint(self.path)


def held(module: Any) -> int:
    return sum(map(len, module.core.memory_buffer.layer_buffers.values()))


def _run(rank: Rank, port: int, path: Path) -> dict[str, Any]:
    callback, module, saver = CMRMonitorCallback(monitoring=STRICT), Module(), Saves(path)
    ckpt_path = path if path.exists() else None
    fit = fitter(rank, port, rank.folder, [callback, saver], logger=False)
    fit.fit(module, loader(6 * rank.world), ckpt_path=ckpt_path)
    names = ("states_cleared", "states_loaded", "total_entries")
    values = {name: callback.snapshot.value(name) for name in names}
    return {"saved": saver.held, "held": held(module), **values}


def test_the_others_book_no_difference_to_rank_0(tmp_path: Path) -> None:
    first, again = (
        [o.result for o in start(_run, 2, tmp_path / name, free_port(), tmp_path / "at.ckpt")]
        for name in ("first", "again")
    )
    assert first[0]["saved"] > 0
    for said in again:  # no rank's memory is restored, and it is rank 0's that is known
        assert said["states_cleared"] == first[0]["saved"]
        assert said["states_loaded"] == 0
        assert said["total_entries"] == again[0]["held"] + again[1]["held"]
