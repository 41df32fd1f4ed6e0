"""The machine in a Trainer: for any run, without a monitor."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from cmr_monitor_callbacks.callbacks.lightning_api import (
    LightningModule,
    Trainer,
    batch_steps,
    callback_bases,
    current_step,
    log_every_n_steps,
    log_folder,
)
from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.config import ResourcesConfig, parse
from cmr_monitor_callbacks.errors import named_arguments
from cmr_monitor_callbacks.resources import ResourceWatch, whole_of

logger = logging.getLogger(__name__)


class ResourceMonitorCallback(*callback_bases()):  # type: ignore[misc]
    """Logs processor, memory, disk and GPU of rank 0 to the Trainer's loggers.

    For any Lightning run. (`CMRMonitorCallback` has it built in, for all ranks: ``resources``.) The
    machine is sampled on a thread; every ``log_every_n_steps`` steps of the Trainer the mean and
    the greatest of the samples since are logged as ``cmr_resources/*``, at the end of a stage what
    is left. It never fails a run: what goes wrong is logged once.

    Args:
        resources: what is sampled, and how often (`ResourcesConfig` or a mapping).

    Attributes:
        values: the newest numbers by name, of rank 0; empty before the first.

    Raises:
        ConfigError: a setting is wrong; the message names the field, the value and what is allowed.

    >>> ResourceMonitorCallback({"interval": "10s"}).config.interval
    10.0
    >>> ResourceMonitorCallback({"intervall": 10})
    Traceback (most recent call last):
    cmr_monitor_callbacks.errors.ConfigError: resources.intervall is not a setting; did you mean \
'interval'? (allowed: enabled, interval, rest_after, gpu, disks, out_of_memory, memory_snapshot_mb)
    """

    @named_arguments
    def __init__(self, resources: Mapping[str, Any] | ResourcesConfig | None = None) -> None:
        super().__init__()
        self.config = parse(ResourcesConfig, resources, "resources")
        self.values: dict[str, float] = {}
        self._watch = ResourceWatch(self.config, step=self._step_under_way)
        self._step = 0
        self._last = -1
        self._failed: set[str] = set()

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        return "ResourceMonitorCallback"

    def _step_under_way(self) -> int:
        return self._step

    def _start(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self._watch.running:
            self._watch.forget()
            self._watch.start(log_folder(trainer), trainer.strategy.root_device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to sample."""
        self._start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is over; its step may be one that is logged."""
        self._watch.beats += 1
        if not batch_steps(trainer, batch_idx):
            return
        step = current_step(trainer)
        self._step = step + 1
        every = log_every_n_steps(trainer)
        if every > 0 and (step + 1) % every == 0:
            self._log(trainer, step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to sample, where nothing else has begun."""
        self._start(trainer)

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is over."""
        self._watch.beats += 1

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was sampled, unless training goes on and will."""
        if trainer.state.fn != "fit" and log_every_n_steps(trainer) > 0:
            self._log(trainer, current_step(trainer))

    on_test_end = on_predict_end = on_validation_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the last step that was logged left."""
        if self._step - 1 > self._last and log_every_n_steps(trainer) > 0:
            self._log(trainer, self._step - 1)

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Sample no more."""
        self._watch.stop()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Sample no more."""
        self._watch.stop()

    def _log(self, trainer: Trainer, step: int) -> None:
        self._last = step
        if not self._watch.running:
            return
        values = whole_of([self._watch.window()])
        self._watch.take_samples()  # nobody keeps them one by one
        for failure in self._watch.take_failures():
            self._say(failure)
        if not values:
            return
        self.values = values
        logged = {BY_NAME[name].tag: value for name, value in values.items()}
        finite = {tag: value for tag, value in logged.items() if math.isfinite(value)}
        for item in trainer.loggers:
            try:
                item.log_metrics(finite, step=step)
            except Exception as error:  # a logger that fails must not end a run
                self._say(error)

    def _say(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text not in self._failed:
            self._failed.add(text)
            logger.warning("the resources of the machine could not be sampled or logged: %s", text)
