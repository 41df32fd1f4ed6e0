"""The alert desk: judges a snapshot, raises what nobody deals with, and tells whom it concerns."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cmr_monitor_callbacks.alerts.baseline import (
    check_baseline,
    compared,
    not_recorded,
    read_baseline,
)
from cmr_monitor_callbacks.alerts.delivery import Delivery
from cmr_monitor_callbacks.alerts.edits import Edits, silence_from
from cmr_monitor_callbacks.alerts.manager import AlertManager
from cmr_monitor_callbacks.alerts.missed import Missed
from cmr_monitor_callbacks.alerts.notice import Alert, Notice
from cmr_monitor_callbacks.alerts.watches import Watches
from cmr_monitor_callbacks.config import NO_ESCALATION, AlertConfig, AlertThresholds
from cmr_monitor_callbacks.config.conditions import Expression, parse_expression
from cmr_monitor_callbacks.config.spans import parse_span
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.health import (
    AlertEngine,
    AlertRule,
    AlertState,
    HealthReport,
    HealthStatus,
    Phase,
    Severity,
    Transition,
    assess,
    compile_rules,
)
from cmr_monitor_callbacks.health.baseline import Baseline, BaselineKey
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.snapshot import Snapshot
from cmr_monitor_callbacks.stall import StallReport

logger = logging.getLogger(__name__)
RATE_MINUTES: Final = 5
"""Minutes over which notices are counted for their rate."""
_COUNTED: Final = 10_000
"""Notices of that time that are counted at most."""


@dataclass(frozen=True)
class HealthChange:
    """A component's status, or the system's, became another.

    Attributes:
        component: its name; '' for the system.
        before: the status before.
        after: the status after.
        step: last step of the window that showed it.
        time: seconds since the Unix epoch.
    """

    component: str
    before: HealthStatus
    after: HealthStatus
    step: int
    time: float


class AlertDesk:
    """Rules, the alerts' states, and who is told.

    Args:
        config: rules and notifications.
        thresholds: the short form of rules.
        interval: least seconds between two evaluations.
        keep: transitions and changes of status kept.

    Attributes:
        report: the newest verdict.
        transitions: what happened to alerts, the newest last.
        changes: what happened to the status of components, the newest last.
        tells: whether this process tells people; on several ranks one does.
        on_action: told what a rule asks for when it fires (``checkpoint``, ``stop``, ``raise``),
            and why.
        note: told where a rule or a user's own function failed.

    Raises:
        ConfigError: a threshold is set in two places, or for a rule that does not exist; or the
            recorded run that rules compare with is missing, or cannot be read.
    """

    def __init__(
        self, config: AlertConfig, thresholds: AlertThresholds, interval: float, keep: int
    ) -> None:
        self._thresholds = thresholds
        self._edits = Edits(config, self._check)
        self._config = config = self._edits.config
        self._interval = interval
        self._keep = keep
        self._until: Expression = ()
        if config.warmup.until is not None:
            self._until = parse_expression(config.warmup.until, {"steps"})
        self._watches = Watches()
        self._watched = 0
        self._thread: int | None = None
        self._manager = AlertManager(config)
        self._stall = Severity.ERROR
        rules = compile_rules(config, thresholds)
        self._compared = compared(rules)
        baseline = read_baseline(config.baseline, rules)
        self.without_baseline = not_recorded(rules, baseline)
        """Rules that compare with a recorded run which has none of their metrics."""
        self._engine = AlertEngine(rules, baseline)
        self.delivery = Delivery({name: config.channels[name] for name in config.alert_channels})
        self.tells = True
        self.on_action: Callable[[str, str], None] = lambda action, reason: None
        self.note: Callable[[str, Exception], None] = lambda where, error: None
        self.clear()

    def clear(self) -> None:
        """No alert is open, nothing was ever judged."""
        self.report = HealthReport()
        self.transitions: deque[Transition] = deque(maxlen=self._keep)
        self.changes: deque[HealthChange] = deque(maxlen=self._keep)
        self._fresh: list[HealthChange] = []
        self._engine.clear()
        self._manager = AlertManager(self._config, self._manager.silences)
        self._last = -math.inf
        self._step = math.nan
        self._missed = Missed()
        self._unknown: set[BaselineKey] = set()
        self._saved: float | None = None
        self._warm = not (self._config.warmup.steps or self._until)
        self._told = 0
        self._told_at: deque[float] = deque(maxlen=_COUNTED)

    @property
    def config(self) -> AlertConfig:
        """The settings in force, with the rules of the rules file."""
        return self._config

    @property
    def rules(self) -> tuple[AlertRule, ...]:
        """The rules in force."""
        return self._engine.rules

    def judge(
        self, snapshot: Snapshot, window: int, *, muted: bool = False
    ) -> Sequence[Transition]:
        """Evaluate the rules on a window's snapshot if it is time, and send what is due.

        Args:
            snapshot: the numbers.
            window: number of the window.
            muted: whether validation or the like came between, so that times are no data.
        """
        self._thread = threading.get_ident()
        if not self._config.enable_alerts:
            self._set_report(assess((), snapshot, self.report), snapshot)
            return ()
        self._adopt_watches()
        for where, failure in self.delivery.take_failures():
            self.note(where, failure)
        now = snapshot.time
        # of the first window nobody knows where it began: a fit may go on at any step
        steps, self._step = snapshot.step - self._step, float(snapshot.step)
        if 0 <= now - self._last < self._interval:  # less than 0: the clock was set back
            self._missed.note(snapshot, self.rules)
            return ()
        self._last = now
        if self._saved is not None:
            self._engine.pass_over(now - self._saved)
            self._saved = None
        transitions = self._engine.evaluate(
            self._missed.added_to(snapshot),
            step=snapshot.step,
            now=now,
            window=window,
            muted=muted,
            warming_up=self._warming_up(snapshot),
            steps=steps,
        )
        if self._engine.unknown:
            self._say_what_is_unknown()
        for rule, error in self._engine.errors:
            self.note(f"the condition of {rule}", error)
        states = self._engine.open()
        if not states and not transitions:
            self._set_report(assess((), snapshot, self.report), snapshot)
            self._send((), (), snapshot.step, now)
            return transitions
        raised = self._raise(states, snapshot.step, now, window)
        if raised:
            transitions, states = [*transitions, *raised], self._engine.open()
        self.transitions.extend(transitions)
        self._set_report(assess(states, snapshot, self.report), snapshot)
        self._send(states, transitions, snapshot.step, now)
        self._act(transitions)
        return transitions

    def _say_what_is_unknown(self) -> None:
        """Say once of each series that the recorded run does not have it."""
        fresh = [key for key in self._engine.unknown if key not in self._unknown]
        self._unknown.update(fresh)
        if fresh and self.tells:
            shown = ", ".join(_series(*key[:3]) for key in fresh)
            path = self._config.baseline
            logger.warning("no data for rules with vs: baseline: %s has no %s", path, shown)

    def finish(self, step: int, now: float) -> None:
        """Nothing follows: send what only waited for others; what ends here is waited for."""
        self._send(self._engine.open(), (), step, now, last=True)
        self.delivery.flush(remote=False)

    def _warming_up(self, snapshot: Snapshot) -> bool:
        if self._warm:
            return False
        steps = snapshot.step + 1
        late = steps >= self._config.warmup.steps
        self._warm = late and (
            not self._until
            or any(
                all(
                    part.holds(
                        steps if part.name == "steps" else snapshot.value(part.name, over="window")
                    )
                    for part in alternative
                )
                for alternative in self._until
            )
        )
        return not self._warm

    # -- escalation ---------------------------------------------------------------------------

    def _raise(
        self, states: Sequence[AlertState], step: int, now: float, window: int
    ) -> list[Transition]:
        """Raise alerts that have been firing for long."""
        raised = []
        for state in states:
            severity = self._raised(state, step, now, window) if state.phase.fires else None
            if severity is not None and severity is not state.severity:
                self._engine.raise_to(state.key, severity)
                after = self._engine.state_of(state.key)
                raised.append(
                    Transition(after, state.phase, step, now, after.message, after.severity)
                )
        return raised

    def _raised(self, state: AlertState, step: int, now: float, window: int) -> Severity | None:
        severity = state.severity
        passed = {
            "steps": step - state.fired_step,
            "windows": window - state.fired_window,
            "seconds": now - state.fired_time,
        }
        acked = self._manager.acked(state.key)
        for name in Severity:  # one raise may lead to the next
            if severity is not name:
                continue
            rule = self._config.escalation_rules.get(name.value, NO_ESCALATION)
            for then in rule.then:
                amount, unit = parse_span(then.after)
                if passed[unit] >= amount and not (acked and then.unless == "acked"):
                    severity = Severity(then.raise_to)
        return severity

    # -- telling ------------------------------------------------------------------------------

    def _send(
        self,
        states: Sequence[AlertState],
        transitions: Sequence[Transition],
        step: int,
        now: float,
        *,
        last: bool = False,
    ) -> None:
        rules = {rule.name: rule for rule in self.rules} if states or transitions else {}
        notices = self._manager.update(states, transitions, rules, step=step, now=now, last=last)
        if not self.tells:
            return
        for rule, comment in self._manager.fell_silent:
            why = f": {comment}" if comment else ""
            logger.info("nobody is told of %s, for it is silenced%s", rule, why)
        for notice in notices:
            self._told += 1
            self._told_at.append(now)
            self.delivery.submit(notice)
        for transition in transitions:
            self._watches.tell(transition, self.note)

    def rate(self, now: float) -> float:
        """Notices per minute that this process gave to its channels in the last minutes.

        Args:
            now: seconds since the Unix epoch.
        """
        # a copy: the watchdog's thread may tell meanwhile
        recent = [time for time in self._told_at.copy() if time > now - 60 * RATE_MINUTES]
        return len(recent) / RATE_MINUTES

    def _act(self, transitions: Sequence[Transition]) -> None:
        rules = {rule.name: rule for rule in self.rules}
        for transition in transitions:
            state = transition.state
            if state.phase.fires and not transition.before.fires and state.rule in rules:
                for action in rules[state.rule].actions:
                    self.on_action(action, f"alert {state.rule}: {transition.message}")

    def _set_report(self, report: HealthReport, snapshot: Snapshot) -> None:
        before, self.report = self.report, report
        if report is before:
            return
        now = {"": report.status, **{n: c.status for n, c in report.components.items()}}
        was = {"": before.status, **{n: c.status for n, c in before.components.items()}}
        for name, status in now.items():
            if status is not was.get(name, HealthStatus.UNKNOWN):
                old = was.get(name, HealthStatus.UNKNOWN)
                change = HealthChange(name, old, status, snapshot.step, snapshot.time)
                self.changes.append(change)
                self._fresh.append(change)

    def take_changes(self) -> list[HealthChange]:
        """Changes of the status of components since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def tell_of_stall(self, report: StallReport, now: float) -> Transition:
        """Send a notice of a run that stands still, or goes on; from the watchdog's thread.

        Returns:
            what became of the alert, for the history.
        """
        if not report.resumed:
            self._stall = Severity.CRITICAL if report.again else Severity.ERROR
        severity = self._stall  # who heard of the worst hears that it is over
        labels = {
            "alert": "training_stalled",
            "component": "timing",
            "rank": str(report.rank),
            "phase": report.phase,
            "severity": severity.value,
        }
        alert = Alert(
            "training_stalled",
            labels,
            severity,
            report.resumed,
            str(report),
            report.seconds,
            math.nan,
            report.step,
            now,
            "docs/runbooks/training_stalled.md",
        )
        group = {name: labels[name] for name in ("alert", "component")}
        self._told_at.append(now)
        self.delivery.submit(Notice((alert,), severity, report.resumed, report.step, now, group))
        before = Phase.FIRING if report.again or report.resumed else Phase.INACTIVE
        state = AlertState(
            alert.rule,
            rank=report.rank,
            component=labels["component"],
            phase=Phase.INACTIVE if report.resumed else Phase.FIRING,
            severity=None if report.resumed else severity,
            since_step=report.step,
            since_time=now - report.seconds,
            fired_time=now,
            fired_step=report.step,
            value=report.seconds,
            message=alert.message,
        )
        return Transition(state, before, report.step, now, alert.message, severity)

    # -- changes from outside -----------------------------------------------------------------

    def ask(self, kind: str, **what: Any) -> None:
        """Have something changed at the next window: see `apply`."""
        self._edits.ask(kind, **what)

    def edits(self) -> str:
        """What is to be changed now, as text for `apply`; '' for nothing."""
        return self._edits.pending()

    def apply(self, text: str) -> None:
        """Change what `edits` says, on every rank: rules, silences, acknowledgements."""
        for edit in json.loads(text):
            kind = edit.pop("kind")
            if kind == "acknowledge":
                if not self._manager.acknowledge(**edit) and self.tells:
                    self._say_what_fires(edit["rule"])
            elif kind == "silence":
                self._manager.silence(silence_from(edit))
            else:
                self._take(self._edits.with_rules(edit["found"]))

    def check_rule(self, glob: str) -> None:
        """Say of a glob that is no rule's name which rules there are.

        Raises:
            ConfigError: no rule matches.
        """
        known = [rule.name for rule in (*self.rules, *self._watches.rules)]
        if not any(matches(glob, name) for name in known):
            names = dict.fromkeys(known)
            raise ConfigError(
                f"rule must be one of the run's, got {glob!r}; {nearest(glob, names)}"
            )

    def _say_what_fires(self, glob: str) -> None:
        firing = dict.fromkeys(
            alert.rule for alert in self._engine.open() if alert.phase is not Phase.PENDING
        )
        listing = ", ".join(firing) or "none"
        logger.warning("nothing to acknowledge: no alert %r is firing; firing: %s", glob, listing)

    def _take(self, config: AlertConfig) -> None:
        """Go on with the rules of another configuration; open alerts of rules that stay, stay."""
        watched = tuple(self._watches.rules)
        rules = (*compile_rules(config, self._thresholds), *watched)
        baseline = self._baseline_for(rules)
        self._watched = len(watched)
        self._config = config
        self._manager.take_config(config)
        self._engine.replace_rules(rules, baseline)

    def _check(self, config: AlertConfig) -> None:
        """Whether rules go with the other settings.

        Raises:
            ConfigError: they do not.
        """
        check_baseline(config.baseline, compile_rules(config, self._thresholds))

    def _baseline_for(self, rules: Sequence[AlertRule]) -> Baseline | None:
        """What edited rules need of the recorded run; None: what was read serves."""
        if compared(rules) <= self._compared:
            return None
        try:
            found = read_baseline(self._config.baseline, rules)
        except ConfigError as error:  # it was there before training: these rules have no data
            self.note("the baseline of edited rules", error)
            return None
        self._compared = compared(rules)
        return found

    def watch(self, metric: str, condition: Any, callback: Callable[[Alert], Any]) -> str:
        """Add a rule from code; see `CMRPerformanceMonitor.set_alert`."""
        rule = self._watches.add(metric, condition, callback, [r.name for r in self.rules])
        if self.may_change:
            self._adopt_watches()
        return rule.name

    def _adopt_watches(self) -> None:
        new = self._watches.rules[self._watched :]
        if new:
            self._watched += len(new)
            self._engine.replace_rules((*self.rules, *new))

    @property
    def may_change(self) -> bool:
        """Whether this is the thread that judges: what others ask for waits for the next window."""
        return self._thread in (None, threading.get_ident())

    # -- checkpoints --------------------------------------------------------------------------

    def state(self, now: float) -> dict[str, Any]:
        """Plain data, for a checkpoint that is made now, in seconds since the Unix epoch."""
        return {
            "time": now,
            "engine": self._engine.state(),
            "manager": self._manager.state(),
            "warm": self._warm,
            "step": self._step,
            "missed": self._missed.state(),
            "told": self._told,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; alerts of rules that are gone have ended."""
        self.clear()
        if "engine" not in state:  # of a version whose alerts held less
            return
        self._engine.load(state["engine"])
        self._manager.load(state["manager"], (rule.name for rule in self.rules))
        self._manager.keep({alert.key for alert in self._engine.open()})
        self._saved = state.get("time")
        self._step = state.get("step", math.nan)
        self._missed.load(state.get("missed", ()))
        self._warm, self._told = state["warm"], state["told"]


def _series(metric: str, layer: object, rank: object) -> str:
    where = [f" of {name} {n}" for name, n in (("layer", layer), ("rank", rank)) if n is not None]
    return metric + "".join(where)


__all__ = ["AlertDesk", "HealthChange", "Notice"]
