"""`CMRTrainerCallback`: the monitor for the Trainer of Hugging Face's transformers.

Not loaded by anything else: ``from cmr_monitor_callbacks.huggingface import CMRTrainerCallback``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cmr_monitor_callbacks.alerts import Surroundings
from cmr_monitor_callbacks.answers import Answers, monitor_of
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
)
from cmr_monitor_callbacks.errors import named_arguments
from cmr_monitor_callbacks.monitor import CMRPerformanceMonitor
from cmr_monitor_callbacks.recording.batches import batch_shape
from cmr_monitor_callbacks.recording.cells import anything_compiled
from cmr_monitor_callbacks.recording.phases import StepTimer
from cmr_monitor_callbacks.sinks import TensorBoardSink
from cmr_monitor_callbacks.windows import DEFAULT_WINDOW

logger = logging.getLogger(__name__)
STATE_FILE: Final = "cmr_monitor.pt"
"""In a checkpoint's folder: what the monitor goes on from."""
Settings = Mapping[str, Any] | None


class CMRTrainerCallback(Answers, TrainerCallback):
    """Watches the memory of a model while Hugging Face's Trainer trains it.

    Numbers go to TensorBoard in ``<output_dir>/runs/cmr_monitor`` and to the history in
    ``<output_dir>/history.sqlite``; evaluation during training is kept apart. A checkpoint holds
    the monitor's totals beside the Trainer's own files. The first step is 0, as everywhere in this
    package, where the Trainer calls it 1.

    Args:
        monitoring: what is collected and how often (`MonitoringConfig`); a window is
            ``logging_steps`` long where that is a number of steps.
        alerts: what counts as wrong and who is told (`AlertConfig`).
        probes: how numbers leave the model (`ProbesConfig`).
        history: how much is kept of the windows (`HistoryConfig`).
        profiling: which steps are profiled in detail, and how (`ProfilingConfig`).
        resources: what is sampled of the machine (`ResourcesConfig`).
        tensorboard: whether to write event files.
        monitor: a monitor made elsewhere, with its own settings.

    Raises:
        ConfigError: a setting is wrong; the message names the field, the value and what is allowed.

    >>> callback = CMRTrainerCallback(monitoring={"log_every_n_steps": 10})
    >>> callback.health.score
    100.0
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
        tensorboard: bool = True,
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
        self._profiler = self.monitor.profiler
        self._tensorboard = tensorboard
        self._now = self.monitor.clock.monotonic
        self._timer = StepTimer()
        self._writer: SummaryWriter | None = None
        self._sink: TensorBoardSink | None = None
        self._handles: list[Any] = []
        self._in_batch = self._gate_closed = False
        self._asked: set[str] = set()
        self._counts_batches = self.monitor.config.watches_component("model")

    # -- start and end ----------------------------------------------------------------------

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach to the model, go on from a checkpoint, open the files."""
        assert model is not None
        self._leave("interrupted")  # a training that raised did not say that it is over
        monitor = self.monitor
        monitor.start_over()
        self._timer, self._in_batch, self._asked = StepTimer(), False, set()
        monitor.join_ranks()
        found = monitor.attach(model)
        self._timer = monitor.step_timer()
        if state.global_step > 0:
            self._resume(args, state)
        with monitor.guard("on_train_begin"):
            monitor.place_cells(args.device)
            monitor.agree_on_layers()
            monitor.window_steps = (
                monitor.config.log_every_n_steps or _logging_steps(args) or DEFAULT_WINDOW
            )
            self._open(args)
        monitor.on_decision = lambda kind, reason: self._asked.add(kind)
        self._profiler.begin_run()
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, always_call=True),
        ]
        text = monitor.describe()
        if args.process_index == 0 and (text or not found):
            logger.info("CMRTrainerCallback watches %s:\n%s", type(model).__name__, text)

    def _open(self, args: TrainingArguments) -> None:
        monitor, folder = self.monitor, Path(str(args.output_dir))
        monitor.open_history(folder, args.process_index, args.world_size)
        monitor.resources.start(folder, args.device)
        around = Surroundings(folder=folder, run=folder.name)
        if args.process_index > 0:
            monitor.alerts.tells = False
        elif self._tensorboard:
            self._writer = SummaryWriter(str(folder / "runs" / "cmr_monitor"))
            self._sink = TensorBoardSink(self._writer)
            monitor.sinks += [self._sink]
            around = Surroundings(folder, add_text=self._writer.add_text, run=folder.name)
        vars(monitor.alerts.delivery.around).update(vars(around))

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        named = args.resume_from_checkpoint
        folders = [Path(named)] if isinstance(named, str) else []
        folders.append(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")
        file = next((f / STATE_FILE for f in folders if (f / STATE_FILE).is_file()), None)
        if file is None:
            logger.warning(
                "there is no %s in %s: totals begin at step %d",
                STATE_FILE,
                " or ".join(map(str, folders)),
                state.global_step,
            )
            self.monitor.current_step = state.global_step - 1
            return
        with self.monitor.guard(f"going on from {file}"):
            self.monitor.load_state_dict(torch.load(file, weights_only=True))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the monitor's totals beside the checkpoint that was just written."""
        if args.process_index > 0 or not self._handles:
            return
        self.monitor.mute("checkpoint")
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        with self.monitor.guard("on_save"):
            torch.save(self.monitor.state_dict(), folder / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last, partial window; let go of the model and of the files."""
        self._profiler.interrupt("the training ended")
        with self.monitor.guard("on_train_end"):
            self.monitor.flush()
        self.monitor.diagnose_at_end()
        self._leave("completed")

    def _leave(self, outcome: str) -> None:
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        monitor = self.monitor
        self._set_gate(True)
        monitor.detach()
        if monitor.stage != "train":
            monitor.enter_stage("train")
        monitor.leave_ranks()
        monitor.on_decision = None
        with monitor.guard("the end of training"):
            monitor.flush()
        monitor.alerts.delivery.close()
        monitor.close_history(outcome)
        vars(monitor.alerts.delivery.around).update(vars(Surroundings()))
        monitor.sinks = [sink for sink in monitor.sinks if sink is not self._sink]
        if self._sink is not None and self._writer is not None:
            with monitor.guard("TensorBoardSink"):
                self._sink.close()
                self._writer.close()
        self._sink = self._writer = None

    # -- each step --------------------------------------------------------------------------

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start timing a step; its batches were loaded before."""
        if self.monitor.stage != "train":  # an evaluation that did not come to its end
            self.monitor.enter_stage("train")
        self._set_gate(True)  # a backward may have failed
        self.monitor.refresh()
        if self._profiler.planner is not None:
            with self.monitor.guard("profiling"):
                if self._profiler.begin_step(state.global_step):
                    self.monitor.mute("profile")
        self._begin_batch()

    def _begin_batch(self) -> None:
        self._timer.batch_start(self._now())
        self._in_batch = True

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if torch.compiler.is_compiling():
            return
        if not module.training:
            self._evaluates()
            if self.monitor.stage != "train":
                self.monitor.begin_batch()
        elif self._in_batch and self._counts_batches:
            self._timer.holds(*batch_shape(kwargs or args))

    def _after_forward(self, module: nn.Module, *args: Any) -> None:
        if not torch.compiler.is_compiling() and self._in_batch and module.training:
            if anything_compiled():  # it is not counted in a backward, where it runs again
                self._set_gate(False)
            self._timer.before_backward(self._now())

    def _set_gate(self, is_open: bool) -> None:
        if is_open == self._gate_closed:
            self._gate_closed = not is_open
            self.monitor.set_gate(is_open)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A batch of an accumulated step is over, and the next one begins."""
        now = self._now()
        self._set_gate(True)
        self._timer.batch_end(now)
        self._timer.resume(now)
        self._begin_batch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The backward has ended, clipping included."""
        now = self._now()
        self._set_gate(True)
        self._timer.after_backward(now)
        self._timer.before_optimizer(now)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer has stepped."""
        self._timer.after_optimizer(self._now())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step, and end the window if that is due."""
        entered = self._now()
        self._timer.batch_end(entered)
        self._in_batch = False
        try:
            with self.monitor.guard("on_step_end"):
                self.monitor.record_step(*self._timer.take())
                if self._profiler.planner is not None:
                    self._profiler.end_step(state.global_step - 1)
                self.monitor.step(state.global_step - 1)
        finally:
            self._timer.left_hook(entered, self._now())
        control.should_training_stop |= "stop" in self._asked
        control.should_save |= "checkpoint" in self._asked
        self._asked.clear()
        if control.should_evaluate:
            self._evaluates()

    # -- evaluation during training -----------------------------------------------------------

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation may follow."""
        if control.should_evaluate:
            self._evaluates()

    def _evaluates(self) -> None:
        if self._handles and self.monitor.stage == "train":
            self._timer.pause()
            with self.monitor.guard("the start of an evaluation"):
                self.monitor.enter_stage("val")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation's numbers are logged once."""
        if self._handles:
            with self.monitor.guard("on_evaluate"):
                self.monitor.leave_stage(state.global_step - 1)
            self._timer.resume(self._now())


def _logging_steps(args: TrainingArguments) -> int:
    """Steps between two logs; 0 where they are no number of steps."""
    by_steps = str(getattr(args.logging_strategy, "value", args.logging_strategy)) == "steps"
    steps = args.logging_steps
    return int(steps) if by_steps and steps >= 1 else 0
