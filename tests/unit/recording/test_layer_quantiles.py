"""Percentiles of each layer's calls, on request, against exact ones."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, Snapshot
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.layer_histograms import LAYER_TIMERS
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.recording.recorder import Recorder
from cmr_monitor_callbacks.recording.tally import CALL, PLACES
from tests.memory_models.small import SmallNet, plain_steps

LAYERS = (4, 6, "deep")
QUIET: dict[str, Any] = {"enable_alerts": False}
STRICT: dict[str, Any] = {"on_monitor_error": "raise", "log_every_n_steps": 5}
ON: dict[str, Any] = {**STRICT, "layer_quantiles": True}
Samples = Mapping[tuple[str, Any], list[float]]


def exact(seconds: list[float], q: float) -> float:
    """Lower empirical quantile."""
    return float(np.quantile(seconds, q, method="lower"))


def check(snapshot: Snapshot, samples: Samples, over: Any) -> None:
    """Every percentile of every layer is within 2 % of the exact one."""
    for timer in LAYER_TIMERS:
        for layer in LAYERS:
            for q in (0.50, 0.95, 0.99):
                shown = snapshot.value(f"{timer}_p{round(100 * q)}", layer=layer, over=over)
                given = samples[timer, layer]
                assert shown == pytest.approx(exact(given, q), rel=0.02), (timer, layer, q)


class Play:
    """Steps of a model with probes, each with durations of its own order of magnitude."""

    def __init__(self, settings: Any, seed: int = 0) -> None:
        self.model = nn.Module()
        self.model.probes = [CMRProbe(layer) for layer in LAYERS]  # type: ignore[assignment]
        self.monitor = CMRPerformanceMonitor(settings, alert_config=QUIET, model=self.model)
        self.random = np.random.default_rng(seed)
        self.run: dict[tuple[str, Any], list[float]] = defaultdict(list)
        self.window: dict[tuple[str, Any], list[float]] = {}

    def steps(self, count: int) -> Snapshot:
        """That many; whole windows."""
        for step in range(count):
            if step % 5 == 0:
                self.window = defaultdict(list)
            for place, probe in enumerate(self.model.probes):  # type: ignore[arg-type, var-annotated]
                self._calls(probe, 10.0 ** (place - 3))
            self.monitor.step()
        return self.monitor.snapshot

    def _calls(self, probe: CMRProbe, scale: float) -> None:
        drawn: NDArray[np.float64] = self.random.lognormal(0.0, 1.5, (3, 9)) * scale
        for seconds in drawn[0].tolist():
            probe.capture(2, 2, 1, seconds)
            self._add("capture_time", probe.layer, seconds)
        for seconds in drawn[1].tolist():
            probe.reconstruction(2, None, seconds)
            self._add("reconstruction_time", probe.layer, seconds)
        for times, seconds in zip((1, 2, 3), drawn[2].tolist(), strict=False):
            probe.retrieval(times, 5, None, times * seconds)  # of several operations together
            for _ in range(times):
                self._add("retrieval_time", probe.layer, seconds)
        probe.capture(1, 1, 1)  # one that nobody timed

    def _add(self, timer: str, layer: Any, seconds: float) -> None:
        self.run[timer, layer].append(seconds)
        self.window[timer, layer].append(seconds)


def test_within_two_percent_of_the_exact_ones() -> None:
    play = Play(ON)
    snapshot = play.steps(20)
    check(snapshot, play.run, "run")
    check(snapshot, play.window, "window")
    for timer in LAYER_TIMERS:  # those of the whole stay what they are
        given = [x for layer in LAYERS for x in play.run[timer, layer]]
        assert snapshot.value(f"{timer}_p95") == pytest.approx(exact(given, 0.95), rel=0.02)
    assert snapshot.layers("capture_time_p50").keys() == set(LAYERS)
    assert math.isnan(snapshot.value("step_time_p50", layer=4)), "a step has no layer"
    live = play.monitor._windows.now()
    check(live, play.run, "run")
    play.monitor.detach()


def test_what_takes_the_slow_way_is_in_them_too() -> None:
    play = Play({**STRICT, "layer_quantiles": True})
    play.monitor.record_capture(4, 3, 0.25)
    play.monitor.record_capture(4, 3, np.float32(0.5))  # type: ignore[arg-type]
    play.monitor.record_reconstruction(6, 2, 0.125)
    play.model.probes[0].buffer(3, 5)  # type: ignore[index, union-attr, operator]
    play.model.probes[0].capture(1, 1, 1, True)  # type: ignore[index, union-attr, operator]
    play.monitor.close_window()
    snapshot = play.monitor.snapshot
    assert snapshot.value("capture_time_p50", layer=4) == pytest.approx(0.5, rel=0.02)
    assert snapshot.value("capture_time_p99", layer=4) == pytest.approx(0.5, rel=0.02)
    assert snapshot.value("reconstruction_time_p99", layer=6) == pytest.approx(0.125, rel=0.02)
    assert math.isnan(snapshot.value("reconstruction_time_p99", layer=4))
    play.monitor.detach()


def test_a_layer_that_arrives_late() -> None:
    play = Play(ON)
    play.steps(5)
    probe = CMRProbe("late")
    play.model.probes.append(probe)  # type: ignore[operator, union-attr]
    play.monitor.attach(play.model)
    probe.capture(1, 1, 1, 0.75)
    play.monitor.close_window()
    snapshot = play.monitor.snapshot
    assert snapshot.value("capture_time_p50", layer="late") == pytest.approx(0.75, rel=0.02)
    check(snapshot, play.run, "run")
    play.monitor.detach()


@pytest.mark.parametrize("on", [True, False])
def test_a_checkpoint_has_them(on: bool) -> None:
    """Saved in the middle of a window; resumed with layers in another order."""
    play = Play(ON)
    play.steps(10)
    for probe in play.model.probes:  # type: ignore[union-attr]
        play._calls(probe, 1.0)
    state = json.loads(json.dumps(play.monitor.state_dict()))
    play.monitor.detach()
    again = Play({**STRICT, "layer_quantiles": on}, seed=1)
    again.monitor.load_state_dict(state)
    again.run = play.run
    snapshot = again.steps(5)
    if on:
        check(snapshot, again.run, "run")
    else:
        assert math.isnan(snapshot.value("capture_time_p50", layer=4))
    assert snapshot.value("states_stored", layer=4) == 16 * 9 + 16
    again.monitor.detach()


def test_off_nothing_is_kept_of_layers() -> None:
    """Neither in memory nor in checkpoints; the other numbers are the same to the bit."""
    off, on = Play(STRICT), Play(ON)
    snapshots = [play.steps(10) for play in (off, on)]
    assert math.isnan(snapshots[0].value("capture_time_p50", layer=4))
    assert snapshots[0].statistics.by_layer is None
    assert "by_layer" not in json.dumps(off.monitor.state_dict())
    one, other = (snapshot.run.copy() for snapshot in snapshots)
    rows = ~np.isnan(one)
    assert np.array_equal(one[rows], other[rows])
    off.monitor.detach()
    on.monitor.detach()


def test_of_a_model_that_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is the later, the more there were."""

    class Slower(ManualClock):
        def monotonic(self) -> float:
            self.now += 0.001 * (1 + (readings := next(count)) % 17) + 1e-6 * readings
            return self.now

    count = itertools.count()
    net = SmallNet()
    clock = Slower()
    settings = {"log_every_n_steps": 12, "layer_quantiles": True, "on_monitor_error": "raise"}
    seen: dict[Any, list[float]] = defaultdict(list)
    plain = Recorder.__init__

    def listening(self: Recorder, **more: Any) -> None:
        plain(self, **more)
        self.tally = Overheard(seen)

    monkeypatch.setattr(Recorder, "__init__", listening)
    monitor = CMRPerformanceMonitor(settings, alert_config=QUIET, model=net, clock=clock)
    for step in plain_steps(net, 12):
        with monitor.track_performance():
            step()
    layers = {layer: 1 + i for i, layer in enumerate(monitor.snapshot.layer_ids)}
    for call in ("retrieval", "reconstruction"):
        for layer in (2, 4):
            given = seen[layers[layer] * PLACES + CALL[call]]
            assert len(given) == 12
            for q in (50, 95, 99):
                shown = monitor.snapshot.value(f"{call}_time_p{q}", layer=layer)
                assert shown == pytest.approx(exact(given, q / 100), rel=0.02)
    monitor.detach()


class Overheard(list[Any]):
    """A tally that says what it is given, by place."""

    def __init__(self, seen: dict[Any, list[float]]) -> None:
        super().__init__()
        self.seen = seen

    def extend(self, items: Any) -> None:
        for at, number in zip(items[::2], items[1::2], strict=True):
            self.seen[at].append(number)
        super().extend(items)


def test_nothing_seen() -> None:
    packed = Packed.empty(3, by_layer=True)
    assert packed.by_layer is not None
    assert np.isnan(packed.by_layer.quantiles(np.array([0.5]))).all()
