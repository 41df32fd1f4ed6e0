"""Every number of the monitor, in one table: the only place that spells a metric's name.

Three lists, each made from the one before:

``RECORDS``
    what a probe call gives: the fields of one event, in order.
``STATISTICS``
    what is stored: sums and counts that add over steps, layers and ranks; gauges that keep the last
    value. Averages are never stored.
``METRICS``
    what is read: a counter is a statistic, a ratio or mean divides two of them, a quantile comes
    from a histogram. Tags, CSV headers, the table in the docs and the reports come from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Literal

from cmr_monitor_callbacks.errors import nearest


class Kind(str, Enum):
    """How a metric is read."""

    COUNTER = "counter"
    GAUGE = "gauge"
    RATIO = "ratio"
    MEAN = "mean"
    QUANTILE = "quantile"
    SCORE = "score"


class Polarity(str, Enum):
    """Which direction is good."""

    HIGHER = "higher is better"
    LOWER = "lower is better"
    NEITHER = "neither"


class Store(str, Enum):
    """How a statistic is kept."""

    COUNT = "count"  # int64, adds
    SUM = "sum"  # float64, adds
    GAUGE = "gauge"  # float64, the last one over steps, adds over layers and ranks


RECORDS: Final[dict[str, tuple[str, ...]]] = {
    "capture": ("attempted", "captured", "stored", "seconds", "considered"),
    "reconstruction": ("memories_used", "quality", "seconds"),
    "buffer": ("entries", "capacity", "nbytes", "evicted", "cleared", "loaded"),
    "retrieval": ("requested", "returned", "hits", "seconds", "quality"),
    "timing": ("step", "data_wait", "forward", "backward", "optimizer", "monitor", "passes"),
    "throughput": ("samples", "tokens", "step", "data_wait"),
    "errors": ("errors", "operations", "nonfinite"),
}
"""Fields of one event of each component; a field may be None, which is no data."""

UNIT_INTERVAL: Final = frozenset({"quality"})
"""Fields that must lie in 0..1."""

NONFINITE: Final[dict[tuple[str, str], str]] = {
    **{
        (kind, field): f"nonfinite_{kind}_{field}"
        for kind in ("capture", "reconstruction", "buffer", "retrieval")
        for field in RECORDS[kind]
    },
    ("similarity", "similarity"): "nonfinite_similarity",
}
"""Statistic that counts the values of a field that were not taken because not finite."""

REAL_FIELDS: Final = UNIT_INTERVAL | {
    "seconds",
    "memories_used",
    "step",
    "data_wait",
    "forward",
    "backward",
    "optimizer",
    "monitor",
}
"""Fields that need not be whole numbers."""


@dataclass(frozen=True)
class Statistic:
    """One stored row."""

    name: str
    component: str
    store: Store


def _statistics(component: str, store: Store, *names: str) -> tuple[Statistic, ...]:
    return tuple(Statistic(name, component, store) for name in names)


STATISTICS: Final[tuple[Statistic, ...]] = (
    *_statistics(
        "capture",
        Store.COUNT,
        "states_attempted",
        "states_captured",
        "states_stored",
        "states_considered",
        "capture_calls",
    ),
    *_statistics("capture", Store.SUM, "capture_seconds"),
    *_statistics("reconstruction", Store.COUNT, "reconstruction_calls", "total_reconstructions"),
    *_statistics(
        "reconstruction",
        Store.SUM,
        "memories_used_sum",
        "reconstruction_quality_sum",
        "reconstruction_seconds",
    ),
    *_statistics(
        "buffer", Store.COUNT, "eviction_count", "states_cleared", "states_loaded", "entries_seen"
    ),
    *_statistics("buffer", Store.GAUGE, "total_entries", "capacity", "memory_bytes"),
    *_statistics(
        "retrieval",
        Store.COUNT,
        "total_retrievals",
        "entries_retrieved",
        "cache_hits",
        "cache_operations",
        "retrievals_timed",
    ),
    *_statistics("retrieval", Store.SUM, "retrieval_seconds", "retrieval_quality_sum"),
    *_statistics("timing", Store.COUNT, "forward_passes", "passes_timed"),
    *_statistics(
        "timing",
        Store.SUM,
        "step_seconds",
        "data_wait_seconds",
        "forward_seconds",
        "backward_seconds",
        "optimizer_seconds",
        "monitor_seconds",
    ),
    *_statistics("throughput", Store.COUNT, "samples", "tokens"),
    *_statistics("throughput", Store.SUM, "sample_seconds", "token_seconds"),
    *_statistics("errors", Store.COUNT, "error_count", "operations", "nonfinite_count"),
    # what no probe call says, but a monitor that watches by itself can see
    *_statistics("moves", Store.COUNT, "states_overwritten", "states_merged", "clear_count"),
    *_statistics("matches", Store.COUNT, "retrieval_hits", "slots_asked"),
    *_statistics("matches", Store.SUM, "retrieval_similarity_sum"),
    *_statistics("similarity", Store.SUM, "reconstruction_similarity_sum"),
    *_statistics(
        "passage",
        Store.COUNT,
        "positions_seen",
        "positions_padded",
        "rows_seen",
        "outputs_seen",
        "outputs_nonfinite",
    ),
    *_statistics("passage", Store.SUM, "output_entropy_sum"),
    *_statistics(
        "optimization",
        Store.COUNT,
        "threshold_adjustments",
        "batch_optimizations",
        "prefetch_hits",
    ),
    *_statistics("waiting", Store.SUM, "waited_wall_seconds"),
    *_statistics("nonfinite", Store.COUNT, *NONFINITE.values()),
)

TIMERS: Final[tuple[tuple[str, str], ...]] = (
    ("capture", "capture_time"),
    ("reconstruction", "reconstruction_time"),
    ("retrieval", "retrieval_time"),
    ("timing", "step_time"),
    ("timing", "data_wait"),
    ("timing", "forward_time"),
    ("timing", "backward_time"),
    ("timing", "optimizer_time"),
)
"""(component, name) of each latency histogram, kept for the component as a whole."""


@dataclass(frozen=True)
class MetricInfo:
    """One row of the table of metrics."""

    name: str
    component: str
    kind: Kind
    unit: str
    polarity: Polarity
    help: str
    numerator: str = ""
    """Statistic that is read; of a ratio or mean, the upper one; of a quantile, its timer."""
    denominator: str = ""
    """Statistic below the line; ``#name``: the number of samples given of a statistic."""
    quantile: float = 0.0
    layer_tag: bool = False
    """Logged for each layer by default."""
    whole_tag: bool = True
    """Logged for the model as a whole by default."""
    aliases: tuple[str, ...] = ()
    cumulative: bool = False
    """Of a score: it grows over the run, as a counter does."""

    @property
    def over_steps(self) -> str:
        """How values of successive steps make one."""
        sampled = _SAMPLED.get(self.name)
        return _OVER_STEPS[self.kind] if sampled is None else f"{sampled.over_samples} of samples"

    @property
    def over_ranks(self) -> str:
        """How the ranks' values make the whole's."""
        special = {
            "throughput": "sum of the ranks' rates",
            "tokens_per_second": "sum of the ranks' rates",
            "collection_rate": "sum of the ranks' rates",
            "alert_rate": "sum of the ranks' rates",
            "storage_latency": "rank 0's",
            "dropped_events": "sum",
            "total_forward_time": "max",
        }
        sampled = _SAMPLED.get(self.name)
        if sampled is not None:
            return sampled.over_ranks
        return special.get(self.name, _OVER_LAYERS[self.kind])

    @property
    def over_layers(self) -> str:
        """How the layers' values make the whole model's."""
        if self.name == "capacity":
            return "min(total limit, sum of the layers' limits)"
        return _OVER_LAYERS[self.kind]

    @property
    def tag(self) -> str:
        """The tag of the whole model's value, for the training stage."""
        return f"cmr_{self.component}/{self.name.removeprefix(CUSTOM)}"


_OVER_STEPS = {
    Kind.COUNTER: "sum",
    Kind.GAUGE: "last",
    Kind.RATIO: "ratio of sums",
    Kind.MEAN: "sum / count",
    Kind.QUANTILE: "merged histogram",
    Kind.SCORE: "last",
}
_OVER_LAYERS = _OVER_STEPS | {Kind.GAUGE: "sum"}


def _counter(
    component: str,
    name: str,
    unit: str,
    help_: str,
    *,
    polarity: Polarity = Polarity.NEITHER,
    numerator: str = "",
    layer_tag: bool = False,
    aliases: tuple[str, ...] = (),
) -> MetricInfo:
    return MetricInfo(
        name,
        component,
        Kind.COUNTER,
        unit,
        polarity,
        help_,
        numerator=numerator or name,
        layer_tag=layer_tag,
        aliases=aliases,
    )


def _ratio(
    component: str,
    name: str,
    over: str,
    under: str,
    help_: str,
    *,
    kind: Kind = Kind.RATIO,
    unit: str = "1",
    polarity: Polarity = Polarity.HIGHER,
    layer_tag: bool = False,
) -> MetricInfo:
    return MetricInfo(
        name, component, kind, unit, polarity, help_, over, under, layer_tag=layer_tag
    )


def _mean_seconds(
    component: str, name: str, stat: str, under: str, help_: str, *, layer_tag: bool = False
) -> MetricInfo:
    return _ratio(
        component,
        name,
        stat,
        under,
        help_,
        kind=Kind.MEAN,
        unit="s",
        polarity=Polarity.LOWER,
        layer_tag=layer_tag,
    )


def _quantiles(component: str, timer: str, help_: str, *, logged: bool) -> tuple[MetricInfo, ...]:
    return tuple(
        MetricInfo(
            f"{timer}_p{round(q * 100)}",
            component,
            Kind.QUANTILE,
            "s",
            Polarity.LOWER,
            f"{round(q * 100)}th percentile of {help_}, within 2 %",
            numerator=timer,
            quantile=q,
            whole_tag=logged,
        )
        for q in (0.50, 0.95, 0.99)
    )


_NOT_LOGGED: Final = frozenset(
    {
        "states_considered",
        "capture_calls",
        "reconstruction_calls",
        "states_loaded",
        "states_cleared",
        "states_overwritten",
        "states_merged",
        "clear_count",
        "turnover",
        "data_wait_share",
        "retrieval_hits",
        "sequence_length",
        "padding_share",
        "batch_size",
        "tokens",
        "total_forward_time",
        "avg_latency",
        *(
            f"{kind}_time_p{q}"
            for kind in ("capture", "reconstruction", "retrieval")
            for q in (50, 95)
        ),
    }
)
"""Of the whole by default not logged: at 12 layers 150 tags are enough."""

_ALL_METRICS: Final[tuple[MetricInfo, ...]] = (
    # capture
    _counter("capture", "states_considered", "states", "states scored for relevance"),
    _counter(
        "capture",
        "states_attempted",
        "states",
        "states that passed the selection and that the capture tried to take",
    ),
    _counter(
        "capture",
        "states_captured",
        "states",
        "states taken: finite, well-shaped, handed to the buffer",
        layer_tag=True,
        aliases=("total_captures", "states_captured_per_layer"),
    ),
    _counter(
        "capture",
        "states_stored",
        "states",
        "captured states that the buffer took",
        layer_tag=True,
        aliases=("states_stored_per_layer",),
    ),
    _counter(
        "capture",
        "states_rejected",
        "states",
        "captured states that the buffer refused",
        polarity=Polarity.LOWER,
        numerator="states_captured-states_stored",
    ),
    _counter("capture", "capture_calls", "calls", "calls of the capture"),
    _ratio(
        "capture",
        "capture_efficiency",
        "states_captured",
        "states_attempted",
        "captured / attempted: the capture's success rate",
    ),
    _ratio(
        "capture",
        "storage_efficiency",
        "states_stored",
        "states_captured",
        "stored / captured",
        layer_tag=True,
    ),
    _ratio(
        "capture",
        "selection_rate",
        "states_attempted",
        "states_considered",
        "attempted / considered",
        polarity=Polarity.NEITHER,
    ),
    _mean_seconds(
        "capture",
        "avg_capture_time",
        "capture_seconds",
        "#capture_seconds",
        "mean time of a capture call",
    ),
    *_quantiles("capture", "capture_time", "the time of a capture call", logged=True),
    # reconstruction
    _counter("reconstruction", "reconstruction_calls", "calls", "calls of the reconstruction"),
    _counter(
        "reconstruction",
        "total_reconstructions",
        "calls",
        "reconstruction calls that used at least one memory",
        layer_tag=True,
        aliases=("reconstructions_per_layer",),
    ),
    _ratio(
        "reconstruction",
        "memories_used",
        "memories_used_sum",
        "total_reconstructions",
        "memories read, mean over the calls that used any",
        kind=Kind.MEAN,
        unit="memories",
        polarity=Polarity.NEITHER,
    ),
    _ratio(
        "reconstruction",
        "reconstruction_quality",
        "reconstruction_quality_sum",
        "#reconstruction_quality_sum",
        "quality as the model gives it, 0..1",
        kind=Kind.MEAN,
    ),
    _mean_seconds(
        "reconstruction",
        "avg_reconstruction_time",
        "reconstruction_seconds",
        "#reconstruction_seconds",
        "mean time of a reconstruction call",
        layer_tag=True,
    ),
    *_quantiles(
        "reconstruction", "reconstruction_time", "the time of a reconstruction call", logged=True
    ),
    _ratio(
        "reconstruction",
        "reconstruction_similarity",
        "reconstruction_similarity_sum",
        "#reconstruction_similarity_sum",
        "cosine of the hidden states before and after; 1: it did nothing. Sampled: the last step "
        "of a window, at most 256 positions",
        kind=Kind.MEAN,
        polarity=Polarity.NEITHER,
    ),
    # buffer
    MetricInfo(
        "total_entries",
        "buffer",
        Kind.GAUGE,
        "states",
        Polarity.NEITHER,
        "entries held now",
        "total_entries",
        layer_tag=True,
        aliases=("entries_per_layer",),
    ),
    MetricInfo(
        "capacity",
        "buffer",
        Kind.GAUGE,
        "states",
        Polarity.NEITHER,
        "entries that can be held at most",
        "capacity",
    ),
    MetricInfo(
        "utilization_rate",
        "buffer",
        Kind.GAUGE,
        "1",
        Polarity.NEITHER,
        "entries that a capacity bounds / that capacity; may pass 1",
        "total_entries",
        "capacity",
        layer_tag=True,
        aliases=("memory_utilization",),
    ),
    MetricInfo(
        "memory_size_mb",
        "buffer",
        Kind.GAUGE,
        "MiB",
        Polarity.LOWER,
        "payload of the entries held now",
        "memory_bytes",
    ),
    _counter(
        "buffer",
        "eviction_count",
        "states",
        "entries dropped by the buffer's policy: capacity, age, relevance, a wipe when full",
        layer_tag=True,
    ),
    _counter("buffer", "states_loaded", "states", "entries restored or imported"),
    _counter("buffer", "states_cleared", "states", "entries removed by an explicit clear"),
    _counter("buffer", "states_overwritten", "states", "entries replaced in place"),
    _counter(
        "buffer", "states_merged", "states", "entries folded into others by a compression n:1"
    ),
    _counter(
        "buffer",
        "clear_count",
        "calls",
        "explicit clears; in the whole only, where the call names no layer",
    ),
    _ratio(
        "buffer",
        "eviction_rate",
        "eviction_count",
        "states_stored",
        "evicted / stored",
        polarity=Polarity.LOWER,
    ),
    _ratio(
        "buffer",
        "turnover",
        "eviction_count",
        "total_entries",
        "evicted / entries held now: how many times what it holds was replaced",
        polarity=Polarity.LOWER,
    ),
    # retrieval
    _counter("retrieval", "total_retrievals", "operations", "retrieval operations"),
    _counter("retrieval", "entries_retrieved", "states", "entries given back"),
    _counter("retrieval", "cache_hits", "operations", "operations answered from the cache"),
    _ratio(
        "retrieval",
        "cache_hit_rate",
        "cache_hits",
        "cache_operations",
        "cache hits / operations where there is a cache",
    ),
    _counter("retrieval", "retrieval_hits", "slots", "slots of a hit mask that were found"),
    _ratio("retrieval", "retrieval_hit_rate", "retrieval_hits", "slots_asked", "found / asked"),
    _mean_seconds(
        "retrieval",
        "avg_retrieval_time",
        "retrieval_seconds",
        "retrievals_timed",
        "mean time of a retrieval operation",
    ),
    *_quantiles("retrieval", "retrieval_time", "the time of a retrieval operation", logged=True),
    _ratio(
        "retrieval",
        "retrieval_quality",
        "retrieval_quality_sum",
        "#retrieval_quality_sum",
        "quality as the model gives it, 0..1",
        kind=Kind.MEAN,
    ),
    _ratio(
        "retrieval",
        "retrieval_similarity",
        "retrieval_similarity_sum",
        "#retrieval_similarity_sum",
        "cosine of a query and the entries that it was given back. Sampled: the last step of a "
        "window, at most 256 positions and entries",
        kind=Kind.MEAN,
        polarity=Polarity.NEITHER,
    ),
    # model
    _ratio(
        "model",
        "batch_size",
        "samples",
        "#samples",
        "samples of a step",
        kind=Kind.MEAN,
        unit="samples",
        polarity=Polarity.NEITHER,
    ),
    _counter("model", "tokens", "tokens", "token positions that entered the model"),
    _ratio(
        "model",
        "sequence_length",
        "positions_seen",
        "rows_seen",
        "token positions of a sequence, padding included",
        kind=Kind.MEAN,
        unit="tokens",
        polarity=Polarity.NEITHER,
    ),
    _ratio(
        "model",
        "padding_share",
        "positions_padded",
        "positions_seen",
        "padded positions / positions, where a mask says so",
        polarity=Polarity.LOWER,
    ),
    _ratio(
        "model",
        "output_nonfinite_share",
        "outputs_nonfinite",
        "outputs_seen",
        "share of the logits that is not finite. Sampled: the last step of a window, at most 256 "
        "positions",
        polarity=Polarity.LOWER,
    ),
    _ratio(
        "model",
        "output_entropy",
        "output_entropy_sum",
        "#output_entropy_sum",
        "entropy of the predicted distribution; sampled likewise",
        kind=Kind.MEAN,
        unit="nats",
        polarity=Polarity.NEITHER,
    ),
    # optimization
    _counter(
        "optimization",
        "threshold_adjustments",
        "adjustments",
        "changes that the model's optimiser made to its relevance threshold",
    ),
    _counter(
        "optimization",
        "batch_optimizations",
        "batches",
        "batches that the model's optimiser rearranged",
    ),
    _counter("optimization", "prefetch_hits", "operations", "retrievals answered by a prefetch"),
    # timing
    _mean_seconds(
        "timing",
        "step_time",
        "step_seconds",
        "#step_seconds",
        "time of a step, from its first batch's start to its last batch's end",
    ),
    _mean_seconds(
        "timing",
        "data_wait",
        "data_wait_seconds",
        "#data_wait_seconds",
        "time between batches, validation not counted",
    ),
    _ratio(
        "timing",
        "data_wait_share",
        "data_wait_seconds",
        "waited_wall_seconds",
        "waiting for data / wall seconds of the steps",
        polarity=Polarity.LOWER,
    ),
    _mean_seconds(
        "timing",
        "avg_forward_time",
        "forward_seconds",
        "passes_timed",
        "mean time of a forward pass",
    ),
    _mean_seconds(
        "timing",
        "backward_time",
        "backward_seconds",
        "#backward_seconds",
        "backward time of a step",
    ),
    _mean_seconds(
        "timing",
        "optimizer_time",
        "optimizer_seconds",
        "#optimizer_seconds",
        "optimizer time of a step",
    ),
    _mean_seconds(
        "timing",
        "monitor_time",
        "monitor_seconds",
        "#monitor_seconds",
        "time of a step spent in the monitor's own hooks",
    ),
    _counter(
        "timing",
        "total_forward_time",
        "s",
        "forward time of the stage",
        numerator="forward_seconds",
    ),
    _mean_seconds(
        "timing",
        "avg_latency",
        "forward_seconds",
        "passes_timed",
        "forward time / forward passes of the watched model",
    ),
    _ratio(
        "timing",
        "throughput",
        "samples",
        "sample_seconds",
        "samples / wall seconds, validation not counted",
        unit="samples/s",
    ),
    _ratio(
        "timing",
        "tokens_per_second",
        "tokens",
        "token_seconds",
        "token positions / wall seconds, validation not counted",
        unit="tokens/s",
    ),
    *_quantiles("timing", "step_time", "the time of a step", logged=False),
    # errors
    _counter(
        "errors",
        "error_count",
        "errors",
        "errors that the model's parts reported",
        polarity=Polarity.LOWER,
    ),
    _ratio(
        "errors",
        "error_rate",
        "error_count",
        "operations",
        "errors / (capture + reconstruction + retrieval calls + forward passes)",
        polarity=Polarity.LOWER,
    ),
    _counter(
        "errors",
        "nonfinite_count",
        "samples",
        "samples rejected because they were not finite",
        polarity=Polarity.LOWER,
    ),
)

METRICS: Final = tuple(
    replace(metric, whole_tag=False) if metric.name in _NOT_LOGGED else metric
    for metric in _ALL_METRICS
)
"""The table of metrics."""


def _score(
    component: str,
    name: str,
    unit: str,
    help_: str,
    polarity: Polarity,
    *,
    logged: bool = True,
    cumulative: bool = False,
) -> MetricInfo:
    return MetricInfo(
        name,
        component,
        Kind.SCORE,
        unit,
        polarity,
        help_,
        whole_tag=logged,
        cumulative=cumulative,
    )


COMPONENTS: Final = (
    "capture",
    "reconstruction",
    "buffer",
    "retrieval",
    "optimization",
    "timing",
    "errors",
    "model",
)
"""Components that a user can switch off (``monitoring.components``)."""

HEALTH_COMPONENTS: Final = (*COMPONENTS, "resources", "monitor")
"""Components that have a score and a status."""

How = Literal["mean", "max", "min", "sum"]


@dataclass(frozen=True)
class Resource:
    """A number of the machine, and how samples of a window and ranks make one.

    Attributes:
        metric: what it is.
        sample: field of a sample that it is made of.
        over_samples: how a window's samples make one.
        over_ranks: how the ranks' windows make one; NaN is left out.
    """

    metric: MetricInfo
    sample: str
    over_samples: How
    over_ranks: How


def _resource(
    name: str,
    unit: str,
    help_: str,
    polarity: Polarity = Polarity.LOWER,
    *,
    over_samples: How = "mean",
    over_ranks: How = "mean",
    most: bool = False,
    logged: bool = True,
) -> tuple[Resource, ...]:
    """A number, and beside it the greatest of the samples and ranks where ``most`` asks for it."""
    one = _score("resources", name, unit, help_, polarity, logged=logged)
    found = Resource(one, name, over_samples, over_ranks)
    if not most:
        return (found,)
    text = f"the greatest sample of {name}"
    other = _score("resources", f"{name}_max", unit, text, polarity, logged=False)
    return found, Resource(other, name, "max", "max")


RESOURCES: Final[tuple[Resource, ...]] = (
    *_resource(
        "cpu_percent",
        "%",
        "processor time of the process and its children (loader workers); 100: one core",
        Polarity.NEITHER,
        most=True,
    ),
    *_resource(
        "process_rss_mb",
        "MiB",
        "resident memory of the process and its children; what they share counts for each",
        most=True,
    ),
    *_resource(
        "host_memory_percent",
        "%",
        "memory that is not available / the machine's memory, or the container's, whichever is "
        "nearer to its limit",
        most=True,
    ),
    *_resource(
        "disk_free_mb",
        "MiB",
        "free space of the run's log folder; of several disks the fullest",
        Polarity.HIGHER,
        over_samples="min",
        over_ranks="min",
    ),
    *_resource(
        "gpu_utilization",
        "%",
        "share of the time in which a kernel ran on the process' GPU",
        Polarity.HIGHER,
        most=True,
    ),
    *_resource(
        "gpu_memory_used_mb", "MiB", "memory in use on that GPU, by all processes", most=True
    ),
    *_resource("gpu_memory_percent", "%", "the same / the GPU's memory", most=True),
    *_resource("gpu_temperature", "°C", "temperature of the GPU", most=True),
    *_resource("gpu_power", "W", "power that the GPU draws", Polarity.NEITHER, most=True),
    *_resource(
        "gpu_clock", "MHz", "clock of the GPU's multiprocessors", Polarity.HIGHER, logged=False
    ),
    *_resource(
        "gpu_throttled_share",
        "1",
        "share of the samples in which heat or a fault of the power supply held the GPU's clocks "
        "down",
        over_ranks="max",
    ),
    *_resource(
        "gpu_power_capped_share",
        "1",
        "share of the samples in which the GPU's power limit held its clocks down",
        Polarity.NEITHER,
        logged=False,
    ),
    *_resource(
        "gpu_ecc_errors",
        "errors",
        "memory errors that could not be corrected, since the run began",
        over_samples="max",
        over_ranks="sum",
        logged=False,
    ),
    *_resource(
        "gpu_allocated_peak_mb",
        "MiB",
        "most memory that torch's tensors took since its peak was last reset",
        over_samples="max",
        over_ranks="max",
        logged=False,
    ),
    *_resource("gpu_reserved_mb", "MiB", "memory that torch's allocator holds", logged=False),
    *_resource(
        "gpu_fragmentation",
        "1",
        "1 - memory of tensors / memory that torch's allocator holds",
        logged=False,
    ),
)
"""What is sampled of the machine, off the training thread."""
RESOURCE_NAMES: Final = tuple(resource.metric.name for resource in RESOURCES)
_SAMPLED: Final = {resource.metric.name: resource for resource in RESOURCES}

OWN_METRICS: Final[tuple[MetricInfo, ...]] = (
    _score(
        "health", "score", "0..100", "half the worst component + half their mean", Polarity.HIGHER
    ),
    _score(
        "health",
        "status",
        "code",
        "0 unknown, 1 healthy, 2 warning, 3 critical",
        Polarity.NEITHER,
    ),
    _score("health", "alerts_firing", "alerts", "alerts firing now", Polarity.LOWER),
    _score("health", "alerts_pending", "alerts", "alerts met but not yet firing", Polarity.LOWER),
    *(
        info
        for name in HEALTH_COMPONENTS
        for info in (
            _score("health", name, "0..100", f"score of {name}", Polarity.HIGHER, logged=False),
            _score("health", f"{name}_status", "code", f"status of {name}", Polarity.NEITHER),
        )
    ),
    _score(
        "monitor",
        "events",
        "events",
        "events recorded",
        Polarity.NEITHER,
        logged=False,
        cumulative=True,
    ),
    _score(
        "monitor",
        "invalid_samples",
        "samples",
        "samples rejected: not finite, negative, out of range or not a number",
        Polarity.LOWER,
        cumulative=True,
    ),
    _score(
        "monitor",
        "overhead_seconds",
        "s",
        "time spent in the monitor's own hooks over the run",
        Polarity.LOWER,
        logged=False,
        cumulative=True,
    ),
    _score(
        "monitor",
        "overhead_fraction",
        "1",
        "that time / wall time of the steps, over the window",
        Polarity.LOWER,
    ),
    _score(
        "monitor",
        "processing_time",
        "s",
        "last fold, evaluation and logging",
        Polarity.LOWER,
        logged=False,
    ),
    _score(
        "monitor",
        "sample_every",
        "steps",
        "calls are timed in every so many-th step; 1: in each",
        Polarity.NEITHER,
        logged=False,
    ),
    _score(
        "monitor",
        "failures",
        "failures",
        "the monitor's own failures",
        Polarity.LOWER,
        cumulative=True,
    ),
    _score(
        "monitor",
        "collection_rate",
        "events/s",
        "events recorded since the window before / those seconds; of several ranks their sum",
        Polarity.NEITHER,
        logged=False,
    ),
    _score(
        "monitor",
        "storage_latency",
        "s",
        "writing the last window to the history, on rank 0",
        Polarity.NEITHER,
        logged=False,
    ),
    _score(
        "monitor",
        "alert_rate",
        "notices/min",
        "notices given to the channels in the last 5 minutes / 5",
        Polarity.NEITHER,
        logged=False,
    ),
    _score(
        "monitor",
        "dropped_events",
        "events",
        "what was recorded and is lost: windows and the like that the history could not keep, "
        "notices of which too many waited for a channel, times of a GPU that came too thick",
        Polarity.LOWER,
        cumulative=True,
        logged=False,
    ),
    _score(
        "timing",
        "straggler_ratio",
        "1",
        "of several ranks the slowest one's own seconds per step (waiting for data, forward, "
        "optimizer) / the ranks' median",
        Polarity.LOWER,
    ),
    _score(
        "model",
        "loss_with_memory",
        "loss",
        "mean loss of the batches that were compared; of several ranks rank 0's",
        Polarity.LOWER,
    ),
    _score(
        "model",
        "loss_without_memory",
        "loss",
        "mean loss of the same batches, the memory empty",
        Polarity.NEITHER,
    ),
    _score(
        "model",
        "memory_gain",
        "loss",
        "loss without memory - loss with it; over 0: it helps",
        Polarity.HIGHER,
    ),
    _score("timing", "straggler_rank", "rank", "that rank", Polarity.NEITHER),
    _score(
        "timing",
        "straggler_to_best",
        "1",
        "its own seconds per step / the least that it had in any window",
        Polarity.LOWER,
        logged=False,
    ),
    *(resource.metric for resource in RESOURCES),
)
"""What the monitor says of itself and of health; computed, not reduced."""

CUSTOM: Final = "custom/"
"""Begins the name of a user's own number wherever metrics are named."""
CUSTOM_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,99}")
"""What may stand behind it."""


class _ByName(dict[str, MetricInfo]):
    """The rows by name; one for a user's own number is made when it is asked for."""

    def __missing__(self, name: str) -> MetricInfo:
        if not is_custom(name):
            raise KeyError(name)
        about = f"mean of what track_metric was given as {name.removeprefix(CUSTOM)}"
        return MetricInfo(name, "custom", Kind.MEAN, "", Polarity.NEITHER, about)


def is_custom(name: str) -> bool:
    """Whether this is the name of a user's own number.

    >>> is_custom("custom/grad_norm"), is_custom("grad_norm")
    (True, False)
    """
    return name.startswith(CUSTOM) and bool(CUSTOM_NAME.fullmatch(name, len(CUSTOM)))


BY_NAME: Final[dict[str, MetricInfo]] = _ByName({m.name: m for m in (*METRICS, *OWN_METRICS)})
_ALIASES: Final[dict[str, str]] = {a: m.name for m in METRICS for a in m.aliases}


def canonical(name: str) -> str:
    """The canonical name of a metric, which may be given by another of its names.

    Raises:
        KeyError: no metric has that name; the message names the nearest.

    >>> canonical("total_captures"), canonical("states_stored")
    ('states_captured', 'states_stored')
    """
    if name in BY_NAME or is_custom(name):
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    raise KeyError(f"no metric is named {name!r}; {nearest(name, known_names())}")


def known_names() -> Iterable[str]:
    """Every name that `canonical` takes."""
    return (*BY_NAME, *_ALIASES)


def statistics_of(component: str) -> tuple[str, ...]:
    """Names of a component's statistics, in the table's order."""
    return tuple(s.name for s in STATISTICS if s.component == component)


def timers_of(component: str) -> tuple[str, ...]:
    """Names of a component's timers."""
    return tuple(name for owner, name in TIMERS if owner == component)
