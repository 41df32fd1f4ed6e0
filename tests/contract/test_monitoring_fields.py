"""What each field of ``monitoring`` does: it is there where it is set, and not where it is not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr_monitor_callbacks import CMRMonitorCallback, CMRMonitorError, RunHistory
from cmr_monitor_callbacks.errors import MonitorFailure
from tests.contract.fields import REFUSED, Loop, shows
from tests.fake_cuda import FakeDevice
from tests.memory_models import cmr_like
from tests.memory_models.diagnosed import Diagnosed, train
from tests.models import MemoryModule, loader, trainer


@shows("monitoring.enable_real_time")
def test_enable_real_time() -> None:
    assert Loop().monitor.get_live_stats()["health"]["score"] == 100.0
    off = Loop({"enable_real_time": False}).monitor
    assert not off.is_live
    with pytest.raises(CMRMonitorError, match="enable_real_time"):
        off.get_live_stats()


@shows("monitoring.enable_profiling")
def test_enable_profiling() -> None:
    on = Loop({"enable_profiling": True}, profiling={"schedule": None}).monitor
    with on.profile_execution():
        torch.ones(2).sum()
    assert on.get_profile_results()["about"]["steps"] is not None
    with pytest.raises(CMRMonitorError, match="profiling"), Loop().monitor.profile_execution():
        pass


@shows("monitoring.log_every_n_steps")
def test_log_every_n_steps(tmp_path: Path) -> None:
    loop = Loop({"log_every_n_steps": 3})
    loop.steps(*[8] * 7)
    assert [report.snapshot.step for report in loop.sink.reports] == [2, 5]
    for settings, windows in (({}, 2), ({"log_every_n_steps": 4}, 3)):
        callback = CMRMonitorCallback(monitoring=settings)
        fitter = trainer(tmp_path, [callback], max_steps=10, logger=False, log_every_n_steps=5)
        fitter.fit(MemoryModule(), loader(10))
        assert callback.monitor.windows == windows  # the Trainer's own is 5


@shows("monitoring.metric_collection_interval")
def test_metric_collection_interval() -> None:
    loop = Loop({"log_every_n_steps": 2, "metric_collection_interval": 10.0})
    loop.steps(*[8] * 7, seconds=4.0)
    assert [report.snapshot.step for report in loop.sink.reports] == [2, 5]
    by_steps = Loop({"log_every_n_steps": 2})
    by_steps.steps(*[8] * 7, seconds=4.0)
    assert [report.snapshot.step for report in by_steps.sink.reports] == [1, 3, 5]


@shows("monitoring.health_check_interval")
@pytest.mark.parametrize(("interval", "fires_at"), [(0.0, 1), (25.0, 3)])
def test_health_check_interval(interval: float, fires_at: int) -> None:
    loop = Loop({"health_check_interval": interval}, {"rules": {"refused": REFUSED}})
    firing = []
    for stored in (8, 1, 1, 1):
        loop.steps(stored, seconds=10.0)
        firing.append(bool(loop.firing))
    assert firing.index(True) == fires_at


@shows("monitoring.max_history_size")
def test_max_history_size() -> None:
    for most, kept in ((5, 5), (1000, 23)):
        loop = Loop({"max_history_size": most}, {"rules": {"refused": REFUSED}})
        loop.steps(*[8, 1] * 11, 8)
        with loop.monitor.history as history:
            assert len(history.series("storage_efficiency").value) == kept
            assert len(history.alerts()) == min(most, 22)
        assert len(loop.monitor.alerts.transitions) == min(most, 22)


@shows("monitoring.alert_thresholds.high_latency")
@pytest.mark.parametrize(("limit", "fires"), [(None, []), (2.0, []), (0.5, ["high_latency"])])
def test_high_latency(limit: float | None, fires: list[str]) -> None:
    loop = Loop({"alert_thresholds": {"high_latency": limit}})
    loop.steps(8, seconds=1.0)
    assert loop.firing == fires


@shows("monitoring.alert_thresholds.low_efficiency")
@pytest.mark.parametrize(
    ("limit", "fires"), [(None, []), (0.7, []), (0.9, ["low_efficiency:storage_efficiency"])]
)
def test_low_efficiency(limit: float | None, fires: list[str]) -> None:
    loop = Loop({"alert_thresholds": {"low_efficiency": limit}})
    loop.steps(8)
    assert loop.firing == fires


@shows("monitoring.alert_thresholds.high_error_rate")
@pytest.mark.parametrize(("limit", "fires"), [(None, []), (1.0, []), (0.1, ["high_error_rate"])])
def test_high_error_rate(limit: float | None, fires: list[str]) -> None:
    loop = Loop({"alert_thresholds": {"high_error_rate": limit}})
    loop.probes[0].error(RuntimeError("no memory left"))
    loop.steps(8)
    assert loop.firing == fires


@shows("monitoring.alert_thresholds.*")
@pytest.mark.parametrize(("given", "fires"), [({}, []), ({"refused": 0.9}, ["refused"])])
def test_another_key_sets_a_rules_threshold(given: Any, fires: list[str]) -> None:
    loop = Loop({"alert_thresholds": given}, {"rules": {"refused": REFUSED}})
    loop.steps(8)
    assert loop.firing == fires


@shows("monitoring.components")
@pytest.mark.parametrize(("globs", "captured"), [(["*"], 20), (["tim*"], math.nan)])
def test_components(globs: list[str], captured: float) -> None:
    loop = Loop({"components": globs})
    loop.steps(8, seconds=3.0)
    snapshot = loop.monitor.snapshot
    assert snapshot.value("states_captured") == pytest.approx(captured, nan_ok=True)
    assert snapshot.value("step_time") == 3.0


@shows("monitoring.layers")
@pytest.mark.parametrize(("globs", "stored"), [(["*"], {4: 8, 6: 8}), (["6|1*"], {6: 8})])
def test_layers(globs: list[str], stored: dict[int, int]) -> None:
    loop = Loop({"layers": globs})
    loop.steps(8)
    assert loop.monitor.snapshot.layers("states_stored") == stored


def tags(**settings: Any) -> tuple[set[str], set[str]]:
    """Tags of the model as a whole, and of layer 4."""
    loop = Loop(settings)
    loop.steps(8)
    [report] = loop.sink.reports
    whole = set(report.tags[: report.whole])
    return whole, {tag for tag in report.tags if tag.endswith("/layer_04")}


@shows("monitoring.layer_metrics")
def test_layer_metrics() -> None:
    whole, by_default = tags()
    chosen_whole, chosen = tags(layer_metrics=["states_c*"])
    assert chosen == {"cmr_capture/states_captured/layer_04"} and by_default - chosen
    assert chosen_whole == whole


@shows("monitoring.layer_quantiles")
@pytest.mark.parametrize(("on", "by_layer"), [(False, {}), (True, {4: 0.5, 6: 2.0})])
def test_layer_quantiles(on: bool, by_layer: dict[int, float]) -> None:
    loop = Loop({"layer_quantiles": on, "layer_metrics": ["capture_time_p95"]})
    with loop.monitor.track_performance():
        for probe, seconds in zip(loop.probes, (0.5, 2.0), strict=True):
            probe.capture(attempted=10, captured=10, stored=8, seconds=seconds)
    assert loop.monitor.snapshot.layers("capture_time_p95") == pytest.approx(by_layer, rel=0.02)
    assert loop.monitor.snapshot.value("capture_time_p95") == pytest.approx(0.5, rel=0.02)
    [report] = loop.sink.reports
    logged = [tag for tag in report.tags if tag.startswith("cmr_capture/capture_time_p95/")]
    assert logged == [f"cmr_capture/capture_time_p95/layer_0{layer}" for layer in by_layer]


@shows("monitoring.whole_metrics")
def test_whole_metrics() -> None:
    by_default, layer = tags()
    chosen, chosen_layer = tags(whole_metrics=["states_c*", "score"])
    assert chosen == {"cmr_capture/states_captured", "cmr_health/score"}
    assert by_default > {"cmr_health/score"} and chosen_layer == layer


def diagnosed(**settings: Any) -> dict[str, Any]:
    model = Diagnosed()
    loop = Loop({"diagnostics": settings}, model=model)
    train(model, 40, loop.monitor.track_performance)
    return loop.monitor.run_diagnostics()["memory_analysis"]


@shows("monitoring.diagnostics.entries_per_layer")
@pytest.mark.parametrize(("most", "looked_at"), [(None, 64), (32, 32)])
def test_entries_per_layer(most: int | None, looked_at: int) -> None:
    found = diagnosed() if most is None else diagnosed(entries_per_layer=most)
    assert found["layers"]["3"]["entries"] == 64
    assert found["layers"]["3"]["looked_at"] == looked_at


@shows("monitoring.diagnostics.at_end")
@pytest.mark.parametrize(("at_end", "kept"), [(True, 1), (False, 0)])
def test_at_end(tmp_path: Path, at_end: bool, kept: int) -> None:
    callback = CMRMonitorCallback(monitoring={"diagnostics": {"at_end": at_end}})
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(6))
    with RunHistory(tmp_path) as history:
        assert len(history.diagnostics()) == kept


@shows("monitoring.diagnostics.look_every")
def test_look_every() -> None:
    assert diagnosed()["missed"]["3"]["gone"] == 0  # one look sees nothing leave
    assert diagnosed(look_every=1)["missed"]["3"]["gone"] > 0


@shows("monitoring.diagnostics.compare_memory_every")
@pytest.mark.parametrize(("every", "compared"), [(0, 0), (2, 3)])
def test_compare_memory_every(tmp_path: Path, every: int, compared: int) -> None:
    settings = {"diagnostics": {"compare_memory_every": every}, "on_monitor_error": "raise"}
    callback = CMRMonitorCallback(monitoring=settings)
    fitter = trainer(tmp_path, [callback], logger=False)
    fitter.fit(cmr_like.CMRLikeModule(), cmr_like.loader(8), cmr_like.loader(5, seed=2))
    helps = callback.monitor.run_diagnostics()["reconstruction_analysis"]["memory_helps"]
    assert (0 if helps is None else helps["batches"]) == compared


@shows("monitoring.sample_every")
@pytest.mark.parametrize(("every", "timed"), [(1, [0, 1, 2, 3, 4, 5]), (3, [2, 5])])
def test_sample_every(every: int, timed: list[int]) -> None:
    loop = Loop({"sample_every": every})
    found = []
    for step in range(6):
        with loop.monitor.track_performance():
            with loop.probes[0].timer() as timer:
                pass
            loop.probes[0].capture(1, 1, 1, timer.seconds)
        found += [step] if timer.seconds is not None else []
    assert found == timed
    assert loop.monitor.snapshot.value("states_stored") == 6  # counts are of every step


def sampled(**settings: Any) -> int:
    """Steps to the next that is timed, after windows of which the monitor took 5 %."""
    loop = Loop({"log_every_n_steps": 2, **settings})
    for _ in range(4):
        loop.monitor.refresh()
        loop.monitor.record_step(1.0, 0.0, 0.5, 0.25, 0.125, 0.05, 1)
        loop.monitor.step()
    found: int = loop.monitor.overhead()["sample_every"]
    return found


@shows("monitoring.adaptive")
def test_adaptive() -> None:
    assert sampled() == 1
    assert sampled(adaptive=True) == 4


@shows("monitoring.overhead_budget")
def test_overhead_budget() -> None:
    assert sampled(adaptive=True, overhead_budget=0.1) == 1
    assert sampled(adaptive=True, overhead_budget=0.04) == 4


class Broken:
    """A sink that cannot write."""

    def write(self, report: Any) -> None:
        raise OSError("disk full")


@shows("monitoring.on_monitor_error")
def test_on_monitor_error() -> None:
    logs, raises = Loop({"on_monitor_error": "log"}), Loop({"on_monitor_error": "raise"})
    for loop in (logs, raises):
        loop.monitor.sinks.append(Broken())  # type: ignore[arg-type]
    logs.steps(8, 8)
    assert logs.monitor.failures == 2 and logs.monitor.snapshot.step == 1
    with pytest.raises(MonitorFailure):
        raises.steps(8)


@shows("monitoring.timing")
@pytest.mark.parametrize(
    ("timing", "by_device"), [("auto", True), ("device", True), ("host", False)]
)
def test_timing(timing: str, by_device: bool) -> None:
    device, loop = FakeDevice(), Loop({"timing": timing})
    loop.monitor.detach()
    device.time(loop.monitor)
    loop.monitor.attach(loop.model)
    for _ in range(2):
        with loop.monitor.track_performance():
            with loop.probes[0].timer() as timer:
                device.launch(100.0)  # to the host it takes no time
            loop.probes[0].capture(attempted=1, captured=1, stored=1, seconds=timer.seconds)
            device.run()
    snapshot = loop.monitor.snapshot
    assert (snapshot.value("avg_capture_time") == pytest.approx(100.0)) is by_device
    assert (snapshot.value("avg_capture_time") < 50.0) is not by_device
    assert ("cuda events" in snapshot.source("avg_capture_time")) is by_device
