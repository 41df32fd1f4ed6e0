"""What watching will cost, from the catalogue and the settings."""

from __future__ import annotations

from collections.abc import Sequence

from cmr_monitor_callbacks.catalogue import METRICS, OWN_METRICS
from cmr_monitor_callbacks.checking.report import Cost
from cmr_monitor_callbacks.checking.settings import Settings
from cmr_monitor_callbacks.checking.sources import Sources, has_layers
from cmr_monitor_callbacks.distributed.payload import payload_length
from cmr_monitor_callbacks.health import AlertRule
from cmr_monitor_callbacks.health.series import Series
from cmr_monitor_callbacks.layers import LayerId, matches
from cmr_monitor_callbacks.packed import Packed, read, read_counters
from cmr_monitor_callbacks.sinks.tags import TagTable

_FLOAT = 8


def estimate(settings: Settings, rules: Sequence[AlertRule], sources: Sources) -> Cost:
    """Sizes that follow from the layers, and from which numbers have a source."""
    layers = sources.layers or ()
    given = [
        metric
        for metric in (*METRICS, *OWN_METRICS)
        if not sources.obstacle(metric.name, by_layer=False)
    ]
    names = {metric.name for metric in given}
    by_layer = sum(map(has_layers, given))
    scalars = _scalars(settings, names, layers)
    config, width = settings.monitoring, len(layers) + 1
    length = payload_length(width, by_layer=config.layer_quantiles)
    ranks = sources.ranks or 1
    return Cost(
        layers=None if sources.layers is None else len(layers),
        series=len(given) + by_layer * len(layers),
        series_per_layer=by_layer,
        rule_series=len(Series(rules, layers, ranks)),
        scalars=scalars,
        scalars_per_layer=_scalars(settings, names, ["a layer"]) - _scalars(settings, names, []),
        window_bytes=_window_bytes(width, by_layer=config.layer_quantiles),
        payload_bytes=length * _FLOAT if ranks > 1 else None,
        window_steps=config.log_every_n_steps,
    )


def _scalars(settings: Settings, names: set[str], layers: Sequence[LayerId]) -> int:
    config = settings.monitoring
    table = TagTable("train", layers, config.layer_metrics, config.whole_metrics)
    own = [
        metric
        for metric in OWN_METRICS
        if metric.name in names
        and (
            metric.whole_tag
            if config.whole_metrics is None
            else any(matches(glob, metric.name) for glob in config.whole_metrics)
        )
    ]
    return len(own) + sum(tag.split("/")[1] in names for tag in table.tags)


def _window_bytes(width: int, *, by_layer: bool) -> int:
    """Of the window's and the run's statistics, and of the tables of metrics read from them."""
    packed = Packed.empty(width, by_layer=by_layer)
    kept = [packed.values, packed.samples, packed.histograms, packed.extremes]
    if packed.by_layer is not None:
        kept += [packed.by_layer.counts, packed.by_layer.extremes]
    tables = (read(packed, packed), read_counters(packed))
    return 2 * sum(array.nbytes for array in kept) + sum(array.nbytes for array in tables)
