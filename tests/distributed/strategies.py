"""A program that fits on two ranks: ``python -m tests.distributed.strategies STRATEGY FOLDER``.

Each rank writes what its tap counted and what its snapshot says. Run as a program, for Lightning
itself starts the other process.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, loader, trainer


class Writes(pl.Callback):
    """Says at the end of a fit, in whatever process that is, what was counted."""

    def __init__(self, folder: Path, callback: CMRMonitorCallback) -> None:
        self.folder, self.callback = folder, callback
        self.tap: Tap | None = None

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.tap = Tap(module)

    def teardown(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        assert self.tap is not None
        snapshot = self.callback.snapshot
        found = {
            "tap": {name: self.tap.of(name) for name in COUNTED},
            "snapshot": {name: snapshot.layers(name) for name in COUNTED},
            "world": snapshot.world_size,
            "failures": self.callback.monitor.failures,
            "threads": [t.name for t in threading.enumerate() if "cmr-monitor" in t.name],
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


class Sharded(MemoryModule):
    """The linear layers' weights are spread over the ranks (FSDP2)."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        for block in self.blocks:
            fully_shard(block.linear, mesh=self.device_mesh["data_parallel"])


def main(name: str, folder: Path) -> None:
    """Fit with a strategy."""
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    strategy: str | Strategy = name
    module = MemoryModule()
    if name == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        module = Sharded()
    else:
        # DDP would send rank 0's stores, which are buffers, to the other rank
        names = [n for n, _ in module.named_buffers()]
        torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            module, names
        )
    callback = CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})
    callbacks = [callback, Writes(folder, callback)]
    fitter = trainer(folder, callbacks, devices=2, strategy=strategy, logger=False)
    fitter.fit(module, loader(34), loader(2, seed=5))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
