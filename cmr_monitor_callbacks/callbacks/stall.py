"""The stall watchdog in a Trainer: for `CMRMonitorCallback`, and alone for any run."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from cmr_monitor_callbacks.callbacks.lightning_api import (
    LightningModule,
    Trainer,
    batch_steps,
    callback_bases,
    current_step,
    log_folder,
)
from cmr_monitor_callbacks.config import parse
from cmr_monitor_callbacks.config.stall import StallConfig
from cmr_monitor_callbacks.errors import named_arguments
from cmr_monitor_callbacks.recording.phases import StepTimer
from cmr_monitor_callbacks.stall import StallReport, StallWatchdog, Stand

logger = logging.getLogger(__name__)
_STAGES: Final = {
    "val": "validation",
    "sanity": "sanity check",
    "test": "test",
    "predict": "prediction",
}


class StallWatch:
    """What a callback's own stopwatches say to a watchdog: the training thread does nothing more.

    Args:
        config: what counts as a stall.
        tell: told of a stall and of its end, on the watchdog's thread.
        step: says which step is under way.
        now: the clock of the stopwatches.

    Attributes:
        steps: seconds of the last steps of training; whoever trains appends to it.
    """

    def __init__(
        self,
        config: StallConfig,
        tell: Callable[[StallReport], None],
        step: Callable[[], int],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._tell = tell
        self._step = step
        self._now = now
        self.steps: deque[float] = deque(maxlen=1)
        self._timer: StepTimer | None = None
        self._stage = "train"
        self._special: tuple[str, float] = ("start", now())
        self._watchdog: StallWatchdog | None = None

    def start(self, trainer: Trainer, timer: StepTimer) -> None:
        """Begin to watch, in the process that trains.

        Args:
            trainer: says which rank this is and where its files are.
            timer: the stopwatch of training.
        """
        self.stop()
        if not self._config.enabled:
            return
        self._timer, self._stage, self._special = timer, "train", ("start", self._now())
        self._watchdog = StallWatchdog(
            self._config,
            self.stand,
            self._tell,
            rank=trainer.global_rank,
            folder=log_folder(trainer),
            now=self._now,
        )
        self.steps = self._watchdog.steps
        self._watchdog.start()

    @property
    def watches(self) -> bool:
        """Whether it has begun."""
        return self._watchdog is not None

    def stop(self) -> None:
        """Watch no more."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stop()

    def follow(self, timer: StepTimer, stage: str) -> None:
        """From now on this stopwatch counts.

        Args:
            timer: the stopwatch.
            stage: ``train``, ``val``, ``sanity``, ``test`` or ``predict``.
        """
        self._timer, self._stage = timer, stage
        self._special = (_STAGES.get(stage, "data"), self._now())

    def writes_checkpoint(self) -> None:
        """A checkpoint is being written."""
        self._special = ("checkpoint", self._now())

    def stand(self) -> Stand:
        """Where the run stands; asked by the watchdog's thread."""
        phase, since = self._special
        if self._timer is not None:
            inner, mark = self._timer.stand()
            if mark > since:
                phase, since = inner if self._stage == "train" else _STAGES[self._stage], mark
        return Stand(phase, since, self._step())


class StallWatchdogCallback(*callback_bases()):  # type: ignore[misc]
    """Notices that a run stands still, says in which phase, and writes down all Python stacks.

    For any Lightning run. (`CMRMonitorCallback` has it built in: ``alerts.stall``.) Every rank
    watches itself on a thread, without any collective.

    Args:
        stall: what counts as a stall (`StallConfig` or a mapping).
        notify: called with each `StallReport`, on the watchdog's thread; default: a line on stderr
            and in the log.

    Raises:
        ConfigError: a setting is wrong; the message names the field, the value and what is allowed.

    >>> StallWatchdogCallback({"after": "30s"}).config.after
    30.0
    """

    @named_arguments
    def __init__(
        self,
        stall: Mapping[str, Any] | StallConfig | None = None,
        *,
        notify: Callable[[StallReport], None] | None = None,
    ) -> None:
        super().__init__()
        self.config = parse(StallConfig, stall, "stall")
        self._step = 0
        self._watch = StallWatch(self.config, notify or _say, self._under_way)
        self._timer = StepTimer()
        self._other = StepTimer()

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        return "StallWatchdogCallback"

    def _under_way(self) -> int:
        return self._step

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        self._timer = StepTimer()
        self._watch.start(trainer, self._timer)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """A forward begins."""
        self._timer.batch_start(time.perf_counter())

    def on_before_backward(self, *args: Any, **kwargs: Any) -> None:
        """A backward begins."""
        self._timer.before_backward(time.perf_counter())

    def on_after_backward(self, *args: Any, **kwargs: Any) -> None:
        """A backward has ended."""
        self._timer.after_backward(time.perf_counter())

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """An optimizer begins."""
        self._timer.before_optimizer(time.perf_counter())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A batch is over."""
        self._timer.batch_end(time.perf_counter())
        if batch_steps(trainer, batch_idx):
            self._step = current_step(trainer) + 1
            self._watch.steps.append(self._timer.take()[0])

    def on_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint is being written."""
        self._watch.writes_checkpoint()

    def _stage(self, trainer: Trainer, stage: str) -> None:
        self._other = StepTimer()
        if not self._watch.watches:
            self._watch.start(trainer, self._other)
        self._watch.follow(self._other, stage)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation begins, or the sanity check."""
        self._stage(trainer, "sanity" if trainer.sanity_checking else "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test begins."""
        self._stage(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A prediction begins."""
        self._stage(trainer, "predict")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on, where there is any."""
        self._watch.follow(self._timer, "train")

    on_test_end = on_predict_end = on_validation_end

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """A batch begins."""
        self._other.batch_start(time.perf_counter())

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """A batch is over."""
        self._other.batch_end(time.perf_counter())

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Watch no more."""
        self._watch.stop()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Watch no more."""
        self._watch.stop()


def _say(report: StallReport) -> None:
    logger.log(logging.WARNING if report.resumed else logging.ERROR, "%s", report)
    print(f"[cmr-monitor] {report}", file=sys.stderr, flush=True)
