"""What each metric is called in Prometheus: made from the catalogue.

``cmr_<component>_<name>_<unit>``, in base units; what counts over the run ends in ``_total``,
shares in ``_ratio``. Numbers of layers and of ranks have names of their own
(``cmr_<component>_layer_…``, ``cmr_<component>_rank_…``): under one name with the whole's,
``sum()`` would count them twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from cmr_monitor_callbacks.catalogue import HEALTH_COMPONENTS, OWN_METRICS, Kind, MetricInfo

Type = Literal["counter", "gauge", "summary"]
Part = Literal["", "layer", "rank"]

_UNITS: Final = {
    "s": "seconds",
    "MiB": "bytes",
    "nats": "nats",
    "%": "ratio",
    "°C": "celsius",
    "W": "watts",
    "MHz": "hertz",
}
_SCALES: Final = {"MiB": 2.0**20, "%": 0.01, "MHz": 1e6}
_WORDS: Final = {"MiB": "_mb", "%": "_percent"}
"""What a metric's own name says of its unit."""
_SHARES: Final = ("_rate", "_share", "_fraction", "_ratio")
_PARTS: Final = {"": "", "layer": ", by layer", "rank": ", of ranks that stand out"}


@dataclass(frozen=True)
class Series:
    """A metric as Prometheus knows it.

    Attributes:
        component: second word of its name.
        stem: what stands behind the component.
        type: as in ``# TYPE``.
        help: as in ``# HELP``.
        scale: factor from the metric's unit to that of the name.
        labels: those that the metric itself makes.

    >>> Series("buffer", "memory_size_bytes", "gauge", "").name("layer")
    'cmr_buffer_layer_memory_size_bytes'
    """

    component: str
    stem: str
    type: Type
    help: str
    scale: float = 1.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def name(self, part: Part = "") -> str:
        """Name of the whole's number, or of those of layers or ranks."""
        return "_".join(word for word in ("cmr", self.component, part, self.stem) if word)

    def text(self, part: Part = "") -> str:
        """What HELP says of that name."""
        return self.help + _PARTS[part]


def series_of(info: MetricInfo) -> Series:
    """What a metric is called in Prometheus.

    Args:
        info: a row of the catalogue.

    >>> from cmr_monitor_callbacks.catalogue import BY_NAME
    >>> [series_of(BY_NAME[name]).name() for name in ("memory_size_mb", "eviction_count")]
    ['cmr_buffer_memory_size_bytes', 'cmr_buffer_eviction_total']
    >>> quantile = series_of(BY_NAME["capture_time_p95"])
    >>> quantile.name(), dict(quantile.labels)
    ('cmr_capture_capture_time_seconds', {'quantile': '0.95'})
    """
    verdict = _VERDICTS.get(info.unit) if info.component == "health" else None
    if verdict is not None:
        return _health(info, verdict)
    kind: Type = "gauge"
    labels = {}
    if _counts(info):
        kind = "counter"
    elif info.kind is Kind.QUANTILE:
        # a gauge must not have the label quantile; a summary need not have a sum
        kind, labels = "summary", {"quantile": repr(info.quantile)}
    return Series(
        info.component, _stem(info), kind, _help(info), _SCALES.get(info.unit, 1.0), labels
    )


def _counts(info: MetricInfo) -> bool:
    return info.kind is Kind.COUNTER or info.cumulative


def _stem(info: MetricInfo) -> str:
    name = info.numerator if info.kind is Kind.QUANTILE else info.name
    if info.kind is Kind.MEAN and info.unit == "s":
        name = f"avg_{name.removeprefix('avg_')}"  # the name without it is the quantiles'
    if _counts(info):
        name = name.removeprefix("total_").removesuffix("_count")
    unit = _UNITS.get(info.unit, "")
    if info.unit.endswith("/s"):
        unit = f"{info.unit.removesuffix('/s')}_per_second"
    elif info.unit in _WORDS:
        name = name.replace(_WORDS[info.unit], "")
    elif info.unit == "1" and info.kind is not Kind.MEAN:
        word = next((word for word in _SHARES if name.endswith(word)), "")
        name, unit = name.removesuffix(word), "ratio"
    if unit and not name.endswith(unit):
        name = f"{name}_{unit}"
    return f"{name}_total" if _counts(info) else name


def _help(info: MetricInfo) -> str:
    if info.kind is Kind.COUNTER:
        return f"{info.help}; over the run"
    if info.kind is Kind.QUANTILE:
        return f"quantiles of {info.help.partition(' percentile of ')[2]}; over the last window"
    if info.kind in (Kind.RATIO, Kind.MEAN):
        return f"{info.help}; over the last window"
    return info.help


def _judged(info: MetricInfo) -> str:
    """The component that a verdict is on; '' where it is on the system."""
    name = info.name.removesuffix("_status")
    return name if name in HEALTH_COMPONENTS else ""


_VERDICTS: Final = {
    info.unit: info
    for info in OWN_METRICS
    if info.component == "health" and info.unit in ("0..100", "code") and not _judged(info)
}
"""The verdicts on the system, by unit: those on components are named after them."""


def _health(info: MetricInfo, verdict: MetricInfo) -> Series:
    component = _judged(info)
    if not component:
        return Series(info.component, f"system_{info.name}", "gauge", info.help)
    scale = verdict.help if info.unit == "code" else info.unit
    return Series(
        info.component,
        verdict.name,
        "gauge",
        f"{info.help.replace(component, 'a component')}: {scale}",
        labels={"component": component},
    )
