"""Prometheus' samples of what was reported last: made when it asks, from the newest reports."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cmr_monitor_callbacks.catalogue import BY_NAME, COMPONENTS, CUSTOM, METRICS, OWN_METRICS, Kind
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.layers import LayerId, layer_order, layer_tag
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW
from cmr_monitor_callbacks.ranks import SHOWN_BY_RANK, standing_out
from cmr_monitor_callbacks.sinks.base import WindowReport
from cmr_monitor_callbacks.sinks.prometheus_names import Part, Series, Type, series_of
from cmr_monitor_callbacks.sinks.tags import is_shown
from cmr_monitor_callbacks.snapshot import Snapshot

if TYPE_CHECKING:
    from prometheus_client import Metric

_SERIES: Final = {info.name: series_of(info) for info in (*METRICS, *OWN_METRICS)}
_STEP: Final = Series("", "last_window_step", "gauge", "last step of the newest window")
_TIME: Final = Series(
    "", "last_window_timestamp_seconds", "gauge", "when the newest window ended, since the epoch"
)
_CUSTOM: Final = Series("", "custom", "gauge", "mean of the window, of what track_metric was given")
_ALERT: Final = Series("", "alert_firing", "gauge", "1 for each alert that fires")
_INFO: Final = "the monitor, and how many processes train"


class ReportCollector:
    """Makes Prometheus' samples of the newest report of each stage, whenever it is asked.

    A number without data has no sample.

    Args:
        labels: labels of every series.
        layer_metrics: globs over the metrics given for each layer; None: the catalogue's choice.
        whole_metrics: the same for the model as a whole; None: all.
        world_size: processes that train.

    Attributes:
        newest: the newest report by stage.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        layer_metrics: Sequence[str] | None = None,
        whole_metrics: Sequence[str] | None = None,
        world_size: int = 1,
    ) -> None:
        self.newest: dict[str, WindowReport] = {}
        self._labels = dict(labels or {})
        self._whole = [m for m in METRICS if is_shown(m.name, True, whole_metrics)]
        self._own = [m for m in OWN_METRICS if is_shown(m.name, True, whole_metrics)]
        self._by_layer = [
            m
            for m in METRICS
            if m.kind is not Kind.QUANTILE  # kept for the whole alone
            and is_shown(m.name, m.layer_tag, layer_metrics)
        ]
        self._globs = whole_metrics
        self._world_size = world_size

    def describe(self) -> Iterable[Metric]:
        """Every family that there may be, without samples."""
        families = _Families(self._labels)
        for info in (*self._whole, *self._own):
            families.of(_SERIES[info.name])
        for info in self._by_layer:
            families.of(_SERIES[info.name], "layer")
        for name in SHOWN_BY_RANK:
            families.of(_SERIES[name], "rank")
        for series in (_STEP, _TIME, _CUSTOM, _ALERT):
            families.of(series)
        return [self._info(), *families.all()]

    def collect(self) -> Iterable[Metric]:
        """Every family that has samples now."""
        families = _Families(self._labels)
        # a copy: training may write a new stage meanwhile
        for stage, report in self.newest.copy().items():
            snapshot = report.snapshot
            families.add(_STEP, snapshot.step, {"stage": stage})
            families.add(_TIME, snapshot.time, {"stage": stage})
            texts = layer_texts(snapshot.layer_ids)
            self._add_numbers(families, snapshot, texts)
            _add_ranks(families, snapshot)
            self._add_own(families, snapshot)
            _add_alerts(families, report.health, texts)
        return [self._info(), *families.all()]

    def _info(self) -> Metric:
        from prometheus_client.core import InfoMetricFamily

        values = {"version": _version(), "world_size": str(self._world_size)}
        return InfoMetricFamily("cmr", _INFO, {**self._labels, **values})

    def _add_numbers(
        self, families: _Families, snapshot: Snapshot, texts: Mapping[LayerId, str]
    ) -> None:
        stage = {"stage": snapshot.stage}
        for info in self._whole:
            families.add(_SERIES[info.name], _row(snapshot, info.name)[0], stage)
        layers = snapshot.layer_ids
        columns = sorted(range(len(layers)), key=lambda i: layer_order(layers[i]))
        for info in self._by_layer:
            values = _row(snapshot, info.name)
            for i in columns:
                labels = {**stage, "layer": texts[layers[i]]}
                families.add(_SERIES[info.name], values[i + 1], labels, "layer")

    def _add_own(self, families: _Families, snapshot: Snapshot) -> None:
        for info in self._own:
            labels = {"stage": snapshot.stage} if info.component in COMPONENTS else {}
            value = snapshot.own.get(info.name)
            if value is not None:
                families.add(_SERIES[info.name], value, labels)
        for name, tracked in snapshot.custom.items():
            if is_shown(CUSTOM + name, True, self._globs):
                families.add(_CUSTOM, tracked.mean, {"name": name})


def _version() -> str:
    try:
        return importlib.metadata.version("cmr-monitor-callbacks")
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


def layer_texts(layers: Sequence[LayerId]) -> dict[LayerId, str]:
    """Value of the label ``layer`` of each layer; no two are alike.

    >>> layer_texts([4, "encoder.2"]), layer_texts([4, "4"])
    ({4: '4', 'encoder.2': 'encoder.2'}, {4: '04', '4': '4'})
    """
    texts = {layer: str(layer) for layer in layers}
    if len(set(texts.values())) < len(texts):
        texts = {layer: layer_tag(layer).removeprefix("layer_") for layer in layers}
    return texts


def _row(snapshot: Snapshot, name: str) -> list[float]:
    counted = BY_NAME[name].kind is Kind.COUNTER
    row = snapshot.counters[COUNTERS.index(name)] if counted else snapshot.window[METRIC_ROW[name]]
    values: list[float] = row.tolist()
    return values


def _add_ranks(families: _Families, snapshot: Snapshot) -> None:
    if snapshot.by_rank is None or snapshot.stage != "train":
        return
    for name, rank, value in standing_out(snapshot.by_rank):
        families.add(_SERIES[name], value, {"stage": snapshot.stage, "rank": str(rank)}, "rank")


def _add_alerts(families: _Families, health: HealthReport, texts: Mapping[LayerId, str]) -> None:
    for state in health.firing:
        labels = {"alert": state.rule, **state.labels}
        if state.layer is not None:
            labels["layer"] = texts.get(state.layer, str(state.layer))
        if state.severity is not None:
            labels["severity"] = state.severity.value
        families.add(_ALERT, 1.0, labels)


class _Families:
    """Samples by family, in the order in which the families were first named."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        from prometheus_client import core

        self._labels = labels
        self._known: dict[str, Metric] = {}
        self._sample = core.Sample
        self._types: dict[Type, Any] = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "summary": core.SummaryMetricFamily,
        }

    def of(self, series: Series, part: Part = "") -> Metric:
        name = series.name(part)
        family = self._known.get(name)
        if family is None:
            family = self._known[name] = self._types[series.type](name, series.text(part))
        return family

    def add(self, series: Series, value: float, labels: Mapping[str, str], part: Part = "") -> None:
        """Add a sample; no data is none."""
        if value != value:
            return
        given = {**self._labels, **series.labels, **labels}
        sample = self._sample(series.name(part), given, value * series.scale)
        self.of(series, part).samples.append(sample)

    def all(self) -> list[Metric]:
        return list(self._known.values())
