"""A run that Lightning starts its own ranks for: python -m tests.distributed.launched ..."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.distributed.fitting import logger
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, loader, trainer

STEPS = 22
STARTS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork"}


class Module(MemoryModule):
    """Makes its tap in the process that trains."""

    def setup(self, stage: str) -> None:
        self.tap = Tap(self)


class Sharded(Module):
    """Each block, and the whole, sharded over the ranks."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.blocks:
            fully_shard(block.linear, mesh=mesh)
        fully_shard(self.head, mesh=mesh)


class Writes(pl.Callback):
    """Puts what a rank knows at the end into a file."""

    def __init__(self, root: Path, ours: CMRMonitorCallback | None) -> None:
        self.root, self.ours = root, ours

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        said: dict[str, Any] = {
            "tap": {n: module.tap.of(n) for n in COUNTED},
            "losses": module.losses,
            "step": trainer.global_step,
        }
        if self.ours is not None:
            shown = self.ours.snapshot
            said["world"] = shown.world_size
            said["failures"] = self.ours.monitor.failures
            said["layers"] = {n: shown.layers(n) for n in COUNTED}
            said["val"] = self.ours.snapshots["val"].world_size
        (self.root / f"rank{trainer.global_rank}.json").write_text(json.dumps(said))


class Fails(pl.Callback):
    """One rank fails on its way."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 12:
            raise RuntimeError("this rank is broken")


def strategy(name: str) -> Any:
    if name == "fsdp2":
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return DDPStrategy(
        broadcast_buffers=False, process_group_backend="gloo", start_method=STARTS[name]
    )


def main(name: str, folder: str, watched: str, fails: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    ours = None
    if watched == "watched":
        ours = CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})
    callbacks = [*([ours] if ours else []), Writes(root, ours)]
    if fails == "fails":
        callbacks.append(Fails())
    pl.seed_everything(4, verbose=False)
    fitter = trainer(
        root,
        callbacks,
        devices=2,
        strategy=strategy(name),
        logger=logger(root / "log"),
    )
    module = (Sharded if name == "fsdp2" else Module)()
    fitter.fit(module, loader(2 * STEPS), loader(4, seed=5))
    left = [t.name for t in threading.enumerate() if t.name.startswith("cmr-monitor")]
    (root / f"left{fitter.global_rank}.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(*sys.argv[1:])
