"""A model looked at with a monitor, run a few times, and let go as it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.catalogue import METRICS, Kind
from cmr_monitor_callbacks.checking.report import Counted, Measured
from cmr_monitor_callbacks.checking.settings import Settings
from cmr_monitor_callbacks.checking.targets import saying
from cmr_monitor_callbacks.config import AlertConfig, AlertThresholds, ResourcesConfig
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import AlertEngine, AlertRule
from cmr_monitor_callbacks.monitor import CMRPerformanceMonitor
from cmr_monitor_callbacks.probes.discovery import find_probes
from cmr_monitor_callbacks.snapshot import Snapshot

COUNTED_PASSES: Final = 2
"""The first fills a memory, the second reads it."""
_NEVER: Final = 2**31
Forward = Callable[[], Any]


class Watched:
    """A model and the monitor that a run would attach to it; nobody is told of anything.

    Args:
        model: looked at.
        settings: the run's.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model = model
        self._settings = settings
        self.monitor = self._new_monitor(1)

    def _new_monitor(self, window_steps: int) -> CMRPerformanceMonitor:
        changes = {
            "log_every_n_steps": window_steps,
            "metric_collection_interval": None,
            "alert_thresholds": AlertThresholds(),
            "on_monitor_error": "log",
            "reduction": "none",
        }
        return CMRPerformanceMonitor(
            self._settings.monitoring.model_copy(update=changes),
            alert_config=AlertConfig(enable_alerts=False, alert_channels=(), rules={}, inhibit=()),
            probes=self._settings.probes,
            resources=ResourcesConfig(enabled=False),
        )

    def attach(self, monitor: CMRPerformanceMonitor) -> int:
        """Attach as a run does; how many objects are listened to."""
        found = monitor.attach(self.model)
        monitor.place_cells(self._device)
        return found

    @property
    def _device(self) -> torch.device:
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def probes(self) -> int:
        """Probes of the model that are listened to."""
        config = self._settings.monitoring
        if not self._settings.probes.explicit:
            return 0
        return sum(config.watches_layer(found.probe.layer) for found in find_probes(self.model))

    def look(self) -> Snapshot:
        """What is known without a pass."""
        self.monitor.step()
        return self.monitor.snapshot

    def count(self, forward: Forward) -> Counted:
        """Run real passes and read what was counted."""
        for _ in range(COUNTED_PASSES):
            with self.monitor.track_performance():
                forward()
        snapshot = self.monitor.snapshot
        whole: dict[str, float] = {}
        layers: dict[str, dict[str, float]] = {}
        for metric in METRICS:
            if metric.kind is Kind.QUANTILE or metric.component == "timing":
                continue
            _put(whole, metric.name, snapshot.value(metric.name))
            by_layer: dict[str, float] = {}
            for layer in snapshot.layer_ids:
                _put(by_layer, str(layer), snapshot.value(metric.name, layer=layer))
            if by_layer:
                layers[metric.name] = by_layer
        return Counted(COUNTED_PASSES, whole, layers)

    def measure(self, forward: Forward, rules: Sequence[AlertRule], pairs: int) -> Measured:
        """Time passes with and without a monitor, alternated.

        Args:
            forward: a pass.
            rules: judged at the end of each window.
            pairs: how often.
        """
        monitor, engine = self._new_monitor(_NEVER), AlertEngine(rules)
        plain, watched, ends = [], [], []
        for i in range(-1, pairs):  # the first pair warms up and is dropped
            if i % 2:
                plain.append(self._timed(forward))
            self.attach(monitor)
            try:
                watched.append(self._timed(partial(_tracked, monitor, forward)))
                ends.append(self._timed(partial(_end, monitor, engine, i)))
            finally:
                monitor.detach()
            if not i % 2:
                plain.append(self._timed(forward))
        plain, watched, ends = plain[1:], watched[1:], ends[1:]
        ratios = [with_ / without for with_, without in zip(watched, plain, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return Measured(
            pairs,
            statistics.median(plain),
            statistics.median(watched),
            ratio,
            low,
            high,
            statistics.median(ends),
        )

    def _timed(self, run: Forward) -> float:
        self._wait()
        start = perf_counter()
        run()
        self._wait()
        return perf_counter() - start

    def _wait(self) -> None:
        """Work on a GPU ends after the call that asked for it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _tracked(monitor: CMRPerformanceMonitor, forward: Forward) -> None:
    with monitor.track_performance():
        forward()


def _end(monitor: CMRPerformanceMonitor, engine: AlertEngine, window: int) -> None:
    monitor.flush()
    engine.evaluate(monitor.snapshot, step=window, now=float(window), window=window)


def _put(into: dict[str, float], name: str, value: float) -> None:
    if not math.isnan(value):
        into[name] = value


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """In training mode meanwhile; modes, registered buffers and torch's random state come back."""
    modes = [(module, module.training) for module in model.modules()]
    held = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.enable_grad():
            model.train()
            yield
    finally:
        with torch.no_grad():
            for buffer, before in held:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training


def checked_forward(model: nn.Module, forward: Forward, target: str) -> Forward:
    """A pass whose failure names what the user gave."""

    def run() -> Any:
        try:
            return forward()
        except Exception as error:
            raise ConfigError(
                f"input {target!r}: the forward pass of {type(model).__name__} raised "
                f"{saying(error)}"
            ) from None

    return run
