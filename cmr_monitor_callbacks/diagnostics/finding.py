"""What a diagnostic gives: findings, as data."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmr_monitor_callbacks.health import HealthStatus, Severity
from cmr_monitor_callbacks.layers import layer_id, layer_tag


@dataclass(frozen=True)
class Hit:
    """One place at which a diagnostic holds.

    Attributes:
        sentence: what is wrong, with its numbers.
        layer: of which layer; None: of the whole.
        evidence: the numbers that it follows from.
    """

    sentence: str
    layer: Hashable | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        name: of the diagnostic.
        severity: how bad it is.
        component: what it is about, such as ``buffer``.
        layer: of which layer; None: of the whole.
        sentence: what is wrong, with its numbers.
        evidence: the numbers that it follows from, and where they are from.
        advice: what to do.

    >>> Finding("dead_layer", Severity.WARNING, "reconstruction", 4, "...").to_dict()["layer"]
    4
    """

    name: str
    severity: Severity
    component: str
    layer: Hashable | None
    sentence: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: numbers that are not finite are None."""
        return {
            "name": self.name,
            "severity": self.severity.value,
            "component": self.component,
            "layer": None if self.layer is None else layer_id(self.layer),
            "sentence": self.sentence,
            "evidence": as_data(self.evidence),
            "advice": self.advice,
        }

    @property
    def where(self) -> str:
        """The layer, as tags have it; '' for the whole."""
        return "" if self.layer is None else layer_tag(layer_id(self.layer))


def as_data(value: Any) -> Any:
    """A value as JSON can hold it.

    >>> as_data({4: (1, float("nan")), "of": {"x"}})
    {'4': [1, None], 'of': ['x']}
    """
    if isinstance(value, Mapping):
        return {str(key): as_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_data(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item"):  # of numpy
        return as_data(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def status_of(findings: Iterable[Finding], *, known: bool = True) -> str:
    """The status that findings give: as a component's health has it from its alerts.

    Args:
        findings: of one part.
        known: whether there was anything to look at.

    >>> status_of([]), status_of([], known=False)
    ('healthy', 'unknown')
    """
    severities = {finding.severity for finding in findings}
    if Severity.CRITICAL in severities:
        return HealthStatus.CRITICAL.value
    if severities:
        return HealthStatus.WARNING.value
    return HealthStatus.HEALTHY.value if known else HealthStatus.UNKNOWN.value
