"""In which steps a profile is made: a function of steps and alerts alone, so alike on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmr_monitor_callbacks.config import MonitoringConfig, ProfilingConfig
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.layers import matches


def check_profiling(
    monitoring: MonitoringConfig, profiling: ProfilingConfig, rules: Sequence[str], more: bool
) -> bool:
    """Whether profiles may be made from the start.

    Args:
        monitoring: may say so, too.
        profiling: the settings.
        rules: names of the rules in force.
        more: whether others may come: there is a file of rules.

    Raises:
        ConfigError: it is said in both places, or no rule has the name of a trigger.

    >>> check_profiling(MonitoringConfig(), ProfilingConfig(enabled=True), [], False)
    True
    """
    if profiling.enabled is not None and monitoring.enable_profiling:
        raise ConfigError(
            "monitoring.enable_profiling and profiling.enabled are both set; keep one"
        )
    for glob in () if more else profiling.trigger.rules:
        if not any(matches(glob, name) for name in rules):
            hint = nearest(glob, rules).partition(" (")[0]
            raise ConfigError(f"profiling.trigger.rules: no rule is named {glob!r}; {hint}")
    return monitoring.enable_profiling if profiling.enabled is None else profiling.enabled


@dataclass(frozen=True)
class Plan:
    """A profile that is to be made.

    Attributes:
        reason: ``schedule``, or the name of the alert.
        warmup: steps in which the profiler runs, but nothing is kept.
        active: steps that are profiled; None: until somebody ends it.
    """

    reason: str
    warmup: int = 0
    active: int | None = None


class Planner:
    """Says with which step a profile begins.

    Args:
        config: schedule, trigger and how many at most.

    >>> planner = Planner(ProfilingConfig(schedule={"wait": 2, "warmup": 0, "active": 3}))
    >>> [planner.begins(step) is not None for step in range(4)]
    [False, False, True, False]
    """

    def __init__(self, config: ProfilingConfig) -> None:
        self._schedule = config.schedule
        self._trigger = config.trigger
        self._most = config.max_profiles
        self._first: int | None = None
        """The step from which the schedule counts."""
        self._quiet_until = 0
        """The first step in which an alert may start a profile again."""
        self._asked: Plan | None = None
        self.made = 0
        """Profiles that were begun, on whatever rank."""

    def hears(self, rules: Iterable[str]) -> None:
        """Alerts started firing; the first that is looked for has its profile in the next step."""
        for rule in rules:
            for glob, steps in self._trigger.rules.items():
                if self._asked is None and matches(glob, rule):
                    self._asked = Plan(rule, self._trigger.warmup, steps)

    def begins(self, step: int) -> Plan | None:
        """The profile that begins with a step, if no other is under way; asked once for each."""
        if self._first is None:
            self._first = step
        asked, self._asked = self._asked, None
        if self.made >= self._most:
            return None
        if asked is None or step < self._quiet_until:
            asked = self._scheduled(step - self._first)
        if asked is not None:
            self.made += 1
        return asked

    def _scheduled(self, position: int) -> Plan | None:
        schedule = self._schedule
        if schedule is None:
            return None
        cycle, at = divmod(position, schedule.wait + schedule.warmup + schedule.active)
        over = schedule.repeat and cycle >= schedule.repeat
        if over or at != schedule.wait:
            return None
        return Plan("schedule", schedule.warmup, schedule.active)

    def ended(self, step: int) -> None:
        """A profile is over; ``step`` was its last."""
        self._quiet_until = step + 1 + self._trigger.cooldown
        self._asked = None  # what fired meanwhile is in it
