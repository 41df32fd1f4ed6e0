"""Everything that is needed of Lightning beyond its public interface, with a fallback each.

Both import names are served: ``pytorch_lightning`` always, ``lightning.pytorch`` where installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info

Trainer = pl.Trainer
LightningModule = pl.LightningModule


def say_at_start(text: str) -> None:
    """Say something once on rank 0, by the logger that shows what Lightning says of a run."""
    rank_zero_info(text)


def callback_bases() -> tuple[type, ...]:
    """Base classes that make a callback acceptable to the Trainer of either import name."""
    if importlib.util.find_spec("lightning") is None:
        return (pl.Callback,)
    from lightning.pytorch import Callback as OtherCallback

    # the two are one class where one package is an alias of the other
    return tuple(dict.fromkeys((pl.Callback, OtherCallback)))


def current_step(trainer: Trainer) -> int:
    """The x-axis of ``self.log``: batches that stepped before this one.

    With several optimizers a batch counts once, where ``trainer.global_step`` counts each.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    steps = getattr(epoch_loop, "_batches_that_stepped", None)
    return int(trainer.global_step if steps is None else steps)


def batch_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the batch that just ended completes an optimizer step (gradient accumulation)."""
    if trainer.accumulate_grad_batches == 1:
        return True
    accumulates = getattr(trainer.fit_loop.epoch_loop, "_should_accumulate", None)
    if accumulates is not None:
        return not accumulates()
    complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return complete or trainer.is_last_batch


def callback_metrics(trainer: Trainer) -> dict[str, Any]:
    """The dictionary that EarlyStopping reads, without computing what the model logged."""
    connector = getattr(trainer, "_logger_connector", None)
    metrics = getattr(connector, "_callback_metrics", None)
    return trainer.callback_metrics if metrics is None else metrics


def log_every_n_steps(trainer: Trainer) -> int:
    """Steps between two logs; 0: the user wants none."""
    return int(getattr(trainer, "log_every_n_steps", 50))


def other_profiler(trainer: Trainer) -> str:
    """Why nothing else can be profiled in this fit; '' where the Trainer has no torch profiler."""
    kind = type(getattr(trainer, "profiler", None))
    if all(cls.__name__ != "PyTorchProfiler" for cls in kind.__mro__):
        return ""
    return (
        f"the Trainer's {kind.__name__} profiles this fit, and there can be only one profiler: "
        "CMRMonitorCallback makes no profile; leave out Trainer(profiler=...) to have them"
    )


def log_folder(trainer: Trainer) -> Path:
    """Where the first logger writes; unlike ``trainer.log_dir`` without asking the other ranks."""
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder:
            return Path(folder)
    return Path(trainer.default_root_dir)


def run_folder(trainer: Trainer) -> Path | None:
    """The run's own folder; None where no logger has one: nobody asked for files then."""
    if not trainer.loggers or getattr(trainer, "fast_dev_run", False):
        return None
    return log_folder(trainer)


def tensorboard_writer(logger: Any) -> Any | None:
    """The ``SummaryWriter`` of a TensorBoardLogger of either import name; None of others."""
    names = {base.__name__ for base in type(logger).__mro__}
    return logger.experiment if "TensorBoardLogger" in names else None


def progress_bar_print(trainer: Trainer) -> Any | None:
    """A print that keeps the progress bar whole; None without a bar."""
    bar = trainer.progress_bar_callback
    if bar is None or not getattr(bar, "is_enabled", True):
        return None
    return bar.print
