"""The verdict: a score and a status for each component and for the system."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cmr_monitor_callbacks.catalogue import HEALTH_COMPONENTS, METRICS, RESOURCE_NAMES
from cmr_monitor_callbacks.health.states import AlertState, HealthStatus, Phase, Severity
from cmr_monitor_callbacks.snapshot import Snapshot

_COST: Final = {Severity.WARNING: 20.0, Severity.ERROR: 50.0, Severity.CRITICAL: 100.0}
_REPORTED: Final = {"buffer": "memory_buffer", "retrieval": "retrieval_system"}


def reported_name(component: str) -> str:
    """The name of a component in reports.

    >>> reported_name("buffer"), reported_name("capture")
    ('memory_buffer', 'capture')
    """
    return _REPORTED.get(component, component)


@dataclass(frozen=True)
class ComponentHealth:
    """The verdict on one component; the score is NaN where nothing is known."""

    score: float = math.nan
    status: HealthStatus = HealthStatus.UNKNOWN


@dataclass(frozen=True)
class HealthReport:
    """The verdict on a run.

    Attributes:
        score: 0..100; half the worst component and half their mean; 100 before anything is judged.
        status: of the system.
        components: by component.
        firing: alerts that fire, the worst first.
        pending: alerts whose condition holds, not yet for long enough.
        known: components of which there are numbers.
        sample_every: calls are timed in every so many-th step; more than the settings say where
            the monitor took too much of the time.

    >>> report = HealthReport()
    >>> report.score, report.status.value
    (100.0, 'unknown')
    """

    score: float = 100.0
    status: HealthStatus = HealthStatus.UNKNOWN
    components: Mapping[str, ComponentHealth] = field(default_factory=dict)
    firing: tuple[AlertState, ...] = ()
    pending: tuple[AlertState, ...] = ()
    known: frozenset[str] = frozenset()
    sample_every: int = 1

    def numbers(self) -> dict[str, float]:
        """The verdict as numbers by metric name; unknown components are left out."""
        out = {
            "score": self.score,
            "status": float(self.status.code),
            "alerts_firing": float(len(self.firing)),
            "alerts_pending": float(len(self.pending)),
        }
        for name, component in self.components.items():
            if component.status is not HealthStatus.UNKNOWN:
                out[name] = component.score
                out[f"{name}_status"] = float(component.status.code)
        return out

    def component_status(self) -> dict[str, str]:
        """Status by component, under the names that reports use."""
        return {reported_name(name): c.status.value for name, c in self.components.items()}


def assess(
    states: Iterable[AlertState], snapshot: Snapshot, last: HealthReport | None = None
) -> HealthReport:
    """Score components and system; ``last`` is given back if nothing has changed.

    A component starts at 100 and loses 20 (warning), 50 (error) or 100 (critical) for the worst
    alert firing on it, and 5 for every further rule firing. One without data is unknown and not
    counted.

    >>> from cmr_monitor_callbacks.health.report import system_score
    >>> round(system_score([100.0, 100.0, 80.0]), 1)
    86.7
    """
    alerts = sorted(states, key=lambda s: 0 if s.severity is None else -s.severity.rank)
    known, every = _known(snapshot), int(snapshot.own.get("sample_every", 1))
    if last is not None and not (alerts or last.firing or last.pending):
        same = (known, every) == (last.known, last.sample_every)
        if same:
            return last
    firing = tuple(s for s in alerts if s.phase.fires)
    components = {}
    for name in HEALTH_COMPONENTS:
        on_it = [s for s in firing if s.component == name]
        components[name] = _component(on_it, known=bool(on_it) or name in known)
    scores = [c.score for c in components.values() if not math.isnan(c.score)]
    score = system_score(scores)
    return HealthReport(
        score,
        _system_status(score, firing, components),
        components,
        firing,
        tuple(s for s in alerts if s.phase is Phase.PENDING),
        known,
        every,
    )


def system_score(scores: Iterable[float]) -> float:
    """Half the worst component and half their mean; 100 without any."""
    known = list(scores)
    return 0.5 * min(known) + 0.5 * sum(known) / len(known) if known else 100.0


def _component(firing: list[AlertState], *, known: bool) -> ComponentHealth:
    if not known:
        return ComponentHealth()
    if not firing:
        return ComponentHealth(100.0, HealthStatus.HEALTHY)
    worst = max((s.severity for s in firing if s.severity), key=lambda s: s.rank)
    further = len({s.rule for s in firing}) - 1
    score = max(0.0, 100.0 - _COST[worst] - 5.0 * further)
    critical = worst is Severity.CRITICAL
    return ComponentHealth(score, HealthStatus.CRITICAL if critical else HealthStatus.WARNING)


def _system_status(
    score: float, firing: tuple[AlertState, ...], components: Mapping[str, ComponentHealth]
) -> HealthStatus:
    severities = {s.severity for s in firing}
    if Severity.CRITICAL in severities or score < 50:
        return HealthStatus.CRITICAL
    if Severity.ERROR in severities or score < 80:
        return HealthStatus.WARNING
    known = any(c.status is not HealthStatus.UNKNOWN for c in components.values())
    return HealthStatus.HEALTHY if known else HealthStatus.UNKNOWN


_SAMPLED: Final = frozenset(RESOURCE_NAMES)
_OWNER: Final = np.array([m.component for m in METRICS])


def _known(snapshot: Snapshot) -> frozenset[str]:
    """Components with numbers: a counter that was ever seen is a number in every window."""
    # equal to itself: not NaN
    whole = snapshot.window[:, 0]
    found = set(_OWNER[whole == whole].tolist())
    if snapshot.own:
        found.add("monitor")
    if not _SAMPLED.isdisjoint(snapshot.own):
        found.add("resources")
    return frozenset(found)
