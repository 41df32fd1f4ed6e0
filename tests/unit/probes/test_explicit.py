"""The explicit probe: found, attached, let go, and never in the way."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe

QUIET = {"enable_alerts": False}


def monitor_of(model: nn.Module, **config: Any) -> CMRPerformanceMonitor:
    return CMRPerformanceMonitor(config, alert_config=QUIET, model=model)


def held(*probes: CMRProbe) -> nn.Module:
    model = nn.Module()
    model.probes = list(probes)
    return model


def speak(probe: CMRProbe) -> None:
    probe.capture(10, 8, 6, 0.5)
    probe.reconstruction(3, 0.5, 0.25)
    probe.buffer(5, 10)
    probe.retrieval(1, 4)
    probe.error(ValueError("x"))


def test_unattached_it_does_nothing() -> None:
    probe = CMRProbe(4)
    speak(probe)
    probe.capture(torch.tensor(math.nan), "x", object())  # type: ignore[arg-type]
    with probe.timer() as timer:
        pass
    assert timer.seconds is None
    assert not probe.attached
    assert not hasattr(probe, "__dict__")
    assert repr(probe) == "CMRProbe(layer=4)"


def test_the_timer_measures_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = CMRProbe(4)
    monitor = monitor_of(held(probe))
    readings = iter([10.0, 10.25, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(readings))
    with probe.timer() as timer:
        pass
    assert timer.seconds == 0.25
    with pytest.raises(KeyError), probe.timer() as timer:
        raise KeyError
    assert timer.seconds == 1.0
    monkeypatch.undo()
    monitor.detach()


@pytest.mark.parametrize(
    "how",
    [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_a_probe_that_nobody_listens_to(how: Any) -> None:
    probe = CMRProbe("encoder.2")
    monitor = monitor_of(held(probe))
    twin = how(probe)
    assert (type(twin), twin.layer, twin.attached) == (CMRProbe, "encoder.2", False)
    speak(twin)
    monitor.close_window()
    assert math.isnan(monitor.snapshot.value("states_captured"))
    assert not copy.deepcopy(held(probe)).probes[0].attached


def test_found_wherever_it_is_held() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared = CMRProbe(0)
    model.probe = shared
    model[0].again = shared
    model[0].listed = [1, CMRProbe(1), (CMRProbe(2),)]
    model[1].mapped = {"a": {"b": [CMRProbe(3)]}, 4: CMRProbe(4)}
    model[1].loop = loop = []
    loop.append(loop)
    before = model.state_dict().keys()
    monitor = CMRPerformanceMonitor(alert_config=QUIET)
    assert monitor.attach(model) == 5
    assert monitor.attach(model) == 5, "attaching again changes nothing"
    assert model.state_dict().keys() == before
    assert not any(isinstance(m, CMRProbe) for m in model.modules())
    found = [shared, model[0].listed[1], model[0].listed[2][0], model[1].mapped[4]]
    assert all(probe.attached for probe in found)
    monitor.detach()
    assert not any(probe.attached for probe in found)
    speak(shared)
    monitor.close_window()
    assert math.isnan(monitor.snapshot.value("states_captured"))


def test_it_is_left_alone_by_casts_and_training() -> None:
    model = nn.Linear(2, 2)
    model.probe = probe = CMRProbe(4)
    assert model.double().to("cpu").half().eval().train().probe is probe
    assert [name for name, _ in model.named_parameters()] == ["weight", "bias"]


def test_a_second_monitor_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    probe = CMRProbe(4)
    model = held(probe)
    first = monitor_of(model)
    speak(probe)
    second = monitor_of(model)
    assert "left another monitor" in caplog.text
    probe.capture(1, 1, 1)
    first.detach()  # it no longer listens, so nothing ends for the second
    assert probe.attached
    probe.capture(1, 1, 1)
    first.close_window()
    second.close_window()
    assert first.snapshot.value("states_captured") == 8
    assert second.snapshot.value("states_captured") == 2
    second.detach()
    assert not probe.attached


def test_a_second_monitor_takes_over_what_compiled_code_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe = CMRProbe(4)
    model = held(probe)
    first = monitor_of(model)
    first.place_cells(torch.device("cpu"))
    second = monitor_of(model)
    monkeypatch.setattr("cmr_monitor_callbacks.probes.explicit._compiling", lambda: True)
    monkeypatch.setattr("cmr_monitor_callbacks.recording.cells.anything_compiled", lambda: True)
    probe.capture(10, 8, 6)
    first.close_window()
    second.close_window()
    assert not first.snapshot.value("states_captured") > 0


def test_globs_switch_layers_and_components_off() -> None:
    probes = [CMRProbe(i) for i in (4, 6, 12)] + [CMRProbe()]
    model = held(*probes)
    monitor = monitor_of(model, layers=["4", "1*"], components=["capture", "err*"])
    assert [probe.attached for probe in probes] == [True, False, True, True]
    for probe in probes:
        speak(probe)
    monitor.record_capture(6, 1, 0.1)
    monitor.record_step(1.0, None, 0.5, None, None, None, 1)
    monitor.close_window()
    shown = monitor.snapshot
    assert shown.layers("states_captured") == {4: 8, 12: 8}
    assert shown.value("states_captured") == 24
    assert shown.value("error_count") == 3
    for name in ("total_reconstructions", "total_entries", "total_retrievals", "step_time"):
        assert math.isnan(shown.value(name)), name


class MemoryLost(Exception):
    """Of our own, for Python's own exceptions take no weak reference."""


def test_an_error_is_counted_and_not_kept() -> None:
    probe = CMRProbe(4)
    monitor = monitor_of(held(probe))
    error = MemoryLost("the buffer is gone")
    gone = weakref.ref(error)
    probe.error(error)
    del error
    gc.collect()
    assert gone() is None
    monitor.close_window()
    assert monitor.snapshot.value("error_count", layer=4) == 1
    assert list(monitor.error_log) == ["step 0: layer 4: MemoryLost: the buffer is gone"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recompute_is_not_counted(reentrant: bool) -> None:
    model = nn.Linear(3, 3)
    model.probe = probe = CMRProbe(4)
    monitor = monitor_of(model)
    runs = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        speak(probe)
        probe.capture(torch.tensor(1), 1, 1)
        return model(x).relu()

    x = torch.ones(2, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert len(runs) == 2
    monitor.close_window()
    shown = monitor.snapshot
    assert shown.value("capture_calls") == 2
    assert shown.value("states_attempted") == 11
    for name in ("reconstruction_calls", "total_retrievals", "error_count"):
        assert shown.value(name) == 1, name


class NoSync(TorchDispatchMode):
    """Fails on whatever would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.item,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.nonzero,
        ):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_tensors_are_not_read_between_windows() -> None:
    probe = CMRProbe(4)
    monitor = monitor_of(held(probe))
    whole, real = torch.tensor(6), torch.tensor(0.5)
    with NoSync():
        with pytest.raises(AssertionError, match="waits"):
            whole.item()
        for _ in range(3):
            probe.capture(whole, whole, whole, real, considered=whole)
            probe.reconstruction(whole, real, real)
            probe.buffer(whole, whole, whole, whole, cleared=whole, loaded=whole)
            probe.retrieval(whole, whole, whole, real, real)
    monitor.close_window()
    shown = monitor.snapshot
    assert shown.value("states_stored") == 18
    assert shown.value("reconstruction_quality") == 0.5
    assert (shown.value("total_entries"), shown.value("eviction_count")) == (6, 18)
    assert shown.value("avg_retrieval_time") == pytest.approx(0.5 / 6)
