"""What becomes of a window that has ended: made a snapshot, judged, shown, kept, and acted on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.recording.stage import ClosedWindow
from cmr_monitor_callbacks.snapshot import Snapshot
from cmr_monitor_callbacks.windows.decisions import Decisions
from cmr_monitor_callbacks.windows.numbers import Numbers
from cmr_monitor_callbacks.windows.parts import Parts
from cmr_monitor_callbacks.windows.together import Together

logger = logging.getLogger(__name__)


class Finisher:
    """Finishes windows, as soon as their numbers are here.

    Args:
        parts: of the monitor.
        numbers: makes snapshots.
        decisions: what rules and ranks ask for.
        together: the other ranks.

    Attributes:
        closed: the window that waits for its numbers.
        muted: whether its times are not those of training alone.
        snapshot: the newest of training.
        judging: seconds that judging the rules took, and telling of alerts.
    """

    def __init__(
        self, parts: Parts, numbers: Numbers, decisions: Decisions, together: Together
    ) -> None:
        self._parts = parts
        self._numbers = numbers
        self._decisions = decisions
        self._together = together
        self.forget()

    def forget(self) -> None:
        """A run begins anew."""
        self.closed: ClosedWindow | None = None
        self.muted = False
        self.judging = 0.0
        self.snapshot = Snapshot.empty("train")

    @property
    def waits(self) -> bool:
        """Whether a window that has ended, or what ranks asked for with it, is still to be done."""
        return self.closed is not None or self._together.undecided is not None

    def publish_if_due(self) -> None:
        """After a step: finish the window that has ended, if its numbers are here."""
        if not self.waits:
            return
        if self._together.exchange is None:
            if self.closed is None or self.closed.ready:
                self.publish()
        elif self._parts.position.step >= self._parts.ranks.take_at:
            self.publish()

    def publish(self, *, last: bool = False) -> bool:
        """Finish the closed window, and act on what the ranks decided with it.

        Args:
            last: whether no window follows that could have the numbers of new layers.

        Returns:
            whether layers were new, whose numbers wait for the next window.
        """
        together = self._together
        complete = last and together.undecided is None
        self.collect(last=last)
        exchanged, together.undecided = together.undecided, None
        if exchanged is None:
            return False
        self._decisions.with_all(exchanged)
        self.apply_edits(together.rules_changed(exchanged))
        return not complete and together.meet_new_layers(exchanged)

    def collect(self, *, last: bool = False) -> None:
        """Finish the closed window, judge it and hand it to the sinks."""
        closed, self.closed = self.closed, None
        if closed is None:
            return
        parts, together, exchanged = self._parts, self._together, None
        window, together.sent = together.sent, None
        if window is not None:
            exchanged = together.take(last=last)
        else:
            window = parts.ledger.settle(closed, parts.ledger.train)
        parts.position.windows += 1
        begin = self.snapshot.step
        snapshot, own = self._numbers.of_window(closed, window, exchanged)
        if not self.muted:  # else what came between makes the time no measure
            parts.sampling.hear(own.get("overhead_fraction", math.nan), begin)
        own.update(parts.alerts.report.numbers())  # rules see the verdict before
        start = parts.clock.monotonic()
        transitions = parts.alerts.judge(snapshot, parts.position.windows, muted=self.muted)
        self.judging += parts.clock.monotonic() - start
        own.update(parts.alerts.report.numbers())  # the snapshot holds this very mapping
        parts.profiler.hear(transitions)
        self.snapshot = snapshot
        parts.outlet.emit(snapshot, parts.alerts.report, transitions)
        self.keep(snapshot, transitions)
        if exchanged is not None:
            together.heard(exchanged)
        else:
            self._decisions.alone()
        self._decisions.raise_if_fatal(snapshot)

    def keep(self, snapshot: Snapshot, transitions: Sequence[Transition]) -> None:
        """Have a window kept in the history; it is written on another thread."""
        parts, keeper = self._parts, self._parts.keeper
        self.note_history_failures()
        changes = [
            (c.component, c.before.value, c.after.value, c.step, c.time)
            for c in parts.alerts.take_changes()
        ]
        keeper.window(snapshot, transitions, changes, snapshot.sources, self.describe)
        keeper.samples(parts.resources.take_samples())
        for failure in parts.resources.take_failures():
            parts.failures.note("the resources", failure)
        self._keep_errors(snapshot.step, snapshot.time)

    def describe(self) -> str:
        """What each number comes from, in lines; '' where nothing is watched."""
        listening = self._parts.listening
        return listening.automatic.describe(self._parts.sampling.every, listening.timing.told)

    def note_history_failures(self) -> None:
        """What went wrong while the history was written."""
        for failure in self._parts.keeper.take_failures():
            self._parts.failures.note("the history", failure)

    def _keep_errors(self, step: int, time: float) -> None:
        keeper = self._parts.keeper
        keeper.errors(self._parts.failures.take_records(rank=keeper.rank, step=step, time=time))

    def apply_edits(self, text: str) -> None:
        """Change the rules, as rank 0 says."""
        if text:
            with self._parts.guard("changing the rules"):
                self._parts.alerts.apply(text)

    def end_history(self, outcome: str) -> None:
        """Write what is pending in the history and end the session."""
        self._keep_errors(self._parts.position.step, self._parts.clock.wall())
        self._parts.keeper.close(outcome)
        self.note_history_failures()
