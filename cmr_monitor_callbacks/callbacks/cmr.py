"""`CMRMonitorCallback`: all that a user writes."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from cmr_monitor_callbacks.answers import Answers, monitor_of
from cmr_monitor_callbacks.callbacks.lightning_api import (
    LightningModule,
    Trainer,
    batch_steps,
    callback_bases,
    current_step,
    log_every_n_steps,
    other_profiler,
    say_at_start,
)
from cmr_monitor_callbacks.callbacks.outlets import Outlets
from cmr_monitor_callbacks.callbacks.stall import StallWatch
from cmr_monitor_callbacks.callbacks.validation import validation_loss
from cmr_monitor_callbacks.callbacks.weights import weights_are_finite
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
    SinksConfig,
    parse,
)
from cmr_monitor_callbacks.errors import CriticalAlert, MonitorFailure, named_arguments
from cmr_monitor_callbacks.failures import message_of
from cmr_monitor_callbacks.monitor import CMRPerformanceMonitor
from cmr_monitor_callbacks.recording.batches import batch_shape
from cmr_monitor_callbacks.recording.cells import anything_compiled
from cmr_monitor_callbacks.recording.phases import StepTimer
from cmr_monitor_callbacks.stall import StallReport
from cmr_monitor_callbacks.windows import DEFAULT_WINDOW

logger = logging.getLogger(__name__)
H = TypeVar("H", bound=Callable[..., None])
Settings = Mapping[str, Any] | None


def _guarded(hook: H) -> H:
    """What fails in the monitor must not end training."""

    @wraps(hook)
    def safe(self: CMRMonitorCallback, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except (MonitorFailure, CriticalAlert):
            raise
        except Exception as error:
            self.monitor.note_failure(hook.__name__, error)

    return safe  # type: ignore[return-value]


class CMRMonitorCallback(Answers, *callback_bases()):  # type: ignore[misc]
    """Watches the memory of a model while a Trainer trains it.

    Each argument is a settings model or a mapping (a DictConfig too); what is omitted is as in the
    preset ``default``. Works from code, by Hydra's ``_target_`` and in LightningCLI, with
    ``pytorch_lightning`` and with ``lightning.pytorch``.

    Args:
        monitoring: what is collected and how often (`MonitoringConfig`).
        alerts: what counts as wrong and who is told (`AlertConfig`).
        probes: how numbers leave the model (`ProbesConfig`).
        history: how much is kept of the windows (`HistoryConfig`).
        profiling: which steps are profiled in detail, and how (`ProfilingConfig`).
        resources: what is sampled of the machine (`ResourcesConfig`).
        sinks: where numbers go (`SinksConfig`).
        monitor: a monitor made elsewhere, with its own ``monitoring``, ``alerts``,
            ``probes``, ``history``, ``profiling`` and ``resources``.

    Raises:
        ConfigError: a setting is wrong; the message names the field, the value and what is allowed.

    >>> callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 10})
    >>> callback.health.score
    100.0
    >>> CMRMonitorCallback(sinks={"logger": False})
    Traceback (most recent call last):
    cmr_monitor_callbacks.errors.ConfigError: sinks.logger is not a setting; did you mean \
'loggers'? (allowed: loggers, callback_metrics, custom_scalars, prometheus)
    """

    @named_arguments
    def __init__(
        self,
        *,
        monitoring: Settings | MonitoringConfig = None,
        alerts: Settings | AlertConfig = None,
        probes: Settings | ProbesConfig = None,
        history: Settings | HistoryConfig = None,
        profiling: Settings | ProfilingConfig = None,
        resources: Settings | ResourcesConfig = None,
        sinks: Settings | SinksConfig = None,
        monitor: CMRPerformanceMonitor | None = None,
    ) -> None:
        super().__init__()
        self.monitor = monitor_of(
            monitor,
            monitoring=monitoring,
            alerts=alerts,
            probes=probes,
            history=history,
            profiling=profiling,
            resources=resources,
        )
        self.sinks_config = parse(SinksConfig, sinks, "sinks")
        self._outlets = Outlets(self.monitor, self.sinks_config)
        self._timer = StepTimer()
        self._other_timer = StepTimer()
        """Of the other stages: one may come between the batches of a step."""
        self._now = self.monitor.clock.monotonic
        self._profiler = self.monitor.profiler
        self._watch = StallWatch(
            self.monitor.alert_config.stall,
            self._tell_of_stall,
            self.monitor.step_under_way,
            self._now,
        )
        self._trainer: weakref.ref[Trainer] | None = None
        self._handles: list[Any] = []
        self._gate_closed = False
        config = self.monitor.config  # rates are of the component timing
        self._counts_batches = any(map(config.watches_component, ("model", "timing")))

    # -- what a user reads ------------------------------------------------------------------

    def summary(self, files: str = "") -> RenderableType:
        """A summary for the terminal, the last profile included; see `Answers.summary`."""
        found = super().summary(files)
        profile = self._profiler.describe()
        return Group(found, Text(profile)) if profile else found

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        return "CMRMonitorCallback"

    def state_dict(self) -> dict[str, Any]:
        """Run totals, the window begun and the open alerts, as plain data."""
        return self.monitor.state_dict()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writing a checkpoint is no waiting for data."""
        self.monitor.mute("checkpoint")
        self._watch.writes_checkpoint()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was called; a test or a prediction is not training gone on."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None and trainer.state.fn != "fit":
            return
        self.monitor.load_state_dict(state_dict)

    # -- start and end ----------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach to the model, before anything is compiled.

        A fit with another Trainer starts new totals; fitting on with the same one goes on.
        """
        known = None if self._trainer is None else self._trainer()
        if stage == "fit" and known is not trainer:
            self.monitor.start_over()
        self._trainer = weakref.ref(trainer)
        self._timer, self._other_timer = StepTimer(), StepTimer()
        self.monitor.join_ranks()
        self.monitor.attach(pl_module)

    @_guarded
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what `configure_model` made, and make room on the model's device."""
        found = self.monitor.attach(pl_module)  # configure_model() may have made modules since
        self._timer = self.monitor.step_timer()
        if self.monitor.alert_config.enable_alerts:
            self._watch.start(trainer, self._timer)
        self.monitor.place_cells(pl_module.device)
        self.monitor.agree_on_layers()
        self._outlets.open(trainer)
        if not found and self.monitor.config.watches_layer(None):
            logger.warning(
                "found no CMRProbe in %s, and no memory that is recognised: only times are "
                "monitored. Hold a CMRProbe in each memory layer and call it where states are "
                "captured, stored, retrieved and reconstructed",
                type(pl_module).__name__,
            )
        text = self.monitor.describe()
        if text:
            say_at_start(f"CMRMonitorCallback watches {type(pl_module).__name__}:\n{text}")

    @_guarded
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fix the window's length, time the optimizers, and have the health score be there."""
        configured = self.monitor.config.log_every_n_steps
        self.monitor.window_steps = configured or log_every_n_steps(trainer) or DEFAULT_WINDOW
        self._remove_handles()
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.Optimizer):
                self._handles.append(optimizer.register_step_post_hook(self._after_optimizer))
        self.monitor.on_decision = partial(self._decided, trainer)
        self._profiler.begin_run(other_profiler(trainer))
        self._outlets.rewrite_metrics()

    def _decided(self, trainer: Trainer, kind: str, reason: str) -> None:
        """All ranks act at the same step."""
        logger.warning("%s, for %s", kind, reason)
        if kind == "stop":
            trainer.should_stop = True
            return
        folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
        name = f"cmr-monitor-step={trainer.global_step}"
        if not weights_are_finite(trainer):
            # for the search of the cause; a good checkpoint is never overwritten by it
            name += "-nonfinite"
            logger.warning("the weights are not finite: the checkpoint is called %s.ckpt", name)
        trainer.save_checkpoint(Path(folder) / f"{name}.ckpt")

    @_guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """ModelCheckpoint may look now, before the first window has ended."""
        self._outlets.show_metrics()

    @_guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last, partial window."""
        self._profiler.interrupt("the fit ended")
        self.monitor.flush()
        self.monitor.diagnose_at_end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Lightning may not call `teardown` after this: flush and let go."""
        self._outlets.outcome = f"{type(exception).__name__}: {message_of(exception)}"[:500]
        self.monitor.note_error(exception)
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Flush and let go of the model."""
        self._leave()

    def _tell_of_stall(self, report: StallReport) -> None:
        """Every rank tells of itself, for rank 0 may be the one that is stuck."""
        alerts = self.monitor.alerts
        self.monitor.keep_alert(alerts.tell_of_stall(report, time.time()))
        if self.monitor.alert_config.stall.action == "exit" and not report.resumed:
            # nobody delivers or writes anything once the process has ended
            alerts.delivery.flush()
            self.monitor.flush_history()

    @_guarded
    def _leave(self) -> None:
        self._watch.stop()
        self._remove_handles()
        if self._gate_closed:  # a backward failed
            self._set_gate(True)
        self.monitor.detach()
        if self.monitor.stage != "train":
            self.monitor.enter_stage("train")
        self.monitor.leave_ranks()
        self.monitor.on_decision = None
        try:
            self.monitor.flush()
        except CriticalAlert as alert:  # the run ends already, perhaps by another error
            logger.error("%s", alert)
        finally:
            self._outlets.close()

    # -- each step --------------------------------------------------------------------------

    # Those that only read the clock are not guarded: there is nothing in them that fails.

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start timing a batch."""
        if self._gate_closed:  # a backward failed, and the loop went on
            self._set_gate(True)
        self.monitor.refresh()
        if self._profiler.planner is not None:
            self._begin_profiled(trainer)
        self._timer.batch_start(self._now())

    @_guarded
    def _begin_profiled(self, trainer: Trainer) -> None:
        """Profiling is on: this step may be the first of a profile, or within one."""
        if self._profiler.begin_step(current_step(trainer)):
            self.monitor.mute("profile")

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        """The forward has ended."""
        if anything_compiled():  # now or earlier: some models are compiled after a warm-up
            self._set_gate(False)
        self._timer.before_backward(self._now())

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The backward has ended."""
        self._timer.after_backward(self._now())
        if self._gate_closed:
            self._set_gate(True)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The optimizer begins."""
        self._timer.before_optimizer(self._now())

    def _after_optimizer(self, *args: Any) -> None:
        self._timer.after_optimizer(self._now())

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the step if this batch completed one, and end the window if that is due."""
        entered = self._now()
        timer = self._timer
        try:
            timer.batch_end(entered)
            if self._counts_batches:  # not at its start: a batch that Lightning skips never ends
                timer.holds(*batch_shape(batch))
            monitor = self.monitor
            monitor.take_outputs(outputs)
            if batch_steps(trainer, batch_idx):
                record, step = timer.take(), current_step(trainer)
                monitor.record_step(*record)
                self._watch.steps.append(record[0])
                if self._profiler.planner is not None:
                    self._profiler.end_step(step)
                monitor.step(step)
        except (MonitorFailure, CriticalAlert):
            raise
        except Exception as error:  # as in `_guarded`, without a call in between
            self.monitor.note_failure("on_train_batch_end", error)
        finally:
            timer.left_hook(entered, self._now())

    @_guarded
    def _set_gate(self, is_open: bool) -> None:
        """Compiled code is not counted in a backward, where it runs as a recompute."""
        self._gate_closed = not is_open
        self.monitor.set_gate(is_open)

    # -- other stages -----------------------------------------------------------------------

    @_guarded
    def _enter(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.monitor.attach(pl_module)
        self.monitor.place_cells(pl_module.device)
        self.monitor.agree_on_layers()
        self._outlets.open(trainer)
        self._timer.pause()
        self._other_timer = self.monitor.step_timer()
        if not self._watch.watches and self.monitor.alert_config.enable_alerts:
            self._watch.start(trainer, self._other_timer)
        self._watch.follow(self._other_timer, stage)
        self._outlets.show_metrics()
        self.monitor.enter_stage(stage)

    @_guarded
    def _leave_stage(self, trainer: Trainer) -> None:
        self.monitor.leave_stage(current_step(trainer))
        self._timer.resume(self._now())
        self._watch.follow(self._timer, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is recorded belongs to validation, or to the sanity check."""
        self._enter(trainer, pl_module, "sanity" if trainer.sanity_checking else "val")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation's numbers are logged once."""
        self._leave_stage(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is recorded belongs to the test."""
        self._enter(trainer, pl_module, "test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The test's numbers are logged once."""
        self._leave_stage(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is recorded belongs to the prediction."""
        self._enter(trainer, pl_module, "predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The prediction's numbers are logged once."""
        self._leave_stage(trainer)

    def _evaluation_batch_start(self) -> None:
        self.monitor.begin_batch()
        self._other_timer.batch_start(self._now())

    @_guarded
    def _evaluation_batch_end(self, batch: Any) -> None:
        now = self._now()
        timer = self._other_timer
        timer.batch_end(now)
        if self._counts_batches:
            timer.holds(*batch_shape(batch))
        span, wait, forward, _, _, _, passes, samples, tokens = timer.take()
        self.monitor.record_step(span, wait, forward, None, None, None, passes, samples, tokens)
        timer.resume(now)

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Start timing a batch."""
        self._evaluation_batch_start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Record the batch; every so many of validation, compare with and without memory."""
        self._evaluation_batch_end(batch)
        every = self.monitor.compares_memory_every
        if every:
            self._compare_memory(pl_module, batch, args, kwargs, every)

    @_guarded
    def _compare_memory(
        self, module: LightningModule, batch: Any, args: Any, kwargs: Any, every: int
    ) -> None:
        batch_idx = args[0] if args else kwargs["batch_idx"]
        if self.monitor.stage == "val" and batch_idx % every == 0:
            loader = args[1] if len(args) > 1 else kwargs.get("dataloader_idx", 0)
            self.monitor.compare_memory(module, partial(validation_loss, batch, batch_idx, loader))
            self._other_timer.resume(self._now())

    # the other stages' batches are timed alike
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
