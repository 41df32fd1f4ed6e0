"""From alerts to notices: who waits, who is held back, who is told of together.

The terms are Alertmanager's. Time is passed in; the state is plain data.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timezone
from typing import Any

from cmr_monitor_callbacks.alerts.notice import Alert, Notice
from cmr_monitor_callbacks.alerts.overflow import Overflow
from cmr_monitor_callbacks.config import NO_ESCALATION, AlertConfig, SilenceConfig, parse
from cmr_monitor_callbacks.health import AlertRule, AlertState, Key, Phase, Severity, Transition
from cmr_monitor_callbacks.layers import matches

Group = tuple[str, ...]


@dataclass
class _Episode:
    """One alert from when it starts firing until it ends."""

    rule: str
    labels: dict[str, str]
    severity: str
    message: str
    value: float
    threshold: float
    step: int
    fired: float
    runbook: str
    told: str = ""
    """Severity that people were told last; '' before."""
    worst: str = ""
    """The worst that they were told: who heard of that one hears that it ended."""

    def alert(self, *, step: int, time: float, resolved: bool, message: str = "") -> Alert:
        severity = (self.worst or self.told) if resolved else self.severity
        return Alert(
            self.rule,
            {**self.labels, "severity": severity},
            Severity(severity),
            resolved,
            message or self.message,
            self.value,
            self.threshold,
            step,
            time,
            self.runbook,
        )


@dataclass
class _Group:
    """Alerts that are told of together."""

    waiting: float = math.nan
    """Since when something new is due."""
    last: float = -math.inf
    """When it was told of last."""


@dataclass
class _Due:
    """What is to be told of one group now."""

    alerts: list[tuple[Key, Alert]] = field(default_factory=list)
    at_once: bool = False


class AlertManager:
    """Decides which notices are due.

    Args:
        config: delays, cooldown, silences, inhibition, grouping, the most notices.
        silences: more of them, made from code.
    """

    def __init__(self, config: AlertConfig, silences: Iterable[SilenceConfig] = ()) -> None:
        self._config = config
        self._escalation = {str(name): rule for name, rule in config.escalation_rules.items()}
        self._now = -math.inf
        self.silences: list[SilenceConfig] = [*silences]
        """Made from code."""
        self.fell_silent: list[tuple[str, str]] = []
        """Rules of the alerts that a silence holds since the last update, and its comment."""
        self._silenced: set[Key] = set()
        self._episodes: dict[Key, _Episode] = {}
        self._gone: list[tuple[Key, _Episode]] = []
        self._last_told: dict[Key, float] = {}
        self._groups: dict[Group, _Group] = {}
        self._acked: set[Key] = set()
        self._overflow = Overflow(config.route.max_per_window)

    def acknowledge(self, rule: str, layer: str | None = None, rank: str | None = None) -> int:
        """Somebody deals with alerts that fire: they are neither raised nor repeated.

        Returns:
            how many were meant.
        """
        wanted = {"layer": layer, "rank": rank}
        found = [
            key
            for key, episode in self._episodes.items()
            if matches(rule, episode.rule)
            and all(
                text is None or matches(text, episode.labels.get(name, ""))
                for name, text in wanted.items()
            )
        ]
        self._acked.update(found)
        return len(found)

    def acked(self, key: Key) -> bool:
        """Whether somebody deals with an alert."""
        return key in self._acked

    def take_config(self, config: AlertConfig) -> None:
        """Go on with another configuration's silences, inhibition, delays and groups."""
        self._config = config
        self._escalation = {str(name): rule for name, rule in config.escalation_rules.items()}

    def silence(self, silence: SilenceConfig) -> None:
        """From now on alerts are known."""
        self.silences.append(silence)

    def update(
        self,
        states: Iterable[AlertState],
        transitions: Sequence[Transition],
        rules: Mapping[str, AlertRule],
        *,
        step: int,
        now: float,
        last: bool = False,
    ) -> list[Notice]:
        """Notices that are due at the end of a window.

        Args:
            states: open alerts.
            transitions: what changed in this window.
            rules: by name.
            step: the window's last step.
            now: seconds since the Unix epoch.
            last: whether nothing follows: what only waited for others is sent.
        """
        self._set_back(now)
        firing = [state for state in states if state.phase.fires]
        due: dict[Group, _Due] = {}
        for key, episode in self._gone:
            message = f"{key[1]} is not watched any more"
            alert = episode.alert(step=step, time=now, resolved=True, message=message)
            found = due.setdefault(self._group_of(alert.labels), _Due())
            found.at_once = True
            found.alerts.append((key, alert))
        self._gone = []
        for transition in transitions:
            if transition.name == "resolved":
                self._resolve(transition, due)
        for state in firing:
            self._note(state, rules.get(state.rule))
        quiet = self._quiet(step, now)
        for state in firing:
            if state.key not in quiet:
                self._put_due(state, due, step, now)
        ready = [group for group, found in due.items() if self._ready(group, found, now, last)]
        notices = [
            notice for group in ready for notice in self._notices(group, due[group], step, now)
        ]
        open_ = {
            self._group_of({**episode.labels, "severity": episode.severity})
            for episode in self._episodes.values()
        }
        self._groups = {g: known for g, known in self._groups.items() if g in open_ or g in due}
        return self._overflow.bounded(notices, step=step, now=now, last=last)

    def _set_back(self, now: float) -> None:
        """A clock that is set back must not keep people waiting for as long."""
        back, self._now = now - self._now, now
        if back >= 0:
            return
        for episode in self._episodes.values():
            episode.fired += back
        for group in self._groups.values():
            group.waiting += back
            group.last += back
        self._last_told = {key: time + back for key, time in self._last_told.items()}
        self._overflow.set_back(back)

    # -- one alert ----------------------------------------------------------------------------

    def _note(self, state: AlertState, rule: AlertRule | None) -> None:
        """Keep what is known of an alert that fires; an episode begins with the first word."""
        severity = (state.severity or Severity.WARNING).value
        labels = {
            "alert": state.rule,
            "component": state.component,
            **state.labels,
            **(rule.labels if rule else {}),
        }
        known = self._episodes.get(state.key)
        if known is None:
            self._episodes[state.key] = _Episode(
                state.rule,
                labels,
                severity,
                state.message,
                state.value,
                state.threshold,
                state.fired_step,
                state.fired_time,
                rule.runbook if rule else "",
            )
        elif known.severity != severity or state.phase is not Phase.RECOVERING:
            known.severity, known.message = severity, state.message
            known.value, known.threshold = state.value, state.threshold

    def _resolve(self, transition: Transition, due: dict[Group, _Due]) -> None:
        """That an alert ended is always told where it was told that it fired."""
        key = transition.state.key
        episode = self._episodes.pop(key, None)
        self._acked.discard(key)
        if episode is None or not episode.told or not self._config.route.send_resolved:
            return
        alert = episode.alert(
            step=transition.step, time=transition.time, resolved=True, message=transition.message
        )
        found = due.setdefault(self._group_of(alert.labels), _Due())
        found.at_once = True
        found.alerts.append((key, alert))

    def _put_due(self, state: AlertState, due: dict[Group, _Due], step: int, now: float) -> None:
        episode, key = self._episodes[state.key], state.key
        escalation = self._escalation.get(episode.severity, NO_ESCALATION)
        if not escalation.immediate and now - episode.fired < escalation.delay:
            return
        rose = bool(episode.told) and _rank(episode.severity) > _rank(episode.told)
        repeat = self._config.route.repeat_interval
        since = now - self._last_told.get(key, -math.inf)
        again = repeat is not None and since >= repeat and key not in self._acked
        if episode.told and not rose and not again:
            return
        fresh_and_urgent = escalation.immediate and not episode.told
        if not (rose or fresh_and_urgent) and since < self._config.alert_cooldown:
            return
        alert = episode.alert(step=step, time=episode.fired, resolved=False)
        found = due.setdefault(self._group_of(alert.labels), _Due())
        found.at_once |= rose or escalation.immediate
        found.alerts.append((key, alert))

    def _quiet(self, step: int, now: float) -> set[Key]:
        """Alerts that are silenced, or inhibited by another that fires."""
        silenced = {
            key: silence
            for silence in (*self._config.silences, *self.silences)
            for key, episode in self._episodes.items()
            if _silences(silence, episode, step, now)
        }
        self.fell_silent = [
            (key[0], silence.comment)
            for key, silence in silenced.items()
            if key not in self._silenced
        ]
        self._silenced, quiet = set(silenced), set(silenced)
        labels = {
            key: {**episode.labels, "severity": episode.severity}
            for key, episode in self._episodes.items()
        }
        for rule in self._config.inhibit:
            sources = {key for key, own in labels.items() if _meets(rule.source, own)}
            targets = {key for key, own in labels.items() if _meets(rule.target, own)}
            # two that are both would keep each other quiet, and nobody heard of either
            quiet.update(
                key
                for key in targets
                if any(
                    all(labels[source].get(n, "") == labels[key].get(n, "") for n in rule.equal)
                    for source in (sources - targets if key in sources else sources)
                )
            )
        return quiet

    # -- groups -------------------------------------------------------------------------------

    def _group_of(self, labels: Mapping[str, str]) -> Group:
        return tuple(labels.get(name, "") for name in self._config.route.group_by)

    def _ready(self, group: Group, found: _Due, now: float, last: bool) -> bool:
        route = self._config.route
        known = self._groups.setdefault(group, _Group())
        if math.isnan(known.waiting):
            known.waiting = now
        first = known.last == -math.inf
        waited = now - known.waiting if first else now - known.last
        enough = waited >= (route.group_wait if first else route.group_interval)
        return found.at_once or last or enough

    def _notices(self, group: Group, due: _Due, step: int, now: float) -> list[Notice]:
        """One notice of what fires, and one of what ended: a mixed one would hide the second."""
        known = self._groups[group]
        known.last, known.waiting = now, math.nan
        for key, alert in due.alerts:
            if not alert.resolved:
                episode = self._episodes[key]
                episode.told = alert.severity.value
                if not episode.worst or _rank(episode.worst) < alert.severity.rank:
                    episode.worst = episode.told
                self._last_told[key] = now
        names = dict(zip(self._config.route.group_by, group, strict=True))
        notices = []
        for resolved in (False, True):
            alerts = [alert for _, alert in due.alerts if alert.resolved is resolved]
            if alerts:
                alerts.sort(key=lambda alert: -alert.severity.rank)
                worst = alerts[0].severity
                notices.append(Notice(tuple(alerts), worst, resolved, step, now, names))
        return notices

    # -- checkpoints --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "episodes": [[*key, asdict(episode)] for key, episode in self._episodes.items()],
            "last_told": [[*key, time] for key, time in self._last_told.items()],
            "groups": [[list(g), x.waiting, x.last] for g, x in self._groups.items()],
            "acked": [list(key) for key in self._acked],
            "silences": [silence.model_dump(mode="json") for silence in self.silences],
            "overflow": self._overflow.state(),
            "now": self._now,
        }

    def load(self, state: Mapping[str, Any], rules: Iterable[str]) -> None:
        """The inverse of `state`; alerts of rules that are gone have ended."""
        names = set(rules)
        for rule, metric, layer, rank, episode in state["episodes"]:
            self._episodes[rule, metric, layer, rank] = _Episode(**episode)
        for rule, metric, layer, rank, time in state["last_told"]:
            self._last_told[rule, metric, layer, rank] = time
        self._acked = {(rule, metric, layer, rank) for rule, metric, layer, rank in state["acked"]}
        for group, waiting, last in state["groups"]:
            self._groups[tuple(group)] = _Group(waiting, last)
        saved = [parse(SilenceConfig, item, "silence") for item in state["silences"]]
        self.silences += [silence for silence in saved if silence not in self.silences]
        self._overflow.load(state["overflow"])
        self._now = state.get("now", -math.inf)
        self.keep({key for key in self._episodes if key[0] in names})

    def keep(self, keys: Collection[Key]) -> None:
        """Go on with these alerts; that the others are no more is told where they were."""
        gone = {key: episode for key, episode in self._episodes.items() if key not in keys}
        for key, episode in gone.items():
            del self._episodes[key]
            self._acked.discard(key)
            if episode.told and self._config.route.send_resolved:
                self._gone.append((key, episode))


def _rank(severity: str) -> int:
    return Severity(severity).rank


def _meets(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(matches(glob, labels.get(name, "")) for name, glob in wanted.items())


def _silences(silence: SilenceConfig, episode: _Episode, step: int, now: float) -> bool:
    if step < silence.from_step:
        return False
    if silence.until_step is not None and step > silence.until_step:
        return False
    if silence.until is not None:
        end = silence.until
        end = end.replace(tzinfo=timezone.utc) if end.tzinfo is None else end
        if now > end.timestamp():
            return False
    return _meets(silence.match, {**episode.labels, "severity": episode.severity})
