"""Which numbers a model can give at all: what each comes from, or why nothing gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cmr_monitor_callbacks.catalogue import (
    BY_NAME,
    COMPONENTS,
    METRICS,
    RECORDS,
    STATISTICS,
    Kind,
    MetricInfo,
    is_custom,
)
from cmr_monitor_callbacks.config import MonitoringConfig, ResourcesConfig
from cmr_monitor_callbacks.layers import LayerId

_KEPT_BY: Final = {s.name: s.component for s in STATISTICS}
"""By statistic, the group that it is recorded with."""
_PROBED: Final = frozenset(RECORDS)
"""Groups of statistics that a probe call can give; what is not among them, watching alone sees."""
_OF_THE_WHOLE: Final = ("timing", "model")
"""Components that know no layers."""
STRAGGLERS: Final = frozenset(("straggler_ratio", "straggler_rank", "straggler_to_best"))
"""Metrics that compare processes."""
_WATCHING: Final = "the calls that are watched"


@dataclass(frozen=True)
class Sources:
    """What gives numbers.

    Attributes:
        config: what is collected.
        ranks: number of processes; None: nobody says.
        found: where numbers come from, by component or metric; None: no model was looked at.
        layers: those that are known; None: no model was looked at.
        certain: whether no other layers can come.
        seen: metrics that had data in real passes; None: there were none.
        resources: what is sampled of the machine; which GPU it has is not known here.
    """

    config: MonitoringConfig
    ranks: int | None = None
    found: Mapping[str, str] | None = None
    layers: tuple[LayerId, ...] | None = None
    certain: bool = True
    seen: frozenset[str] | None = None
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    missing: dict[str, str] = field(init=False)
    """By component that is watched, why nothing gives its numbers."""

    def __post_init__(self) -> None:
        missing = {
            component: f"no {component}: nothing in the model gives its numbers"
            for component in COMPONENTS
            if self.found is not None
            and self.config.watches_component(component)
            and not any(self.of(m) for m in METRICS if m.component == component)
        }
        object.__setattr__(self, "missing", missing)

    def of(self, metric: MetricInfo) -> str:
        """What a metric comes from; '' for nothing."""
        found = self.found or {}
        if metric.component not in COMPONENTS:
            return found.get("monitor", "self")
        exact = found.get(metric.name, found.get(metric.numerator, ""))
        if exact:
            return exact
        source = found.get(metric.component, "")
        if metric.component == "errors" and not source and "output_entropy" in found:
            return _WATCHING
        # of a whole component only what each of its sources gives is known
        narrow = source.startswith(("explicit:", "batch:"))
        return "" if narrow and _group(metric) not in _PROBED else source

    def obstacle(self, name: str, *, by_layer: bool) -> str:
        """Why a metric cannot have data, in a sentence; '' where it can.

        Args:
            name: of the metric.
            by_layer: whether it is that of a layer.
        """
        metric = BY_NAME[name]
        if is_custom(name):  # a call of track_metric gives it, which may stand anywhere
            return ""
        off = self._switched_off(metric)
        if off:
            return f"{name} needs the component {off}, which monitoring.components switches off"
        if metric.component == "resources" and not self.resources.enabled:
            return f"{name} is not sampled: resources.enabled is false"
        if name.startswith("gpu_") and not self.resources.gpu:
            return f"{name} is not sampled: resources.gpu is false"
        if name in STRAGGLERS and self.ranks == 1:
            return f"{name} compares processes, and there is one"
        if by_layer and not has_layers(metric):
            return f"{name} is known of the model as a whole only; leave select.layer out"
        if self.found is not None and not self.of(metric):
            return self.missing.get(metric.component, self._lacking(metric))
        return ""

    def _lacking(self, metric: MetricInfo) -> str:
        probed = any(source.startswith("explicit:") for source in (self.found or {}).values())
        if probed and _group(metric) not in _PROBED:
            return f"a probe cannot give {metric.name}; probes.automatic: true may"
        return f"nothing in the model gives {metric.name}"

    def _switched_off(self, metric: MetricInfo) -> str:
        needed = [metric.component]
        for statistic in (metric.numerator, metric.denominator):
            needed.append(_KEPT_BY.get(statistic.lstrip("#"), metric.component))
        return next(
            (c for c in needed if c in COMPONENTS and not self.config.watches_component(c)), ""
        )

    def was_quiet(self, name: str) -> bool:
        """Whether a metric had no data in the passes, though one would give it."""
        if self.seen is None or name in self.seen or is_custom(name):
            return False
        own_source = self.of(BY_NAME[name]).startswith(("timer:", "batch:", "self"))
        return not own_source


def _group(metric: MetricInfo) -> str:
    return _KEPT_BY.get(metric.numerator.lstrip("#"), metric.component)


def has_layers(metric: MetricInfo) -> bool:
    """Whether a metric is known by layer."""
    own = metric.kind in (Kind.SCORE, Kind.QUANTILE)
    return not own and metric.component not in _OF_THE_WHOLE
