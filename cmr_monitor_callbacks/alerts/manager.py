"""From transitions to notices: delays by severity, a cooldown, and always a word at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmr_monitor_callbacks.config import AlertConfig, EscalationConfig
from cmr_monitor_callbacks.health import AlertState, Phase, Severity, Transition
from cmr_monitor_callbacks.layers import LayerId

Key = tuple[str, LayerId | None]


@dataclass(frozen=True)
class Notice:
    """One message to people.

    Attributes:
        rule: name of the rule.
        layer: the layer, or None.
        resolved: whether it says that the alert ended.
        severity: of the alert.
        message: what is wrong, or that it is right again.
        step: step of the window that showed it.
    """

    rule: str
    layer: LayerId | None
    resolved: bool
    severity: Severity
    message: str
    step: int

    def __str__(self) -> str:
        word = "RESOLVED" if self.resolved else self.severity.value.upper()
        return f"[cmr-monitor] {word} {self.rule} at step {self.step}: {self.message}"


@dataclass
class _Episode:
    """What has been said of one alert since it began to fire."""

    message: str
    severity: Severity
    told: Severity | None = None


class AlertManager:
    """Decides which notices are due; time is passed in.

    Args:
        config: delays and cooldown.
    """

    def __init__(self, config: AlertConfig) -> None:
        self._cooldown = config.alert_cooldown
        self._escalation = {str(name): rule for name, rule in config.escalation_rules.items()}
        self._episodes: dict[Key, _Episode] = {}
        self._last_told: dict[Key, float] = {}

    def update(
        self,
        states: Iterable[AlertState],
        transitions: Sequence[Transition],
        *,
        step: int,
        now: float,
    ) -> list[Notice]:
        """Notices that are due at the end of a window.

        Args:
            states: alerts as they stand.
            transitions: what changed in this window.
            step: the window's last step.
            now: seconds since the Unix epoch.
        """
        notices = [n for t in transitions if (n := self._on_transition(t)) is not None]
        for state in states:
            if state.phase is Phase.FIRING:
                notices += self._due(state, step, now)
        return notices

    def _on_transition(self, transition: Transition) -> Notice | None:
        state = transition.state
        if state.phase is Phase.FIRING and state.severity is not None:
            episode = self._episodes.setdefault(
                state.key, _Episode(transition.message, state.severity)
            )
            episode.message, episode.severity = transition.message, state.severity
            return None
        if transition.name != "resolved":
            return None
        episode_ended = self._episodes.pop(state.key, None)
        if episode_ended is None or episode_ended.told is None:
            return None  # nobody heard of it, so nobody need hear that it is over
        return Notice(
            state.rule, state.layer, True, episode_ended.told, transition.message, transition.step
        )

    def _due(self, state: AlertState, step: int, now: float) -> list[Notice]:
        episode = self._episodes.get(state.key)
        if episode is None or state.severity is None:
            return []
        rose = episode.told is not None and state.severity.rank > episode.told.rank
        if episode.told is not None and not rose:
            return []
        rule = self._escalation.get(state.severity.value, EscalationConfig())
        fired = state.since_time if state.fired_time is None else state.fired_time
        if not rule.immediate and now - fired < rule.delay:
            return []
        last = self._last_told.get(state.key)
        if not (rose or rule.immediate) and last is not None and now - last < self._cooldown:
            return []
        episode.told = state.severity
        self._last_told[state.key] = now
        return [Notice(state.rule, state.layer, False, state.severity, episode.message, step)]

    def state(self) -> dict[str, list[dict[str, Any]]]:
        """Plain data, for a checkpoint."""
        episodes = [
            {
                "rule": rule,
                "layer": layer,
                "message": episode.message,
                "severity": episode.severity.value,
                "told": None if episode.told is None else episode.told.value,
            }
            for (rule, layer), episode in self._episodes.items()
        ]
        last_told = [
            {"rule": rule, "layer": layer, "time": time}
            for (rule, layer), time in self._last_told.items()
        ]
        return {"episodes": episodes, "last_told": last_told}

    def load(self, state: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
        """The inverse of `state`."""
        for item in state["episodes"]:
            told = None if item["told"] is None else Severity(item["told"])
            key = item["rule"], item["layer"]
            self._episodes[key] = _Episode(item["message"], Severity(item["severity"]), told)
        for item in state["last_told"]:
            self._last_told[item["rule"], item["layer"]] = item["time"]
