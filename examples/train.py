"""Trains the example model, monitored. See ``configs/train.yaml`` for what can be set.

python examples/train.py [key=value ...]
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

# the example is run from a clone, as a script
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cmr_monitor_callbacks import CMRMonitorCallback


def quiet() -> None:
    """Keep notes that are not about this run off the terminal."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*`training_step` output.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", text)


def make_callbacks(config: DictConfig) -> tuple[list[pl.Callback], CMRMonitorCallback | None]:
    """The callbacks of the configuration; the monitor first, so that it sees each step first."""
    others = [hydra.utils.instantiate(node) for node in (config.get("callbacks") or {}).values()]
    if config.get("cmr_monitor") is None:
        return others, None
    monitor = CMRMonitorCallback(**config.cmr_monitor)
    return [monitor, *others], monitor


def train(config: DictConfig) -> dict[str, Any]:
    """Train, and say how it went.

    Returns:
        the Trainer's last metrics.
    """
    pl.seed_everything(config.seed, verbose=False)
    quiet()
    console = Console()
    data = hydra.utils.instantiate(config.data)
    module = hydra.utils.instantiate(config.model)
    callbacks, monitor = make_callbacks(config)
    loggers = [hydra.utils.instantiate(node) for node in (config.logger or {}).values()]
    trainer: pl.Trainer = hydra.utils.instantiate(
        config.trainer, logger=loggers or False, callbacks=callbacks
    )
    console.quiet = not trainer.is_global_zero  # one process of several speaks
    count = sum(p.numel() for p in module.parameters())
    console.print(
        f"Training a CMR language model of {count / 1e6:.1f} M parameters on the Python "
        f"documentation, {trainer.max_steps} steps on {torch.get_num_threads()} CPU threads.\n"
        f"Knowing only how often each byte comes: {data.unigram_entropy:.2f} nats "
        f"({data.unigram_bits:.2f} bits) per byte.",
        highlight=False,
    )
    trainer.fit(module, data, ckpt_path=config.ckpt_path)
    metrics = dict(trainer.callback_metrics)
    loss = float(metrics.get("val/loss", math.nan))
    console.print(
        f"\nValidation loss {loss:.2f} nats per byte (unigram entropy {data.unigram_entropy:.2f}).",
        highlight=False,
    )
    if monitor is not None:
        folder = Path(trainer.default_root_dir)
        console.print(monitor.summary(files=_relative(folder)))
        console.print(
            "Look at it:  [bold]make tensorboard[/bold]   "
            f"(or: tensorboard --logdir {_relative(folder.parent)})",
            highlight=False,
        )
    return metrics


def _relative(path: Path) -> str:
    """The path as seen from the current directory, where it lies under it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    """Entry point."""
    OmegaConf.resolve(config)
    train(config)


if __name__ == "__main__":
    main()
