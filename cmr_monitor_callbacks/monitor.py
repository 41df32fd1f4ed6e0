"""The monitor: ties probes, ledger, alerts and sinks together.

It knows nothing of Lightning: `CMRMonitorCallback` drives it through a Trainer, a plain loop or a
notebook drives it by hand.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from torch import nn

from cmr_monitor_callbacks.alerts import Alert, AlertDesk, HealthChange
from cmr_monitor_callbacks.catalogue import COMPONENTS, CUSTOM
from cmr_monitor_callbacks.clock import Clock, SystemClock
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
    SilenceConfig,
    as_plain,
    parse,
)
from cmr_monitor_callbacks.custom import Tracked, from_table
from cmr_monitor_callbacks.distributed import (
    LAG,
    Exchanged,
    ExchangeError,
    Header,
    RankSession,
    Votes,
    moved,
    reasons,
    steps_between,
)
from cmr_monitor_callbacks.errors import CMRMonitorError, CriticalAlert, LayerError
from cmr_monitor_callbacks.examining import Examiner
from cmr_monitor_callbacks.failures import Failures
from cmr_monitor_callbacks.health import HealthReport, Transition
from cmr_monitor_callbacks.history import HistoryError, Keeper, RunHistory
from cmr_monitor_callbacks.locks import locked
from cmr_monitor_callbacks.overhead import overhead_of
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.probes.listening import Listening
from cmr_monitor_callbacks.profiling import Profiler, check_profiling
from cmr_monitor_callbacks.recording.ledger import Ledger, Reading
from cmr_monitor_callbacks.recording.own import OwnNumbers
from cmr_monitor_callbacks.recording.recorder import InvalidSample
from cmr_monitor_callbacks.recording.stage import ClosedWindow, StageStatistics
from cmr_monitor_callbacks.recording.tracking import Tracking
from cmr_monitor_callbacks.reports import as_html, report_of, run_summary
from cmr_monitor_callbacks.resources import ResourceWatch
from cmr_monitor_callbacks.sampling import Sampling
from cmr_monitor_callbacks.sinks import Outlet, Sink
from cmr_monitor_callbacks.snapshot import Over, Snapshot

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = 50
"""Steps in a window where nobody says."""
STATE_VERSION = 1
_MOST_HELD = 1000
"""Steps whose events may wait in memory to be worked out."""
Tracks = tuple[Mapping[str, Tracked], Mapping[str, Tracked]]
"""What users track: of a window, and of the run."""
_LAST_WAIT = 1.0
"""Seconds that a window under way is waited for when this process leaves the others."""


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
        self.config = parse(MonitoringConfig, config, "monitoring")
        self.alert_config = parse(AlertConfig, alert_config, "alerts")
        self.probes_config = parse(ProbesConfig, probes, "probes")
        self.history_config = parse(HistoryConfig, history, "history")
        self.profiling_config = parse(ProfilingConfig, profiling, "profiling")
        self.resources_config = parse(ResourcesConfig, resources, "resources")
        self.clock: Clock = clock or SystemClock()
        self.resources = ResourceWatch(self.resources_config, self.clock, self._step_under_way)
        self.window_steps = self.config.log_every_n_steps or DEFAULT_WINDOW
        self._interval = self.config.metric_collection_interval
        keep = self.config.max_history_size
        self.alerts = AlertDesk(
            self.alert_config,
            self.config.alert_thresholds,
            self.config.health_check_interval,
            keep,
        )
        self._failures = Failures(keep, raises=self.config.on_monitor_error == "raise")
        self.alerts.note = self._failures.note
        self.alerts.on_action = self._on_action
        self._outlet = Outlet(self.config, self.guard)
        settings = {
            "monitoring": self.config,
            "alerts": self.alert_config,
            "probes": self.probes_config,
            "history": self.history_config,
            "profiling": self.profiling_config,
            "resources": self.resources_config,
        }
        self._keeper = Keeper(
            self.history_config,
            keep,
            self.clock.wall,
            {name: as_plain(model) for name, model in settings.items()},
        )
        self._kinds = frozenset(name for name in COMPONENTS if self.config.watches_component(name))
        self._times_steps = "timing" in self._kinds
        self._ledger = Ledger(keep, self._note_invalid)
        self._steps = self._ledger.recorder.steps
        self.lock = self._ledger.lock
        """Held while a window ends: steps, and questions, may come from several threads."""
        self._tracking = Tracking(self.lock, self.clock.wall)
        self._listening = Listening(
            self._ledger,
            self._kinds,
            self.config.watches_layer,
            self.probes_config,
            self.clock.monotonic,
            self._failures,
            self._step_under_way,
            (self.record_capture, self.record_reconstruction),
        )
        rules = [rule.name for rule in self.alerts.rules]
        more = bool(self.alert_config.rules_file)
        enabled = check_profiling(self.config, self.profiling_config, rules, more)
        self.profiler = Profiler(
            self.profiling_config, enabled, self._listening, self.guard, self._keeper.mark
        )
        """Makes profiles; a loop of one's own has it begin and end steps."""
        self._sampling = Sampling(
            self.config.sample_every,
            adaptive=self.config.adaptive,
            budget=self.config.overhead_budget,
        )
        self._batches = 0
        """Begun in the stage that is recorded now, if that is not training."""
        self._examiner = Examiner(self.config.diagnostics, self._ledger, self._listening)
        self._live = self.config.enable_real_time
        self._held = 0
        self._ranks = RankSession(
            self.config.reduction, self.config.flat_up_to_ranks, self.config.reduction_timeout
        )
        self._rank = 0
        self._mutes: set[str]
        self._fatal: str
        self._edits: str
        self._own: OwnNumbers
        self._sent: Packed | None
        self._undecided: Exchanged | None
        self._votes: Votes
        self._next_end = 0
        self._window_ends: float
        self.snapshot: Snapshot
        self.on_decision: Callable[[str, str], None] | None = None
        """Told ``stop`` or ``checkpoint`` and the reason, on all ranks at the same step."""
        self._closed: ClosedWindow | None = None
        self._last_end: float | None = None
        self.current_step = -1
        self.windows = 0
        self.reset_metrics()
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
            self._examiner.attached(model, self.current_step, self._local_snapshot)
        return found

    def _begin_diagnostics(self) -> None:
        with self.guard("looking at the model for the diagnostics"):
            self._examiner.begin_again(self._local_snapshot)

    def refresh(self) -> None:
        """Before a step: notice objects of the model that were replaced since the last."""
        if self._own.since is None:
            self._own.begin(self.clock.monotonic(), self._ledger.events)
        self._listening.refresh()
        sampling, step = self._sampling, self.current_step + 1
        self._listening.time_calls(on=sampling.takes(step))
        if self._interval is None:
            closely = sampling.takes_last(step, self.window_steps)
        else:  # nobody knows which is the last
            closely = sampling.takes_first(step, self._window_begin)
        self._listening.look_closely(on=closely)

    def begin_batch(self) -> None:
        """Before a batch of a stage other than training: some are timed, see ``sample_every``."""
        batch, self._batches = self._batches, self._batches + 1
        self._listening.time_calls(on=self._sampling.takes_batch(batch))
        self._listening.look_closely(on=batch == 0)

    def take_outputs(self, outputs: Any) -> None:
        """Note the statistics that a training step returned, as numbers; nothing is kept alive."""
        self._listening.take_outputs(outputs)

    def describe(self) -> str:
        """What each number comes from, in lines; '' where nothing is watched."""
        return self._listening.automatic.describe(self._sampling.every)

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
            self._examiner.end()
        self._listening.detach()
        self.resources.stop()

    # -- recording --------------------------------------------------------------------------

    def record_step(
        self,
        step: float,
        wait: float | None,
        forward: float,
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
            self._fold_tracked()
        if self._times_steps:
            wall = step if wait is None else step + wait
            times = (step, wait, forward, backward, optimizer, monitor, passes)
            self._steps.extend((*times, samples, tokens, wall))

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
        told = self._listening.automatic.tells()
        if "calls" in told:
            return  # who tells of its calls is seen calling
        fields: tuple[Any, ...] = (states_attempted, states_captured, states_stored)
        if "capture" in told:
            fields = (None, None, None)
        self._record("capture", layer_idx, (*fields, capture_time, None))

    def record_reconstruction(
        self, layer_idx: Hashable, memories_used: int, reconstruction_time: float | None
    ) -> None:
        """One reconstruction call, told by code that holds no probe.

        Args:
            layer_idx: id of the layer.
            memories_used: memories read; 0: it did nothing.
            reconstruction_time: duration in seconds.
        """
        if "reconstruction" in self._listening.automatic.tells():
            return
        self._record("reconstruction", layer_idx, (memories_used, None, reconstruction_time))

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
        self._tracking.add(name, value, timestamp)

    def _fold_tracked(self) -> None:
        if self._ledger.stage == "sanity":  # it is thrown away
            return
        for sample in self._tracking.fold():
            self._ledger.invalid_samples += 1
            self._note_invalid(sample)

    def _record(self, kind: str, layer: Hashable, fields: tuple[Any, ...]) -> None:
        if kind in self._kinds and self.config.watches_layer(layer):
            slot = self._ledger.layout.column(layer)
            self._ledger.recorder.add_any(kind, slot, fields)

    @contextmanager
    def track_performance(self) -> Iterator[CMRPerformanceMonitor]:
        """One step of a plain loop; yields the monitor."""
        self.refresh()
        if not self.resources.running:
            self.resources.start()
        start = self.clock.monotonic()
        wait = None if self._last_end is None else start - self._last_end
        yield self
        self._last_end = self.clock.monotonic()
        seconds = self._last_end - start
        self.record_step(seconds, wait, seconds, None, None, None, 1)
        self.step()

    # -- windows and stages -----------------------------------------------------------------

    @locked
    def step(self, step: int | None = None) -> None:
        """A step of training is over; ends the window if that is due.

        Args:
            step: its number, the first being 0; default: one more than the last.
        """
        self.current_step = self.current_step + 1 if step is None else step
        if self._closed is not None or self._undecided is not None:
            self._publish_if_due()
        if self._interval is None:
            due = (self.current_step + 1) % self.window_steps == 0
        elif self._ranks.exchange is not None:
            due = self.current_step >= self._next_end
        else:
            due = self.clock.monotonic() - self._window_start >= self._interval
        if due:
            self.close_window()

    @locked
    def close_window(self) -> None:
        """End the training window in hand; its snapshot comes as soon as its numbers are here."""
        start = self.clock.monotonic()
        self._listening.poll()
        self._publish()
        self._fold_tracked()
        closed = self._ledger.close(self.current_step, self.clock.wall())
        self._sampling.window_every = self._sampling.every
        self._own.resources = self.resources.window()
        rate = self.alerts.rate(self.clock.wall())
        self._own.close(start, self._ledger.events, self._keeper.latency, rate)
        self._muted, self._mutes = bool(self._mutes), set()
        for request in self._keeper.take_requests():
            with self.guard("a request from outside"):
                self.alerts.ask(**request)
        self._edits = self.alerts.edits() if self._ranks.first else ""
        if self._ranks.exchange is not None:
            self._send(closed, start)
        else:
            self._apply_edits(self._edits)
            self._tracking.close()
            self._closed = closed
            if closed.ready:
                self._publish()
        self._sample_as_needed()
        self._window_start, self._window_begin = start, self.current_step
        with self.guard("looking at the memory's entries"):
            self._examiner.look(self.windows)
        self._own.processing_time = self.clock.monotonic() - start
        self._window_ends += self._own.processing_time

    def _sample_as_needed(self) -> None:
        """At a window's end, on all ranks: look less closely where the monitor takes too much."""
        made = self._sampling.change(self.current_step)
        if made is None:
            return
        if self._ranks.first:
            level = logging.WARNING if made.after > made.before else logging.INFO
            logger.log(level, "%s", made)
        self._keeper.mark(str(made), self.current_step)

    @locked
    def peek(self) -> tuple[list[str], list[float]]:
        """Tags and values of the whole model before the first window has ended.

        With several ranks the window ends here, for all ranks must see the same numbers.
        """
        if self._ranks.exchange is not None:
            self.close_window()
            self._publish()
            return self.shown()
        snapshot = self._snapshot_now()
        return self._outlet.whole(snapshot)

    @locked
    def settle(self) -> None:
        """Publish a window that has ended, waiting for its numbers; on all ranks at once."""
        self._publish()

    def shown(self) -> tuple[list[str], list[float]]:
        """Tags and values of the whole model as they were shown last; the score from the start."""
        return self._outlet.shown

    @locked
    def _snapshot_now(self) -> Snapshot:
        self._listening.poll()
        return self._local_snapshot()

    def _local_snapshot(self) -> Snapshot:
        reading = self._ledger.peek()
        step, time = self.current_step, self.clock.wall()
        self._fold_tracked()
        own = {**self.health.numbers(), **self._counts()}
        own["sample_every"] = float(self._sampling.every)
        tracked = self._tracking.in_hand()
        return self._snapshot("train", reading, step, time, own=own, tracked=tracked)

    @locked
    def flush(self) -> None:
        """End a partial window, if there is one, and have every sink write what is pending.

        With several ranks all of them call it, at the same step.
        """
        if self._ranks.exchange is not None:
            begun = self.current_step > self._window_begin
        else:
            begun = self._ledger.dirty or self._ledger.recorder.pending or self._tracking.pending
        if begun:
            self.close_window()
        if self._publish(last=True):  # a checkpoint took that window
            self.close_window()
            self._publish(last=True)
        self.alerts.finish(self.current_step, self.clock.wall())
        self._outlet.flush()
        self._keeper.flush()

    def mute(self, why: str) -> None:
        """What makes the times of the window in hand not those of training: a checkpoint, say."""
        if why in self.alert_config.mute:
            self._mutes.add(why)

    @locked
    def enter_stage(self, stage: str) -> None:
        """What is recorded from now on belongs to ``stage``; on all ranks at once.

        Args:
            stage: ``train``, ``val``, ``test``, ``predict``, or ``sanity``, which is thrown away.
        """
        self.profiler.interrupt(f"{stage} came between")
        if self._ranks.exchange is not None:
            self._publish()
        self._listening.poll(begun=False)
        if stage != "train":
            self._examiner.leave_training()
        self.mute({"sanity": "sanity_check", "val": "validation"}.get(stage, stage))
        self._fold_tracked()
        self._ledger.enter(stage)
        self._batches = 0
        self._listening.time_calls(on=True)  # of a stage that tells of no batches all calls are

    @locked
    def leave_stage(self, step: int) -> None:
        """End a stage other than training: its numbers are logged once, and training goes on.

        With several ranks all of them call it at once, and wait for each other.

        Args:
            step: where on the x-axis they are logged.
        """
        ledger = self._ledger
        stage, statistics = ledger.stage, ledger.current
        if stage == "train":
            return
        self._listening.poll()
        closed = ledger.close(step, self.clock.wall())
        ledger.enter("train")
        self._examiner.back_in_training()
        if stage == "sanity":
            self._tracking.drop()
            self._listening.automatic.begin_anew()
            self._examiner.begin_books()
            return
        window, time = ledger.settle(closed, statistics), closed.time
        exchanged = None
        if self._ranks.exchange is not None:
            with self._with_ranks():
                header = self._header(closed, self._next_end)
                exchanged = self._ranks.exchange_stage(header, window, ledger.layout.layers)
                ledger.share(self._ranks.exchange.layout)
        reading = self._finish(window, statistics, exchanged)
        headers = None if exchanged is None else exchanged.headers
        losses = self._examiner.take_compared(headers)
        snapshot = self._snapshot(stage, reading, step, time, losses)
        self.snapshots[stage] = snapshot
        self._outlet.emit(snapshot, HealthReport(), ())
        self._keep(snapshot, ())

    def _keep(self, snapshot: Snapshot, transitions: Sequence[Transition]) -> None:
        """Have a window kept in the history; it is written on another thread."""
        keeper = self._keeper
        for failure in keeper.take_failures():
            self._failures.note("the history", failure)
        changes = [
            (c.component, c.before.value, c.after.value, c.step, c.time)
            for c in self.alerts.take_changes()
        ]
        keeper.window(snapshot, transitions, changes, snapshot.sources, self.describe)
        keeper.samples(self.resources.take_samples())
        for failure in self.resources.take_failures():
            self._failures.note("the resources", failure)
        keeper.errors(
            self._failures.take_records(rank=keeper.rank, step=snapshot.step, time=snapshot.time)
        )

    def _publish_if_due(self) -> None:
        if self._ranks.exchange is None:
            if self._closed is None or self._closed.ready:
                self._publish()
        elif self.current_step >= self._ranks.take_at:
            self._publish()

    def _publish(self, *, last: bool = False) -> bool:
        """Finish the closed window, and act on what the ranks decided with it.

        Args:
            last: whether no window follows that could have the numbers of new layers.

        Returns:
            whether layers were new, whose numbers wait for the next window.
        """
        complete = last and self._undecided is None
        self._collect(last=last)
        exchanged, self._undecided = self._undecided, None
        if exchanged is None:
            return False
        for kind in ("stop", "checkpoint"):
            reason = exchanged.vote(kind)
            if reason is not None:
                self._act(kind, reason)
        exchange = self._ranks.exchange
        if exchange is not None and exchanged.first.edits:
            with self._with_ranks():
                self._apply_edits(exchange.first_text(self._edits))
            exchange = self._ranks.exchange
        if exchange is None or not any(header.new_layers for header in exchanged.headers):
            return False
        if complete:
            return False
        with self._with_ranks():
            exchange.agree(self._ledger.layout.layers, self._tracking.names)
            self._ledger.share(exchange.layout)
        return self._ranks.exchange is not None

    def _collect(self, *, last: bool = False) -> None:
        """Finish the closed window, judge it and hand it to the sinks."""
        closed, self._closed = self._closed, None
        if closed is None:
            return
        ledger, exchanged = self._ledger, None
        if self._sent is not None:
            window, self._sent = self._sent, None
            with self._with_ranks():
                exchanged = self._ranks.take(last=last)
                if last and self._ranks.exchange is not None:
                    ledger.share(self._ranks.exchange.layout)
        else:
            window = ledger.settle(closed, ledger.train)
        self.windows += 1
        reading = self._finish(window, ledger.train, exchanged)
        time = closed.time if exchanged is None else exchanged.first.time
        own = self._own.read(self._counts(), reading, exchanged)
        headers = None if exchanged is None else exchanged.headers
        own.update(self._examiner.take_compared(headers))
        own["sample_every"] = float(self._sampling.window_every)
        begin = self.snapshot.step
        tracked = self._finish_tracked(exchanged)
        snapshot = self._snapshot("train", reading, closed.step, time, own, exchanged, tracked)
        if not self._muted:  # else what came between makes the time no measure
            self._sampling.hear(own.get("overhead_fraction", math.nan), begin)
        own.update(self.alerts.report.numbers())  # rules see the verdict before
        transitions = self.alerts.judge(snapshot, self.windows, muted=self._muted)
        own.update(self.alerts.report.numbers())  # the snapshot holds this very mapping
        self.profiler.hear(transitions)
        self.snapshot = snapshot
        self._outlet.emit(snapshot, self.alerts.report, transitions)
        self._keep(snapshot, transitions)
        if exchanged is not None:
            self._votes.heard()
            self._undecided = exchanged
            self._next_end = int(exchanged.first.next_step)
        else:
            self._decide_alone()
        if self._fatal:
            reason, self._fatal = self._fatal, ""
            raise CriticalAlert(reason, snapshot.to_dict("window"))

    def _finish(
        self, window: Packed, stage: StageStatistics, exchanged: Exchanged | None
    ) -> Reading:
        if exchanged is not None:
            return self._ledger.finish(exchanged.statistics, stage, exchanged.by_rank)
        ledger = self._ledger
        for layer in ledger.layout.layers:  # where the others are lost these come on top
            with suppress(LayerError):  # it looks like another rank's: left out, that was said
                ledger.shared.column(layer)
        return ledger.finish(moved(window, ledger.layout.layers, ledger.shared.layers), stage)

    def _finish_tracked(self, exchanged: Exchanged | None) -> Tracks:
        exchange, everybody = self._ranks.exchange, None
        if exchanged is not None and exchange is not None:
            everybody = from_table(exchanged.custom, exchange.names)
        window = self._tracking.finish(everybody)
        return window, self._tracking.run

    def _snapshot(
        self,
        stage: str,
        reading: Reading,
        step: int,
        time: float,
        own: Mapping[str, float],
        exchanged: Exchanged | None = None,
        tracked: Tracks = ({}, {}),
    ) -> Snapshot:
        return Snapshot(
            stage=stage,
            step=step,
            time=time,
            world_size=1 if reading.by_rank is None else reading.by_rank.width - 1,
            layer_ids=self._ledger.shared.layers,
            statistics=reading.run,
            counters=reading.counters,
            window=reading.window,
            own=own,
            sources=self._listening.sources(self._sampling.window_every),
            recent_times=self._ledger.recent_times,
            by_rank=reading.by_rank,
            run_by_rank=reading.run_by_rank,
            window_statistics=reading.statistics,
            cells=None if exchanged is None else exchanged.cells,
            own_window=self._own.window if stage == "train" else {},
            own_by_rank=self._own.by_rank if stage == "train" else {},
            custom=tracked[0],
            custom_run=tracked[1],
        )

    # -- history ----------------------------------------------------------------------------

    def open_history(self, folder: Path | None, rank: int = 0, world_size: int = 1) -> None:
        """Say where the history's file lies, before the first window.

        Args:
            folder: of the run; None: windows are kept in memory.
            rank: of this process.
            world_size: processes of the run.
        """
        self._keeper.open(folder, rank, world_size)
        self.profiler.place(folder, rank)

    def close_history(self, outcome: str) -> None:
        """Write what is pending and end the session; a later window begins another one.

        Args:
            outcome: how the run ended, for people.
        """
        if self._examiner.is_attached:  # a plain loop; a Trainer's model was let go before
            self.diagnose_at_end()
        self._keeper.errors(
            self._failures.take_records(
                rank=self._keeper.rank, step=self.current_step, time=self.clock.wall()
            )
        )
        self._keeper.close(outcome)
        for failure in self._keeper.take_failures():
            self._failures.note("the history", failure)

    def keep_alert(self, transition: Transition) -> None:
        """Keep what became of an alert between windows; from any thread, on rank 0."""
        self._keeper.alerts([transition])

    def flush_history(self) -> None:
        """Wait, for some seconds at most, until all that is known has been written."""
        self._keeper.flush()

    @property
    def history(self) -> RunHistory:
        """What is kept of the windows until now: numbers, alerts, errors; see `RunHistory`.

        Raises:
            HistoryError: nothing is kept, or this is not rank 0.
        """
        return self._keeper.read()

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
        diagnostics = self.run_diagnostics() if self._examiner.has_model else None
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
        snapshot = self._snapshot_now()
        try:
            history: RunHistory | None = self._keeper.read()
        except HistoryError:
            history = None
        with history or nullcontext():
            found = self._examiner.examine(snapshot, history, self.health, self.config.layers)
        self._keeper.diagnostics(found)
        return found

    def diagnose_at_end(self) -> None:
        """The training is over: run the diagnostics for the history, where ``at_end`` says so."""
        new = self.current_step >= 0 and self._examiner.looked_at != self.current_step
        if self.config.diagnostics.at_end and self._keeper.keeps and new:
            with self.guard("the diagnostics"):
                self.run_diagnostics()

    def measure_hooks(self) -> AbstractContextManager[Any]:
        """Time the model's hooks while it is called inside; `run_diagnostics` then shows it."""
        return self._examiner.measure_hooks(self.clock.monotonic)

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
        return self._examiner.compare(model, loss_of, self)

    @property
    def compares_memory_every(self) -> int:
        """Every how many validation batches `compare_memory` is due; 0: never."""
        return self._examiner.compares_every

    def mark(self, label: str) -> None:
        """Keep a note at this step: it is shown in reports.

        Args:
            label: such as ``"learning rate lowered"``.
        """
        self._keeper.mark(label, self.current_step)

    # -- the other ranks --------------------------------------------------------------------

    def join_ranks(self) -> None:
        """Find the other ranks of this job; all of them call it at once, before training."""
        with self._with_ranks():
            self._ranks.join()
        self._rank = self._ranks.rank
        if not self._ranks.first:
            self.alerts.tells = False

    @locked
    def agree_on_layers(self) -> None:
        """Agree on the layers of all ranks; all of them call it at once, when probes are found."""
        with self._with_ranks():
            ledger = self._ledger
            layers = [*ledger.shared.layers, *ledger.layout.layers]
            layout = self._ranks.begin(layers, self._tracking.names)
            if layout is not None:
                ledger.share(layout)
                self._next_end = self.current_step + 1

    @locked
    def leave_ranks(self) -> None:
        """Let the others go and wait for none of them; what they did not get is dropped."""
        exchange = self._ranks.exchange
        if exchange is not None:
            if exchange.arrives(_LAST_WAIT):
                self._collect()
            if self.current_step > self.snapshot.step:
                logger.warning(
                    "steps %d to %d are not in the totals: this process left before all ranks had "
                    "put them together",
                    self.snapshot.step + 1,
                    self.current_step,
                )
            self._closed = self._sent = self._undecided = None
            self._ledger.drop_window()
        self._ranks.leave()

    def request_stop(self, reason: str) -> None:
        """Ask all ranks to stop training: they do at the same step, after the next window."""
        self._votes.ask("stop", reason)

    def request_checkpoint(self, reason: str) -> None:
        """Ask all ranks for a checkpoint: they make it at the same step, after the next window."""
        self._votes.ask("checkpoint", reason)

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
        if metric_name in self._tracking.names:
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
            self._apply_edits(self.alerts.edits())

    def _apply_edits(self, text: str) -> None:
        if text:
            with self.guard("changing the rules"):
                self.alerts.apply(text)

    def _on_action(self, action: str, reason: str) -> None:
        """What a rule asks for when it fires; on all ranks alike."""
        if action == "stop":
            self.request_stop(reason)
        elif action == "checkpoint":
            self.request_checkpoint(reason)
        elif action == "log":
            logger.warning("%s", reason)
        elif self._ranks.lost:
            logger.warning("not raised (%s): the other ranks cannot be asked", reason)
        else:
            self._fatal = reason

    def _act(self, kind: str, reason: str) -> None:
        if self.on_decision is not None:
            with self.guard(
                f"{kind}, for {reason}"
            ):  # a full disk must not keep a run from stopping
                self.on_decision(kind, reason)

    def _decide_alone(self) -> None:
        for kind, reason in self._votes.take().items():
            if self._ranks.lost:
                logger.warning("no %s (%s): the other ranks cannot be asked", kind, reason)
            else:
                self._act(kind, reason)

    def _send(self, closed: ClosedWindow, now: float) -> None:
        """Send a closed window to the other ranks; it is taken some steps later, by all."""
        ledger = self._ledger
        window = ledger.settle(closed, ledger.train, wait=False)
        lag = LAG if self._interval is not None else min(LAG, self.window_steps - 1)
        next_end = closed.step + 1
        if self._interval is not None:
            steps = max(1, closed.step - self._window_begin)
            per_step = (now - self._window_start) / steps
            next_end = closed.step + max(lag + 1, steps_between(self._interval, per_step))
        self._closed, self._sent = closed, window
        self._next_end = sys.maxsize  # until rank 0's word is here
        votes = self._votes.send()
        with self._with_ranks():
            self._sent = self._ranks.send(
                self._header(closed, next_end, votes),
                reasons(votes),
                window,
                ledger.layout.layers,
                lag,
                self._tracking,
            )

    def _header(
        self, closed: ClosedWindow, next_end: int, votes: Mapping[str, str] | None = None
    ) -> Header:
        return Header(
            step=float(closed.step),
            next_step=float(next_end),
            time=closed.time,
            stop=float("stop" in (votes or {})),
            checkpoint=float("checkpoint" in (votes or {})),
            **self._counts(),
            processing_time=self._own.processing_time,
            **self._own.measured,
            resources=self._own.resources,
            **self._examiner.send_compared(),
            edits=float(len(self._edits)),
        )

    @contextmanager
    def _with_ranks(self) -> Iterator[None]:
        """Where the others fail this rank, it goes on with its own numbers."""
        try:
            yield
        except (ExchangeError, LayerError) as error:
            waiting = self._ranks.lose()
            if waiting is not None:
                self._ledger.train.fold(waiting, [])
            text = f"{error}; from now on the numbers of this rank are its own"
            self.note_failure("reduction", ExchangeError(text))

    def _counts(self) -> dict[str, float]:
        """What this process counted of the monitor itself."""
        return {
            "events": float(self._ledger.events),
            "invalid_samples": float(self._ledger.invalid_samples),
            "failures": float(self.failures),
            "dropped_events": float(self._dropped - self._dropped_before),
        }

    @property
    def _dropped(self) -> int:
        """What this process lost since it was made."""
        return self._keeper.lost + self.alerts.delivery.dropped

    # -- reading ----------------------------------------------------------------------------

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
        snapshot = self._snapshot_now()
        about = {"health": self.get_health_status(), "overhead": self.overhead()}
        return {**snapshot.to_dict(over), **about}

    def overhead(self) -> dict[str, Any]:
        """What the monitor costs this process, as plain data; JSON can hold it.

        Returns:
            ``fraction`` of the wall time in the last window (None: not known), ``budget``,
            ``adaptive``, ``sample_every`` (of the step under way), and ``seconds`` by part:
            ``hooks`` (the callback's own at the end of steps, over the run up to the last window),
            ``window_end`` (of these the ends of windows), ``history`` (writing windows; on another
            thread where there is a file) and ``resources`` (sampling the machine, on another
            thread). What probe calls and watched calls take is in none of them.

        >>> monitor = CMRPerformanceMonitor({"sample_every": 10})
        >>> monitor.overhead()["sample_every"], monitor.overhead()["seconds"]["hooks"]
        (10, 0.0)
        """
        seconds = {
            "window_end": self._window_ends,
            "history": self._keeper.seconds,
            "resources": self.resources.seconds,
        }
        return overhead_of(self.snapshot, self._sampling, seconds, self._rank)

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
        self._ledger.clear()
        self._sampling.forget()
        self._tracking.clear()
        self._examiner.forget()
        self.alerts.clear()
        self._keeper.forget()
        self.resources.forget()
        self.snapshot = Snapshot.empty("train")
        self.snapshots: dict[str, Snapshot] = {}
        self.current_step = -1
        self.windows = 0
        self._failures.count = 0
        self._dropped_before = self._dropped
        self._window_begin = -1
        self._mutes = set()
        self._muted = False
        self._edits = self._fatal = ""
        self._own = OwnNumbers()
        self._window_ends = 0.0
        self._sent = self._undecided = None
        self._votes = Votes()
        self._closed = None
        self._last_end = None
        self._window_start = self.clock.monotonic()
        self._outlet.forget()
        self._begin_diagnostics()

    def start_over(self) -> None:
        """Forget every number, alert and layer, as for another model; let go of this one first."""
        self.detach()
        self._ledger.forget_layers()
        self._tracking.forget_names()
        self.reset_metrics()

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers: run totals, the window begun, and the open alerts.

        With several ranks a window under way is waited for, but no collective is begun; the totals
        end with the last window that all ranks put together.
        """
        if self._ranks.alone:
            self._publish()
        else:
            self._collect()
        self._fold_tracked()
        return {
            "version": STATE_VERSION,
            "step": self.current_step,
            "windows": self.windows,
            **{name: int(count) for name, count in self._own.totals(self._counts()).items()},
            "window_end": self._window_begin,
            "sample_every": self._sampling.every,
            "ledger": self._ledger.state(alone=self._ranks.alone),
            "custom": self._tracking.state(alone=self._ranks.alone),
            "alerts": self.alerts.state(self.clock.wall()),
            "shown": dict(zip(*self.shown(), strict=True)),
        }

    @locked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called, on all ranks with rank 0's state.

        Steps between the last window that several ranks put together and the checkpoint are in
        nobody's totals; it is said which.
        """
        self.reset_metrics()
        first = self._ranks.first
        self._ledger.load(state["ledger"], first=first)
        if "custom" in state:  # older ones have none
            self._tracking.load(state["custom"], first=first)
        self.alerts.load(state["alerts"])
        self.current_step = state["step"]
        self.windows = state["windows"]
        self._window_begin = state["step"]
        self._sampling.resume(state.get("sample_every", 1))
        if first:
            self._failures.count = state["failures"]
            self._ledger.events = state["events"]
            self._ledger.invalid_samples = state["invalid_samples"]
            self._dropped_before -= state.get("dropped_events", 0)  # older ones have none
        self._own.resume({name: state.get(name, 0) for name in self._counts()})
        missing = state["step"] - state["window_end"]
        if missing > 0 and state["ledger"]["window"] is None and first:
            logger.warning(
                "steps %d to %d lie between the last window of all ranks and the checkpoint: they "
                "are not in the totals",
                state["window_end"] + 1,
                state["step"],
            )
        self._outlet.restore(state["shown"])
        self._begin_diagnostics()
        if self.windows:
            self.snapshot = self._snapshot_now()

    # -- what goes wrong --------------------------------------------------------------------

    @property
    def failures(self) -> int:
        """The monitor's own failures."""
        return self._failures.count

    @property
    def error_log(self) -> deque[str]:
        """Errors and rejected values as text, the newest last."""
        return self._failures.log

    @property
    def sinks(self) -> list[Sink]:
        """Where numbers go."""
        return self._outlet.sinks

    @sinks.setter
    def sinks(self, sinks: list[Sink]) -> None:
        self._outlet.sinks = sinks

    def guard(self, where: str) -> AbstractContextManager[None]:
        """The monitor's own failure must not end training: count it, say it once, go on."""
        return self._failures.guard(where)

    def note_failure(self, where: str, error: Exception) -> None:
        """Count a failure of the monitor itself.

        Raises:
            MonitorFailure: ``on_monitor_error`` is ``raise``.
        """
        self._failures.note(where, error)

    def _step_under_way(self) -> int:
        return self.current_step + 1

    def _note_invalid(self, sample: InvalidSample) -> None:
        layers = (None, *self._ledger.layout.layers)
        self._failures.log_sample(
            self.current_step,
            layers[sample.column],
            sample.component,
            sample.field,
            sample.reason,
            sample.value,
        )
