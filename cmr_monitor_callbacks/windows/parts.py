"""What a monitor is made of, made from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cmr_monitor_callbacks.alerts import AlertDesk
from cmr_monitor_callbacks.catalogue import COMPONENTS
from cmr_monitor_callbacks.clock import Clock
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
    as_plain,
    parse,
)
from cmr_monitor_callbacks.distributed import RankSession
from cmr_monitor_callbacks.examining import Examiner, OutOfMemory
from cmr_monitor_callbacks.failures import Failures
from cmr_monitor_callbacks.history import Keeper
from cmr_monitor_callbacks.probes.listening import Listening
from cmr_monitor_callbacks.probes.timing import Timing
from cmr_monitor_callbacks.profiling import Profiler, check_profiling
from cmr_monitor_callbacks.recording.hearsay import Hearsay
from cmr_monitor_callbacks.recording.ledger import Ledger
from cmr_monitor_callbacks.recording.recorder import InvalidSample
from cmr_monitor_callbacks.recording.tracking import Tracking
from cmr_monitor_callbacks.resources import ResourceWatch
from cmr_monitor_callbacks.sampling import Sampling
from cmr_monitor_callbacks.sinks import Outlet
from cmr_monitor_callbacks.windows.position import Position

Given = Mapping[str, Any] | None


@dataclass(frozen=True)
class Settings:
    """A monitor's settings, by the names of the callback's arguments."""

    monitoring: MonitoringConfig
    alerts: AlertConfig
    probes: ProbesConfig
    history: HistoryConfig
    profiling: ProfilingConfig
    resources: ResourcesConfig

    @classmethod
    def parse(
        cls,
        monitoring: MonitoringConfig | Given,
        alerts: AlertConfig | Given,
        probes: ProbesConfig | Given,
        history: HistoryConfig | Given,
        profiling: ProfilingConfig | Given,
        resources: ResourcesConfig | Given,
    ) -> Settings:
        """Check what a user gave.

        Raises:
            ConfigError: a setting is wrong; the message names field, value and what is allowed.
        """
        return cls(
            parse(MonitoringConfig, monitoring, "monitoring"),
            parse(AlertConfig, alerts, "alerts"),
            parse(ProbesConfig, probes, "probes"),
            parse(HistoryConfig, history, "history"),
            parse(ProfilingConfig, profiling, "profiling"),
            parse(ResourcesConfig, resources, "resources"),
        )

    def plain(self) -> dict[str, Any]:
        """The settings as plain data, for the history."""
        return {name: as_plain(model) for name, model in vars(self).items()}


class Parts:
    """The collaborators of one monitor; each knows only what it is given here.

    Args:
        settings: of the monitor.
        clock: where time comes from.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        monitoring, keep = settings.monitoring, settings.monitoring.max_history_size
        self.settings = settings
        self.clock = clock
        self.position = Position(clock.monotonic())
        self.kinds = frozenset(name for name in COMPONENTS if monitoring.watches_component(name))
        self.failures = Failures(keep, raises=monitoring.on_monitor_error == "raise")
        self.guard = self.failures.guard
        self._record(settings)
        self._judge(settings)
        self.sampling = Sampling(
            monitoring.sample_every, adaptive=monitoring.adaptive, budget=monitoring.overhead_budget
        )
        self.ranks = RankSession(
            monitoring.reduction,
            monitoring.flat_up_to_ranks,
            monitoring.reduction_timeout,
            by_layer=monitoring.layer_quantiles,
        )
        self.resources = ResourceWatch(settings.resources, clock, self.position.under_way)
        self.outlet = Outlet(monitoring, self.guard)
        self.keeper = Keeper(settings.history, keep, clock.wall, settings.plain())
        self.examiner = Examiner(monitoring.diagnostics, self.ledger, self.listening)
        rules = [rule.name for rule in self.alerts.rules]
        more = bool(settings.alerts.rules_file)
        enabled = check_profiling(monitoring, settings.profiling, rules, more)
        self.profiler = Profiler(
            settings.profiling, enabled, self.listening, self.guard, self.keeper.mark
        )

    def _record(self, settings: Settings) -> None:
        """How numbers come from the model into this process's ledger."""
        watches_layer = settings.monitoring.watches_layer
        self.ledger = Ledger(
            settings.monitoring.max_history_size,
            self._note_invalid,
            by_layer=settings.monitoring.layer_quantiles,
        )
        self.tracking = Tracking(self.ledger.lock, self.clock.wall)
        self.hearsay = Hearsay(self.ledger, self.kinds, watches_layer)
        self.listening = Listening(
            self.ledger,
            self.kinds,
            watches_layer,
            settings.probes,
            Timing(settings.monitoring.timing, self.clock.monotonic, self.ledger.recorder),
            self.failures,
            self.position.under_way,
            (self.hearsay.capture, self.hearsay.reconstruction),
        )
        self.hearsay.seen = self.listening.automatic.tells
        self.out_of_memory = OutOfMemory(
            settings.resources,
            self.listening.held_tensors,
            self.failures,
            self.position.under_way,
        )
        self.failures.on_error = self.out_of_memory.note

    def _judge(self, settings: Settings) -> None:
        monitoring = settings.monitoring
        self.alerts = AlertDesk(
            settings.alerts,
            monitoring.alert_thresholds,
            monitoring.health_check_interval,
            monitoring.max_history_size,
        )
        self.alerts.note = self.failures.note

    def fold_tracked(self) -> None:
        """Move what users track into the window in hand."""
        if self.ledger.stage == "sanity":  # it is thrown away
            return
        for sample in self.tracking.fold():
            self.ledger.invalid_samples += 1
            self._note_invalid(sample)

    def _note_invalid(self, sample: InvalidSample) -> None:
        layers = (None, *self.ledger.layout.layers)
        self.failures.log_sample(
            self.position.step,
            layers[sample.column],
            sample.component,
            sample.field,
            sample.reason,
            sample.value,
        )
