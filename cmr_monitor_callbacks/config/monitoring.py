"""What is collected, how often, and where it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from cmr_monitor_callbacks.catalogue import COMPONENTS, CUSTOM, METRICS, OWN_METRICS
from cmr_monitor_callbacks.config.diagnostics import DiagnosticsConfig
from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.prometheus import PrometheusConfig
from cmr_monitor_callbacks.errors import nearest
from cmr_monitor_callbacks.layers import matches


class AlertThresholds(Settings):
    """Short form of alert rules. Another key must be a rule's name, whose threshold it sets."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)
    high_latency: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Alert when ``avg_latency`` is over it, in seconds."""
    low_efficiency: float | None = Field(default=None, ge=0, le=1)
    """Alert when ``capture_efficiency`` or ``storage_efficiency`` is under it, in 0..1."""
    high_error_rate: float | None = Field(default=None, ge=0, le=1)
    """Alert when ``error_rate`` is over it, in 0..1."""

    @model_validator(mode="after")
    def _thresholds_are_numbers(self) -> AlertThresholds:
        for key, value in (self.model_extra or {}).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{key} must be a number, got {value!r}")
        return self


class MonitoringConfig(Settings):
    """What is collected and how often (argument ``monitoring``; the specification's dictionary).

    >>> MonitoringConfig(log_every_n_steps=10).health_check_interval
    0.0
    """

    enable_real_time: bool = True
    """Live statistics (``get_live_stats``) and the exporter (``sinks.prometheus``)."""
    enable_profiling: bool = False
    """Detailed profiling, as ``profiling`` says."""
    log_every_n_steps: int | None = Field(default=None, ge=1)
    """Steps in a window; null: the Trainer's ``log_every_n_steps``."""
    metric_collection_interval: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds in a window, instead of steps; null: windows by steps."""
    health_check_interval: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Rules run at the first window end at least this many seconds after their last run."""
    reduction: Literal["auto", "flat", "hierarchical", "none"] = "auto"
    """How the ranks' numbers come together: one gather of all ranks per window (``flat``), on each
    node first and then among the nodes (``hierarchical``), whichever suits the number of ranks
    (``auto``), or not at all (``none``): each process keeps its own."""
    flat_up_to_ranks: int = Field(default=64, ge=1)
    """Most ranks that ``auto`` lets gather all at once."""
    reduction_timeout: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Longest wait for the other ranks, in seconds; then each goes on with its own numbers."""
    max_history_size: int = Field(default=1000, ge=1)
    """Windows, transitions and raw timings kept in memory."""
    alert_thresholds: AlertThresholds = Field(default_factory=AlertThresholds)
    """Short form of alert rules."""
    components: tuple[str, ...] = ("*",)
    """Globs: components that are watched; others are neither collected nor paid for."""
    layers: tuple[str, ...] = ("*",)
    """Globs: layers that are watched; others are neither collected nor paid for."""
    layer_metrics: tuple[str, ...] | None = None
    """Globs: metrics that are logged for each layer; null: the catalogue's eight."""
    whole_metrics: tuple[str, ...] | None = None
    """Globs: metrics that are logged for the model as a whole; null: the catalogue's choice."""
    layer_quantiles: bool = False
    """Percentiles of the times of calls for each layer too: its histograms take 12 KiB in a
    window, and 6 KiB of what each of several ranks sends. One rank without it: no data of any."""
    diagnostics: DiagnosticsConfig = Field(default_factory=DiagnosticsConfig)
    """What the diagnostics look at, and what is measured for them."""
    sample_every: int = Field(default=1, ge=1)
    """Calls are timed, and similarities and the output looked at, in every so many-th step; counts,
    entries and errors are of every step."""
    timing: Literal["auto", "host", "device"] = "auto"
    """By which clock calls and phases are timed: by CUDA events where the model is on one CUDA
    device (``auto``, ``device``; elsewhere ``device`` warns), or by the host's (``host``), which
    around work of a GPU reads the time of launching it."""
    adaptive: bool = False
    """Doubles ``sample_every`` while the monitor takes more than its budget, to 64 at most, and
    halves it again where it takes little."""
    overhead_budget: float = Field(default=0.01, gt=0, le=1)
    """Share of the wall time, in 0..1, that ``adaptive`` keeps ``overhead_fraction`` under."""
    on_monitor_error: Literal["log", "raise"] = "log"
    """What the monitor's own failure does: counted and logged once, or raised."""

    @field_validator("components")
    @classmethod
    def _known_components(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        for glob in globs:
            if not any(matches(glob, name) for name in COMPONENTS):
                raise ValueError(f"{glob!r} names no component; {nearest(glob, COMPONENTS)}")
        return globs

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_as_text(cls, given: Any) -> Any:
        """A layer's number is a glob that means it."""
        if not isinstance(given, (list, tuple)):
            return given
        whole = [isinstance(one, int) and not isinstance(one, bool) for one in given]
        return tuple(str(x) if is_one else x for x, is_one in zip(given, whole, strict=True))

    @field_validator("layer_metrics", "whole_metrics")
    @classmethod
    def _known_metrics(cls, globs: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = [metric.name for metric in (*METRICS, *OWN_METRICS)]
        for glob in globs or ():
            parts = [part.strip() for part in glob.split("|")]
            custom = any(part.startswith(CUSTOM) for part in parts)  # nobody knows them yet
            if not custom and not any(matches(glob, name) for name in names):
                raise ValueError(f"{glob!r} names no metric; {nearest(glob, names)}")
        return globs

    @model_validator(mode="after")
    def _adaptive_knows_the_overhead(self) -> MonitoringConfig:
        if self.adaptive and not self.watches_component("timing"):
            raise ValueError(
                "adaptive needs the component timing, which components leaves out; it is allowed "
                "to be true where components has it"
            )
        return self

    def watches_component(self, name: str) -> bool:
        """Whether a component is collected."""
        return any(matches(glob, name) for glob in self.components)

    def watches_layer(self, layer: object) -> bool:
        """Whether a layer is collected; the model as a whole always is."""
        return layer is None or any(matches(glob, layer) for glob in self.layers)


class ProbesConfig(Settings):
    """How numbers leave the model (argument ``probes``).

    >>> ProbesConfig(layer_names={"net.blocks.3.*": 3}).automatic is None
    True
    """

    explicit: bool = True
    """Attach the `CMRProbe`s that the model holds."""
    automatic: bool | None = None
    """Find the model's memory and watch it; null: where the model holds no `CMRProbe`."""
    wrap: bool = True
    """Replace methods of the objects found, while they are watched: exact counts and times."""
    hooks: bool = True
    """Hook the modules found: reconstructors, scorers, what enters and leaves the model."""
    poll: bool = True
    """Read counters that the model keeps itself, where nothing better is seen."""
    objects: tuple[str, ...] = ()
    """Globs of the paths of the objects to be watched; empty: all that are found."""
    layer_names: dict[str, int | str] = Field(default_factory=dict)
    """Layers by the glob of an object's path, where its calls name none."""
    read: Callable[[Any], Mapping[str, Any]] | None = None
    """A function from the model to numbers by metric, called once per window: counters so far and
    gauges as they are, each a number or numbers by layer."""


class SinksConfig(Settings):
    """Where the numbers go (argument ``sinks``)."""

    loggers: bool = True
    """Every logger of the Trainer, once per window."""
    callback_metrics: bool = True
    """``trainer.callback_metrics``, so that EarlyStopping and ModelCheckpoint can monitor them."""
    custom_scalars: bool = True
    """A layout for TensorBoard's Custom Scalars page: the layers as lines of one chart."""
    prometheus: PrometheusConfig | None = None
    """An exporter that Prometheus scrapes, on rank 0; null: none."""
