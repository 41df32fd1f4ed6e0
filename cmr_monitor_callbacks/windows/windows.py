"""When a window begins and ends, and what becomes of one; the other stages too."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cmr_monitor_callbacks.distributed import LAG, steps_between
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.locks import locked
from cmr_monitor_callbacks.recording.stage import ClosedWindow
from cmr_monitor_callbacks.snapshot import Snapshot
from cmr_monitor_callbacks.windows.decisions import Decisions
from cmr_monitor_callbacks.windows.finishing import Finisher
from cmr_monitor_callbacks.windows.numbers import Numbers
from cmr_monitor_callbacks.windows.parts import Parts
from cmr_monitor_callbacks.windows.together import Together

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = 50
"""Steps in a window where nobody says."""
STATE_VERSION = 1


class Windows:
    """Ends windows, has their snapshots made and judged, and hands them on.

    Args:
        parts: of the monitor.

    Attributes:
        snapshots: the last of each other stage.
        seconds: that the ends of windows took.
        decisions: what rules and ranks ask for.
        together: the other ranks.
        finisher: what becomes of a window that has ended.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.lock = parts.ledger.lock
        monitoring = parts.settings.monitoring
        self._quiet_until = 0
        """Before this step no window ends and none waits to be finished; 0: nobody knows."""
        self._steps = monitoring.log_every_n_steps or DEFAULT_WINDOW
        self._interval = monitoring.metric_collection_interval
        self._mutes_when = parts.settings.alerts.mute
        self._position = parts.position
        self._ledger = parts.ledger
        self.decisions = Decisions(parts.ranks, parts.guard)
        parts.alerts.on_action = self.decisions.ask
        self.numbers = Numbers(parts)
        self.together = Together(parts, self.numbers, self.decisions)
        self.finisher = Finisher(parts, self.numbers, self.decisions, self.together)
        self.forget()

    def forget(self) -> None:
        """A run begins anew: no number, no window, no decision."""
        parts = self._parts
        parts.ledger.clear()
        parts.sampling.forget()
        parts.tracking.clear()
        parts.examiner.forget()
        parts.alerts.clear()
        parts.keeper.forget()
        parts.resources.forget()
        parts.outlet.forget()
        parts.failures.count = 0
        self._position.forget(parts.clock.monotonic())
        self._quiet_until = 0  # steps are counted from the first on
        self.decisions.forget()
        self.numbers.forget()
        self.together.forget()
        self.finisher.forget()
        self.snapshots: dict[str, Snapshot] = {}
        self.seconds = 0.0
        self._mutes: set[str] = set()
        self.look_at_model()

    def look_at_model(self) -> None:
        """What the model has counted until now is where the diagnostics begin."""
        with self._parts.guard("looking at the model for the diagnostics"):
            self._parts.examiner.begin_again(self.numbers.of_now)

    @property
    def snapshot(self) -> Snapshot:
        """The newest of training."""
        return self.finisher.snapshot

    @property
    def steps(self) -> int:
        """Of a window, where windows are in steps."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps, self._quiet_until = steps, 0

    # -- steps ------------------------------------------------------------------------------

    def step(self, step: int | None = None) -> None:
        """A step is over; see `CMRPerformanceMonitor.step`."""
        position = self._position
        if step is not None and position.step < step < self._quiet_until:  # most of a Trainer's
            position.step = step
        else:
            self._step(step)

    @locked
    def go_to(self, step: int) -> None:
        """Steps go on after this one, which may lie before the last."""
        self._position.step, self._quiet_until = step, 0

    @locked
    def _step(self, step: int | None) -> None:
        position = self._position
        # without a number steps are counted here, and may come from several threads
        position.step = step = position.step + 1 if step is None else step
        self.finisher.publish_if_due()
        if self._interval is None:
            due = (step + 1) % self._steps == 0
        elif self.together.exchange is not None:
            due = step >= self.together.next_end
        else:
            due = self._parts.clock.monotonic() - position.since >= self._interval
        if due:
            self.close()
        if self._interval is None and not self.finisher.waits:
            self._quiet_until = step + self._steps - (step + 1) % self._steps

    def takes_closely(self, step: int) -> bool:
        """Whether a step is the one of its window at whose tensors the monitor looks."""
        sampling = self._parts.sampling
        if self._interval is None:
            return sampling.takes_last(step, self._steps)
        return sampling.takes_first(step, self._position.begin)  # nobody knows which is the last

    def mute(self, why: str) -> None:
        """What makes the times of the window in hand not those of training: a checkpoint, say."""
        if why in self._mutes_when:
            self._mutes.add(why)

    @locked
    def close(self) -> None:
        """End the training window in hand; its snapshot comes as soon as its numbers are here."""
        parts, position = self._parts, self._position
        self._quiet_until = 0
        start = parts.clock.monotonic()
        parts.listening.poll()
        self.finisher.publish()
        parts.fold_tracked()
        closed = self._ledger.close(position.step, parts.clock.wall())
        parts.sampling.window_every = parts.sampling.every
        self.numbers.close(start)
        self.finisher.muted, self._mutes = bool(self._mutes), set()
        for request in parts.keeper.take_requests():
            with parts.guard("a request from outside"):
                parts.alerts.ask(**request)
        edits = parts.alerts.edits() if parts.ranks.first else ""
        if self.together.exchange is not None:
            self._send(closed, start, edits)
        else:
            self.finisher.apply_edits(edits)
            parts.tracking.close()
            self.finisher.closed = closed
            if closed.ready:
                self.finisher.publish()
        self._sample_as_needed()
        position.since, position.begin = start, position.step
        with parts.guard("looking at the memory's entries"):
            parts.examiner.look(position.windows)
        self.numbers.own.processing_time = parts.clock.monotonic() - start
        self.seconds += self.numbers.own.processing_time

    def _send(self, closed: ClosedWindow, now: float, edits: str) -> None:
        lag, next_end = min(LAG, self._steps - 1), closed.step + 1
        if self._interval is not None:
            lag, position = LAG, self._position
            per_step = (now - position.since) / max(1, closed.step - position.begin)
            next_end = closed.step + max(lag + 1, steps_between(self._interval, per_step))
        self.finisher.closed, self.together.edits = closed, edits
        self.together.send(closed, next_end, lag)

    def _sample_as_needed(self) -> None:
        """At a window's end, on all ranks: look less closely where the monitor takes too much."""
        made = self._parts.sampling.change(self._position.step)
        if made is None:
            return
        if self._parts.ranks.first:
            level = logging.WARNING if made.after > made.before else logging.INFO
            logger.log(level, "%s", made)
        self._parts.keeper.mark(str(made), self._position.step)

    # -- between windows --------------------------------------------------------------------

    @locked
    def peek(self) -> tuple[list[str], list[float]]:
        """Tags and values of the whole before the first window; `CMRPerformanceMonitor.peek`."""
        if self.together.exchange is not None:
            self.close()
            self.finisher.publish()
            return self._parts.outlet.shown
        return self._parts.outlet.whole(self.now())

    @locked
    def settle(self) -> None:
        """Publish a window that has ended, waiting for its numbers; on all ranks at once."""
        self.finisher.publish()

    @locked
    def now(self) -> Snapshot:
        """What this process recorded until now, what is polled included."""
        self._parts.listening.poll()
        return self.numbers.of_now()

    @locked
    def flush(self) -> None:
        """End a partial window; see `CMRPerformanceMonitor.flush`."""
        parts, ledger = self._parts, self._ledger
        if self.together.exchange is not None:
            begun = self._position.step > self._position.begin
        else:
            begun = ledger.dirty or ledger.recorder.pending or parts.tracking.pending
        if begun:
            self.close()
        if self.finisher.publish(last=True):  # a checkpoint took that window
            self.close()
            self.finisher.publish(last=True)
        parts.alerts.finish(self._position.step, parts.clock.wall())
        parts.outlet.flush()
        parts.keeper.flush()

    # -- other stages -----------------------------------------------------------------------

    @locked
    def enter_stage(self, stage: str) -> None:
        """What is recorded from now on belongs to another stage."""
        parts = self._parts
        parts.profiler.interrupt(f"{stage} came between")
        if self.together.exchange is not None:
            self.finisher.publish()
        parts.listening.poll(begun=False)
        if stage != "train":
            parts.examiner.leave_training()
        self.mute({"sanity": "sanity_check", "val": "validation"}.get(stage, stage))
        parts.fold_tracked()
        self._ledger.enter(stage)
        parts.listening.time_calls(on=True)  # of a stage that tells of no batches all calls are

    @locked
    def leave_stage(self, step: int) -> None:
        """End a stage other than training: its numbers are logged once, and training goes on."""
        parts, ledger = self._parts, self._ledger
        stage, statistics = ledger.stage, ledger.current
        if stage == "train":
            return
        parts.listening.poll()
        closed = ledger.close(step, parts.clock.wall())
        ledger.enter("train")
        parts.examiner.back_in_training()
        if stage == "sanity":
            parts.tracking.drop()
            parts.listening.automatic.begin_anew()
            parts.examiner.begin_books()
            return
        window = ledger.settle(closed, statistics)
        exchanged = self.together.take_stage(closed, window)
        snapshot = self.numbers.of_stage(stage, closed, window, statistics, exchanged)
        self.snapshots[stage] = snapshot
        parts.outlet.emit(snapshot, HealthReport(), ())
        self.finisher.keep(snapshot, ())

    # -- ranks and state --------------------------------------------------------------------

    @locked
    def leave_ranks(self) -> None:
        """Let the others go and wait for none of them; what they did not get is dropped."""
        if self.together.exchange is not None:
            if self.together.arrives():
                self.finisher.collect()
            if self._position.step > self.snapshot.step:
                logger.warning(
                    "steps %d to %d are not in the totals: this process left before all ranks had "
                    "put them together",
                    self.snapshot.step + 1,
                    self._position.step,
                )
            self.finisher.closed = self.together.sent = self.together.undecided = None
            self._ledger.drop_window()
        self._parts.ranks.leave()

    @locked
    def state(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; see `CMRPerformanceMonitor.state_dict`."""
        parts, alone = self._parts, self._parts.ranks.alone
        # what the model did since the last look is counted with what is saved of the model
        parts.listening.poll(begun=self._position.step > self._position.begin)
        if alone:
            self.finisher.publish()
        else:
            self.finisher.collect()
        parts.fold_tracked()
        return {
            "version": STATE_VERSION,
            "step": self._position.step,
            "windows": self._position.windows,
            **self.numbers.totals(),
            "window_end": self._position.begin,
            "sample_every": parts.sampling.every,
            "ledger": self._ledger.state(alone=alone),
            "entries": parts.listening.entries(),
            "custom": parts.tracking.state(alone=alone),
            "alerts": parts.alerts.state(parts.clock.wall()),
            "shown": dict(zip(*parts.outlet.shown, strict=True)),
        }

    @locked
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was called."""
        # what the model does while it is restored is no part of the run
        self._parts.listening.poll()
        self.forget()
        parts, position, first = self._parts, self._position, self._parts.ranks.first
        self._ledger.load(state["ledger"], first=first)
        if "custom" in state:  # older ones have none
            parts.tracking.load(state["custom"], first=first)
        parts.alerts.load(state["alerts"])
        position.step = position.begin = state["step"]
        position.windows = state["windows"]
        parts.sampling.resume(state.get("sample_every", 1))
        self.numbers.resume(state, first=first)
        missing = state["step"] - state["window_end"]
        if missing > 0 and state["ledger"]["window"] is None and first:
            logger.warning(
                "steps %d to %d lie between the last window of all ranks and the checkpoint: they "
                "are not in the totals",
                state["window_end"] + 1,
                state["step"],
            )
        parts.outlet.restore(state["shown"])
        # the state is rank 0's, and so are its entries; older ones have none
        parts.listening.resume(state.get("entries") if first else None)
        self.look_at_model()
        if position.windows:
            self.finisher.snapshot = self.now()
