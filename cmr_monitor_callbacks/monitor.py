"""The monitor: what a user attaches to a model, drives and asks.

It knows nothing of Lightning: `CMRMonitorCallback` drives it through a Trainer, a plain loop or a
notebook drives it by hand. What it is made of is in ``windows``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from torch import nn

from cmr_monitor_callbacks.alerts import Alert, HealthChange
from cmr_monitor_callbacks.catalogue import CUSTOM
from cmr_monitor_callbacks.clock import Clock, SystemClock
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
    SilenceConfig,
    parse,
)
from cmr_monitor_callbacks.errors import CMRMonitorError, named_arguments
from cmr_monitor_callbacks.health import HealthReport, Transition
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.locks import locked
from cmr_monitor_callbacks.overhead import overhead_of
from cmr_monitor_callbacks.recording.phases import StepTimer
from cmr_monitor_callbacks.reports import as_html, report_of, run_summary
from cmr_monitor_callbacks.sinks import Sink
from cmr_monitor_callbacks.snapshot import Over, Snapshot
from cmr_monitor_callbacks.windows import Parts, Settings, Windows

_MOST_HELD = 1000
"""Steps whose events may wait in memory to be worked out."""


class CMRPerformanceMonitor:
    """Watches a memory-augmented model: attach, step, read ``snapshot`` and ``health``.

    Args:
        config: what is collected and how often; a `MonitoringConfig` or a mapping.
        alert_config: what counts as wrong and who is told; an `AlertConfig` or a mapping.
        model: attached at once, if given.
        probes: how numbers leave the model; a `ProbesConfig` or a mapping.
        history: how much is kept of the windows; a `HistoryConfig` or a mapping.
        profiling: what a detailed profile holds, and when; a `ProfilingConfig` or a mapping.
        resources: what is sampled of the machine; a `ResourcesConfig` or a mapping.
        clock: where time comes from; the machine's own by default.

    Raises:
        ConfigError: a setting is wrong; the message names field, value and what is allowed.

    >>> from cmr_monitor_callbacks import CMRProbe
    >>> model = nn.Linear(2, 2)
    >>> model.probe = CMRProbe(4)
    >>> monitor = CMRPerformanceMonitor({"log_every_n_steps": 1}, model=model)
    >>> with monitor.track_performance():
    ...     model.probe.capture(attempted=52, captured=50, stored=45)
    >>> monitor.snapshot.value("storage_efficiency", layer=4)
    0.9
    >>> monitor.detach()
    """

    @named_arguments
    def __init__(
        self,
        config: MonitoringConfig | Mapping[str, Any] | None = None,
        *,
        alert_config: AlertConfig | Mapping[str, Any] | None = None,
        model: nn.Module | None = None,
        probes: ProbesConfig | Mapping[str, Any] | None = None,
        history: HistoryConfig | Mapping[str, Any] | None = None,
        profiling: ProfilingConfig | Mapping[str, Any] | None = None,
        resources: ResourcesConfig | Mapping[str, Any] | None = None,
        clock: Clock | None = None,
    ) -> None:
        settings = Settings.parse(config, alert_config, probes, history, profiling, resources)
        self.config = settings.monitoring
        self.alert_config = settings.alerts
        self.probes_config, self.history_config = settings.probes, settings.history
        self.profiling_config, self.resources_config = settings.profiling, settings.resources
        self.clock: Clock = clock or SystemClock()
        parts = self._parts = Parts(settings, self.clock)
        self._windows = Windows(parts)
        # each is asked for in every step, or often
        self.alerts, self.resources, self.profiler = parts.alerts, parts.resources, parts.profiler
        self.lock = parts.ledger.lock
        """Held while a window ends: steps, and questions, may come from several threads."""
        self.note_error = parts.out_of_memory.note
        """Told an error that ends a step; one that says that memory ran out is looked into."""
        self._ledger, self._listening, self._ranks = parts.ledger, parts.listening, parts.ranks
        self._sampling, self._numbers = parts.sampling, self._windows.numbers
        self.step_under_way = parts.position.under_way
        """Says which step that is."""
        self._steps = parts.ledger.recorder.steps
        self._times_steps = "timing" in parts.kinds
        self._counts_batches = "model" in parts.kinds
        self._batches = 0
        """Begun in the stage that is recorded now, if that is not training."""
        self._held = 0
        self._live = self.config.enable_real_time
        self._last_end: float | None = None
        if model is not None:
            self.attach(model)

    # -- attaching --------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> int:
        """Listen to the probes of a model, or watch it; what is attached already stays so.

        Returns:
            number of probes and of objects of the model that this monitor listens to.

        Raises:
            LayerError: two layers would be shown under one name.
        """
        found = self._listening.attach(model, self)
        with self.guard("looking at the model for the diagnostics"):
            self._parts.examiner.attached(model, self.current_step, self._windows.numbers.of_now)
        return found

    def refresh(self) -> None:
        """Before a step: notice objects of the model that were replaced since the last."""
        listening, step = self._listening, self._parts.position.step + 1
        self._numbers.begin_step()
        if self._sampling.every > 1 or not listening.timed:
            listening.time_calls(on=self._sampling.takes(step))
        if listening.watching:
            listening.refresh()
            listening.look_closely(on=self._windows.takes_closely(step))

    def begin_batch(self) -> None:
        """Before a batch of a stage other than training: some are timed, see ``sample_every``."""
        batch, self._batches = self._batches, self._batches + 1
        self._listening.time_calls(on=self._parts.sampling.takes_batch(batch))
        self._listening.look_closely(on=batch == 0)

    def take_outputs(self, outputs: Any) -> None:
        """Note the statistics that a training step returned, as numbers; nothing is kept alive."""
        if self._listening.watching:
            self._listening.take_outputs(outputs)

    def describe(self) -> str:
        """What each number comes from, in lines; '' where nothing is watched."""
        return self._windows.finisher.describe()

    def step_timer(self) -> StepTimer:
        """A stopwatch for a step's phases, by the clock that the attached model is timed by."""
        return self._listening.timing.step_timer() if self._times_steps else StepTimer()

    def place_cells(self, device: torch.device) -> None:
        """Make room for numbers that live on a device, before the first compiled call."""
        self._listening.place_cells(device)

    def set_gate(self, is_open: bool) -> None:
        """Let compiled code count (forward), or not (backward, where it runs as a recompute)."""
        self._ledger.cells.set_gate(is_open)

    @property
    def stage(self) -> str:
        """The stage that is recorded now."""
        return self._ledger.stage

    def detach(self) -> None:
        """Stop listening and sampling; the model is as it was before."""
        self.profiler.interrupt("the model was let go")
        self._listening.poll(begun=False)
        with self.guard("looking at the model for the diagnostics"):
            self._parts.examiner.end()
        self._listening.detach()
        self.resources.stop()

    # -- recording --------------------------------------------------------------------------

    def record_step(
        self,
        step: float,
        wait: float | None,
        forward: float | None,
        backward: float | None,
        optimizer: float | None,
        monitor: float | None,
        passes: int,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Add a step; times in seconds, as in ``catalogue.RECORDS["timing"]``."""
        self.resources.beats += 1
        self._held += 1
        if self._held >= _MOST_HELD:  # a long validation, or a very long window
            self._held = 0
            self._ledger.fold()
            self._parts.fold_tracked()
        if self._times_steps:
            self._steps.extend(
                (step, wait, forward, backward, optimizer, monitor, passes, samples, tokens)
            )
        elif self._counts_batches:
            self._steps.extend((*[None] * 6, passes, samples, tokens))

    def record_capture(
        self,
        layer_idx: Hashable,
        states_stored: int,
        capture_time: float | None,
        *,
        states_captured: int | None = None,
        states_attempted: int | None = None,
    ) -> None:
        """One capture call, told by code that holds no probe.

        Args:
            layer_idx: id of the layer.
            states_stored: states that the buffer took.
            capture_time: duration in seconds.
            states_captured: states taken; no data where omitted.
            states_attempted: states tried; no data where omitted.
        """
        self._parts.hearsay.capture(
            layer_idx,
            states_stored,
            capture_time,
            states_captured=states_captured,
            states_attempted=states_attempted,
        )

    def record_reconstruction(
        self, layer_idx: Hashable, memories_used: int, reconstruction_time: float | None
    ) -> None:
        """One reconstruction call, told by code that holds no probe.

        Args:
            layer_idx: id of the layer.
            memories_used: memories read; 0: it did nothing.
            reconstruction_time: duration in seconds.
        """
        self._parts.hearsay.reconstruction(layer_idx, memories_used, reconstruction_time)

    def track_metric(self, name: str, value: Any, timestamp: float | None = None) -> None:
        """A number of your own by name: shown, kept and judged beside the monitor's.

        Any thread may call it, many times in a window or not at all. A window has the mean of its
        samples over all ranks, the run that of all samples. It costs one ``list.extend`` and a
        reading of the clock: under half a microsecond.

        A value that is no finite number is left out, counted (``cmr_monitor/invalid_samples``) and
        said once. So is a tensor on a device, for reading it would wait for the device: give its
        ``.item()`` where that may be.

        Args:
            name: such as ``"grad_norm"``; not that of a metric. Tag ``cmr_custom/grad_norm``, in
                rules ``custom/grad_norm``. A run has 64 at most; what has another is counted as a
                value is that is not taken.
            value: a number, or a tensor of no dimension on the host.
            timestamp: when it was measured, seconds since the Unix epoch; None: now. The sample
                with the greatest is the last.

        Raises:
            ConfigError: the name is none, or a metric's; the message says what feeds that.

        >>> monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
        >>> with monitor.track_performance():
        ...     monitor.track_metric("grad_norm", 1.5)
        ...     monitor.track_metric("grad_norm", 2.5)
        >>> monitor.snapshot.value("grad_norm")
        2.0
        """
        self._parts.tracking.add(name, value, timestamp)

    @contextmanager
    def track_performance(self) -> Iterator[CMRPerformanceMonitor]:
        """One step of a plain loop; yields the monitor."""
        self.refresh()
        if not self.resources.running:
            self.resources.start()
        start, timing = self.clock.monotonic(), self._listening.timing
        wait = None if self._last_end is None else start - self._last_end
        moment = timing.begin()
        with self._parts.out_of_memory.noticed():
            yield self
        self._last_end = self.clock.monotonic()
        seconds = self._last_end - start
        forward, entered = timing.end(moment, seconds), self._listening.entered
        self.record_step(seconds, wait, forward, None, None, None, 1, *entered)
        self.step()

    # -- windows and stages -----------------------------------------------------------------

    @property
    def current_step(self) -> int:
        """The last step that is over; -1: none is."""
        return self._parts.position.step

    @current_step.setter
    def current_step(self, step: int) -> None:
        self._windows.go_to(step)

    @property
    def windows(self) -> int:
        """How many were finished."""
        return self._parts.position.windows

    @property
    def window_steps(self) -> int:
        """Steps of a window, where windows are not in seconds."""
        return self._windows.steps

    @window_steps.setter
    def window_steps(self, steps: int) -> None:
        self._windows.steps = steps

    def step(self, step: int | None = None) -> None:
        """A step of training is over; ends the window if that is due.

        Args:
            step: its number, the first being 0; default: one more than the last.
        """
        self._windows.step(step)

    def close_window(self) -> None:
        """End the training window in hand; its snapshot comes as soon as its numbers are here."""
        self._windows.close()

    def peek(self) -> tuple[list[str], list[float]]:
        """Tags and values of the whole model before the first window has ended.

        With several ranks the window ends here, for all ranks must see the same numbers.
        """
        return self._windows.peek()

    def settle(self) -> None:
        """Publish a window that has ended, waiting for its numbers; on all ranks at once."""
        self._windows.settle()

    def shown(self) -> tuple[list[str], list[float]]:
        """Tags and values of the whole model as they were shown last; the score from the start."""
        return self._parts.outlet.shown

    def flush(self) -> None:
        """End a partial window, if there is one, and have every sink write what is pending.

        With several ranks all of them call it, at the same step.
        """
        self._windows.flush()

    def mute(self, why: str) -> None:
        """What makes the times of the window in hand not those of training: a checkpoint, say."""
        self._windows.mute(why)

    def enter_stage(self, stage: str) -> None:
        """What is recorded from now on belongs to ``stage``; on all ranks at once.

        Args:
            stage: ``train``, ``val``, ``test``, ``predict``, or ``sanity``, which is thrown away.
        """
        self._windows.enter_stage(stage)
        self._batches = 0

    def leave_stage(self, step: int) -> None:
        """End a stage other than training: its numbers are logged once, and training goes on.

        With several ranks all of them call it at once, and wait for each other.

        Args:
            step: where on the x-axis they are logged.
        """
        self._windows.leave_stage(step)

    # -- history ----------------------------------------------------------------------------

    def open_history(self, folder: Path | None, rank: int = 0, world_size: int = 1) -> None:
        """Say where the history's file lies, before the first window.

        Args:
            folder: of the run; None: windows are kept in memory.
            rank: of this process.
            world_size: processes of the run.
        """
        self._parts.keeper.open(folder, rank, world_size)
        self.profiler.place(folder, rank)
        self._parts.out_of_memory.place(folder, rank)

    def close_history(self, outcome: str) -> None:
        """Write what is pending and end the session; a later window begins another one.

        Args:
            outcome: how the run ended, for people.
        """
        if self._parts.examiner.is_attached:  # a plain loop; a Trainer's model was let go before
            self.diagnose_at_end()
        self._windows.finisher.end_history(outcome)

    def keep_alert(self, transition: Transition) -> None:
        """Keep what became of an alert between windows; from any thread, on rank 0."""
        self._parts.keeper.alerts([transition])

    def flush_history(self) -> None:
        """Wait, for some seconds at most, until all that is known has been written."""
        self._parts.keeper.flush()

    @property
    def history(self) -> RunHistory:
        """What is kept of the windows until now: numbers, alerts, errors; see `RunHistory`.

        Raises:
            HistoryError: nothing is kept, or this is not rank 0.
        """
        return self._parts.keeper.read()

    def generate_report(self, time_range: str | float | None = "1h") -> dict[str, Any]:
        """A report on the newest part of the run.

        Args:
            time_range: before the newest window, such as ``"30m"`` or seconds; None: all that is
                kept.

        Returns:
            ``timestamp``, ``system_health``, ``performance_metrics`` and ``component_status``, and
            beside them what `docs/reports.md` lists; JSON can hold it.

        Raises:
            HistoryError: nothing is kept (``history.enabled`` is false), no window has ended yet,
                or this is not rank 0.
            ValueError: the range cannot be read.

        >>> monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
        >>> with monitor.track_performance():
        ...     pass
        >>> monitor.generate_report()["system_health"]
        'healthy'
        """
        diagnostics = self.run_diagnostics() if self._parts.examiner.has_model else None
        with self.history as history:
            return report_of(history, time_range, now=self.clock.wall(), diagnostics=diagnostics)

    def run_diagnostics(self) -> dict[str, Any]:
        """Look at the whole: the model's memory, its hooks, what was counted and what it means.

        It costs what copying a sample of the entries from their device costs; nothing of the model
        is changed, no random number is drawn. Several ranks may each call it: it runs no
        collective, and looks at what this process holds.

        Returns:
            ``component_health``, ``hook_analysis``, ``memory_analysis`` and more such parts, each
            with ``status`` and ``findings``; all ``findings``, the worst first; and
            ``not_available``, what could not be looked at and why. JSON can hold it. See
            docs/diagnostics.md.

        >>> monitor = CMRPerformanceMonitor(model=nn.Linear(2, 2))
        >>> [finding["name"] for finding in monitor.run_diagnostics()["findings"]]
        ['no_memory_found']
        >>> monitor.detach()
        """
        return self._diagnose(self._windows.now())

    def _diagnose(self, snapshot: Snapshot) -> dict[str, Any]:
        try:
            history: RunHistory | None = self._parts.keeper.read()
        except HistoryError:
            history = None
        with history or nullcontext():
            found = self._parts.examiner.examine(snapshot, history, self.health, self.config.layers)
        self._parts.keeper.diagnostics(found)
        return found

    def diagnose_at_end(self) -> None:
        """The training is over: run the diagnostics for the history, where ``at_end`` says so."""
        parts = self._parts
        new = self.current_step >= 0 and parts.examiner.looked_at != self.current_step
        if self.config.diagnostics.at_end and parts.keeper.keeps and new:
            with self.guard("the diagnostics"):
                with self.lock:  # the last window is over, and polling would begin one
                    snapshot = self._windows.numbers.of_now()
                self._diagnose(snapshot)

    def measure_hooks(self) -> AbstractContextManager[Any]:
        """Time the model's hooks while it is called inside; `run_diagnostics` then shows it."""
        return self._parts.examiner.measure_hooks(self.clock.monotonic)

    def compare_memory(
        self, model: nn.Module, loss_of: Callable[[Any], float]
    ) -> tuple[float, float] | None:
        """Take the loss of a batch with the memory and without it, on copies of the model.

        Args:
            model: nothing of it is changed: no buffer, counter, mode, gradient or random state.
            loss_of: gives the loss of the model that it is given, on the same batch each time.

        Returns:
            the loss with memory and without, which are logged as ``loss_with_memory`` and
            ``loss_without_memory`` of the stage; None where the memory is empty, or where the model
            cannot be compared: then `run_diagnostics` says why.
        """
        return self._parts.examiner.compare(model, loss_of, self)

    @property
    def compares_memory_every(self) -> int:
        """Every how many validation batches `compare_memory` is due; 0: never."""
        return self._parts.examiner.compares_every

    def mark(self, label: str) -> None:
        """Keep a note at this step: it is shown in reports.

        Args:
            label: such as ``"learning rate lowered"``.
        """
        self._parts.keeper.mark(label, self.current_step)

    # -- the other ranks --------------------------------------------------------------------

    def join_ranks(self) -> None:
        """Find the other ranks of this job; all of them call it at once, before training."""
        self._windows.together.join()

    @locked
    def agree_on_layers(self) -> None:
        """Agree on the layers of all ranks; all of them call it at once, when probes are found."""
        self._windows.together.agree()

    def leave_ranks(self) -> None:
        """Let the others go and wait for none of them; what they did not get is dropped."""
        self._windows.leave_ranks()

    @property
    def on_decision(self) -> Callable[[str, str], None] | None:
        """Told ``stop`` or ``checkpoint`` and the reason, on all ranks at the same step."""
        return self._windows.decisions.carry_out

    @on_decision.setter
    def on_decision(self, carry_out: Callable[[str, str], None] | None) -> None:
        self._windows.decisions.carry_out = carry_out

    def request_stop(self, reason: str) -> None:
        """Ask all ranks to stop training: they do at the same step, after the next window."""
        self._windows.decisions.votes.ask("stop", reason)

    def request_checkpoint(self, reason: str) -> None:
        """Ask all ranks for a checkpoint: they make it at the same step, after the next window."""
        self._windows.decisions.votes.ask("checkpoint", reason)

    def set_alert(
        self,
        metric_name: str,
        condition: str | Callable[[float], bool],
        callback: Callable[[Alert], Any],
    ) -> str:
        """Have a function told when a metric meets a condition, and when it does so no more.

        It is judged at the end of each window; the function runs on the training thread, on rank 0
        alone. Escalation and the cooldown do not hold it back. Any thread may call this, and
        `acknowledge` and `silence`.

        Args:
            metric_name: any name of a metric, or ``custom/`` and a name of `track_metric`; without
                that word once it was tracked.
            condition: a comparison with a number, such as ``"> 0.1"``, or a function of the value.
            callback: told once when the alert starts firing and once when it ends.

        Returns:
            name of the rule, whose severity is warning.

        Raises:
            ConfigError: there is no such metric, or the condition cannot be read.

        >>> monitor = CMRPerformanceMonitor()
        >>> monitor.set_alert("avg_latency", "> 0.1", print)
        'avg_latency:>'
        """
        if metric_name in self._parts.tracking.names:
            metric_name = CUSTOM + metric_name
        return self.alerts.watch(metric_name, condition, callback)

    def acknowledge(
        self, rule: str, layer: Hashable | None = None, rank: int | None = None
    ) -> None:
        """Say that somebody deals with an alert: it is neither raised nor told of again.

        Where no alert of the rule fires, the log says so when the run takes it.

        Args:
            rule: name of the rule, as a glob.
            layer: of the alert, as a glob; None: any.
            rank: likewise.

        Raises:
            ConfigError: there is no such rule; the message names the nearest.
        """
        self.alerts.check_rule(rule)
        given = [None if value is None else str(value) for value in (layer, rank)]
        self._edit("acknowledge", rule=rule, layer=given[0], rank=given[1])

    def silence(self, silence: SilenceConfig | Mapping[str, Any]) -> None:
        """Say that alerts are known: nobody is told that they fire.

        Args:
            silence: which, and how long; a `SilenceConfig` or a mapping.

        Raises:
            ConfigError: a field is wrong.
        """
        known = parse(SilenceConfig, silence, "silence")
        self._edit("silence", **known.model_dump(mode="json"))

    def _edit(self, kind: str, **what: Any) -> None:
        """With several ranks rank 0's word counts, at the next window, on all of them."""
        self.alerts.ask(kind, **what)
        if self._ranks.exchange is None and self.alerts.may_change:
            self._windows.finisher.apply_edits(self.alerts.edits())

    # -- reading ----------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The newest of training."""
        return self._windows.snapshot

    @property
    def snapshots(self) -> dict[str, Snapshot]:
        """The last of each other stage: ``val``, ``test``, ``predict``."""
        return self._windows.snapshots

    @property
    def health(self) -> HealthReport:
        """The newest verdict."""
        return self.alerts.report

    def summary(self, files: str = "") -> RenderableType:
        """A summary for the terminal: ``rich.print(monitor.summary())``.

        Args:
            files: where the run's files are; empty: not said.
        """
        return run_summary(self.snapshot, self.health, list(self.alerts.transitions), files)

    def _repr_html_(self) -> str:
        """The summary, where a notebook shows the monitor."""
        return as_html(self.summary())

    @property
    def health_changes(self) -> tuple[HealthChange, ...]:
        """When the status of a component or of the system became another, the newest last."""
        return tuple(self.alerts.changes)

    def get_health_status(self) -> dict[str, Any]:
        """The newest verdict as plain data: score, status, color, components, firing alerts."""
        report = self.health
        return {
            "score": report.score,
            "status": report.status.value,
            "color": report.status.color,
            "components": report.component_status(),
            "firing": [state.to_dict() for state in report.firing],
        }

    @property
    def is_live(self) -> bool:
        """Whether live statistics and the exporter are allowed."""
        return self._live

    def enable_real_time_monitoring(self) -> None:
        """Allow `get_live_stats` and the exporter, whatever ``enable_real_time`` says."""
        self._live = True

    def get_live_stats(self, over: Over = "run") -> dict[str, Any]:
        """Everything recorded in this process until now, the window begun included.

        Returns:
            `Snapshot.to_dict` of this moment, beside ``health`` (see `get_health_status`) and
            ``overhead`` (see `overhead`). Its ``custom`` has what `track_metric` was given.

        Raises:
            CMRMonitorError: ``monitoring.enable_real_time`` is false.
        """
        if not self._live:
            raise CMRMonitorError(
                "live statistics are off; set monitoring.enable_real_time to true, or call "
                "enable_real_time_monitoring()"
            )
        snapshot = self._windows.now()
        about = {"health": self.get_health_status(), "overhead": self.overhead()}
        return {**snapshot.to_dict(over), **about}

    def overhead(self) -> dict[str, Any]:
        """What the monitor costs this process, as plain data; JSON can hold it.

        Returns:
            ``fraction`` of the wall time in the last window (None: not known), ``budget``,
            ``adaptive``, ``sample_every`` (of the step under way), and ``seconds`` by part:
            ``hooks`` (the callback's own at the end of steps, over the run up to the last window),
            ``window_end`` (of these the ends of windows), ``rules`` (of these judging rules and
            telling of alerts), ``history`` (writing windows; on another thread where there is a
            file) and ``resources`` (sampling the machine, on another thread). What probe calls and
            watched calls take is in none of them.

        >>> monitor = CMRPerformanceMonitor({"sample_every": 10})
        >>> monitor.overhead()["sample_every"], monitor.overhead()["seconds"]["hooks"]
        (10, 0.0)
        """
        seconds = {
            "window_end": self._windows.seconds,
            "rules": self._windows.finisher.judging,
            "history": self._parts.keeper.seconds,
            "resources": self.resources.seconds,
        }
        rank = self._windows.together.rank
        return overhead_of(self.snapshot, self._parts.sampling, seconds, rank)

    def enable_profiling(self) -> None:
        """Allow `profile_execution`, and the profiles of ``profiling``, whatever was set."""
        self.profiler.enable()

    @contextmanager
    def profile_execution(self) -> Iterator[CMRPerformanceMonitor]:
        """Profile what is done within, in detail; yields the monitor.

        An exception ends the profile and goes on; what was seen until then is kept. Where another
        profiler is on nothing is profiled, and `get_profile_results` says so.

        Raises:
            CMRMonitorError: profiling is off, or this is within another such block.
        """
        with self.profiler.execution(self.current_step + 1):
            yield self

    def get_profile_results(self) -> dict[str, Any]:
        """What the last profile says, as plain data: times in seconds, memory in bytes.

        Returns:
            ``sections`` by name, ``layers``, ``operators`` (the slowest first), ``memory`` by
            device, ``gpu``, ``bottleneck`` (with its ``sentence``), and ``about`` the profile. What
            is not known is None: ``gpu["busy_share"]`` without a GPU, for one.

        Raises:
            CMRMonitorError: no profile was made; the message says what to call, or why not.
        """
        return self.profiler.get_results()

    def get_stats(self, over: Over = "run") -> dict[str, Any]:
        """The newest snapshot's `Snapshot.to_dict`."""
        return self.snapshot.to_dict(over)

    # -- state ------------------------------------------------------------------------------

    @locked
    def reset_metrics(self) -> None:
        """Forget every number and alert; probes stay attached."""
        self._windows.forget()
        self._last_end = None

    def start_over(self) -> None:
        """Forget every number, alert and layer, as for another model; let go of this one first."""
        self.detach()
        self._ledger.forget_layers()
        self._parts.tracking.forget_names()
        self.reset_metrics()

    def state_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers: run totals, the window begun, and the open alerts.

        With several ranks a window under way is waited for, but no collective is begun; the totals
        end with the last window that all ranks put together.
        """
        return self._windows.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, on all ranks with rank 0's state.

        Steps between the last window that several ranks put together and the checkpoint are in
        nobody's totals; it is said which.
        """
        self._last_end = None
        self._windows.load(state)

    # -- what goes wrong --------------------------------------------------------------------

    @property
    def failures(self) -> int:
        """The monitor's own failures."""
        return self._parts.failures.count

    @property
    def error_log(self) -> deque[str]:
        """Errors and rejected values as text, the newest last."""
        return self._parts.failures.log

    @property
    def sinks(self) -> list[Sink]:
        """Where numbers go."""
        return self._parts.outlet.sinks

    @sinks.setter
    def sinks(self, sinks: list[Sink]) -> None:
        self._parts.outlet.sinks = sinks

    def guard(self, where: str) -> AbstractContextManager[None]:
        """The monitor's own failure must not end training: count it, say it once, go on."""
        return self._parts.guard(where)

    def note_failure(self, where: str, error: Exception) -> None:
        """Count a failure of the monitor itself.

        Raises:
            MonitorFailure: ``on_monitor_error`` is ``raise``.
        """
        self._parts.failures.note(where, error)
