"""Times of a device in a monitor: they come late, to the window in which they are known."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe, ConfigError
from cmr_monitor_callbacks.recording.device_clock import DeviceSeconds
from tests.fake_cuda import FakeDevice

RAISE = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


class Probed(nn.Module):
    """Each call of its memory puts work on the device."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.probe, self.device = CMRProbe(4), device
        self.weight = nn.Parameter(torch.ones(()))
        self.operations: Any = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.probe.timer("retrieval") as timer:
            self.device.launch(0.004)
        self.probe.retrieval(self.operations, 3, seconds=timer.seconds)
        with self.probe.timer() as timer:
            self.device.launch(0.002)
        self.probe.capture(attempted=5, captured=4, stored=3, seconds=timer.seconds)
        with self.probe.timer() as timer:
            self.device.launch(0.001)
        self.probe.reconstruction(memories_used=2, quality=0.5, seconds=timer.seconds)
        return x * self.weight


class Buffer:
    def __init__(self, device: FakeDevice) -> None:
        self.entries: list[torch.Tensor] = []
        self.max_entries, self.device = 100, device

    def store_state(self, state: torch.Tensor) -> bool:
        self.device.launch(0.002)
        self.entries.append(state)
        return True

    def retrieve(self, query: torch.Tensor) -> list[torch.Tensor]:
        self.device.launch(0.004)
        return self.entries[:3]


class Reconstructor(nn.Module):
    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def forward(
        self, hidden_states: torch.Tensor, memories: list[torch.Tensor], layer_idx: int
    ) -> tuple[torch.Tensor, dict[str, int]]:
        self.device.launch(0.001)
        if not memories:
            raise ValueError("nothing to reconstruct from")
        return hidden_states, {"num_memories_used": len(memories)}


class Watched(nn.Module):
    """The same without a probe."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.memory_buffer, self.reconstructor = Buffer(device), Reconstructor(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.memory_buffer.store_state(x[0])
        found = self.memory_buffer.retrieve(x)
        return self.reconstructor(x, found, layer_idx=4)[0] * self.weight  # type: ignore[no-any-return]


def monitor_of(
    kind: Any, size: int = 2048, **settings: Any
) -> tuple[CMRPerformanceMonitor, Any, FakeDevice]:
    device = FakeDevice()
    model = kind(device)
    monitor = CMRPerformanceMonitor({**RAISE, **settings})
    device.time(monitor, size)
    monitor.attach(model)
    return monitor, model, device


TIMES = {"avg_capture_time": 0.002, "avg_retrieval_time": 0.004, "avg_reconstruction_time": 0.001}


@pytest.mark.parametrize(("kind", "source"), [(Probed, "explicit:"), (Watched, "")])
def test_calls_are_timed_by_the_device(kind: Any, source: str) -> None:
    monitor, model, device = monitor_of(kind)
    for _ in range(3):
        with monitor.track_performance():
            model(torch.ones(2, 3, 4))
            device.run()  # what a loss that is logged makes a step do
    found = monitor.snapshot
    for name, seconds in TIMES.items():
        assert found.value(name) == pytest.approx(seconds)
        assert found.value(name, over="window") == pytest.approx(seconds)
        assert found.source(name).startswith(source)
        assert found.source(name).endswith(", cuda events")
        quantile = name.removeprefix("avg_") + "_p99"
        assert found.value(quantile) == pytest.approx(seconds, rel=0.02)
        assert found.source(quantile).endswith(", cuda events")
    assert found.value("total_retrievals") == found.value("capture_calls") == 3
    assert found.value("avg_forward_time") == pytest.approx(0.007)
    assert found.value("total_forward_time") == pytest.approx(0.021)
    assert found.source("avg_forward_time") == "timer:steps, cuda events"
    assert found.source("step_time") == "timer:steps"  # what a step takes is the wall's to say
    assert found.value("dropped_events") == found.value("invalid_samples") == 0
    monitor.detach()


@pytest.mark.parametrize("kind", [Probed, Watched])
def test_percentiles_of_each_layer(kind: Any) -> None:
    monitor, model, device = monitor_of(kind, layer_quantiles=True)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
    device.run()  # known in the next window
    with monitor.track_performance():
        pass
    for name, seconds in TIMES.items():
        quantile = name.removeprefix("avg_") + "_p99"
        of_layers = monitor.snapshot.layers(quantile)
        assert of_layers.keys() == monitor.snapshot.layers(name).keys()
        assert list(of_layers.values()) == pytest.approx([seconds] * len(of_layers), rel=0.02)
    assert monitor.snapshot.layers("reconstruction_time_p50")
    monitor.detach()


@pytest.mark.parametrize("kind", [Probed, Watched])
def test_a_late_duration_comes_to_the_window_in_which_it_is_known(kind: Any) -> None:
    monitor, model, device = monitor_of(kind)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
    first = monitor.snapshot
    assert first.value("total_retrievals") == first.value("capture_calls") == 1
    assert all(math.isnan(first.value(name)) for name in (*TIMES, "avg_forward_time"))
    device.run()
    with monitor.track_performance():
        pass
    second = monitor.snapshot
    assert second.value("total_retrievals", over="window") == 0
    for name, seconds in TIMES.items():
        assert second.value(name, over="window") == pytest.approx(seconds)
    # two passes became known in it: the late one, and its own, which did nothing
    assert second.value("avg_forward_time", over="window") == pytest.approx(0.007 / 2)
    assert second.value("dropped_events") == 0
    monitor.detach()


@pytest.mark.parametrize("kind", [Probed, Watched])
def test_a_full_ring_drops_and_counts(kind: Any) -> None:
    monitor, model, _ = monitor_of(kind, size=6)
    with monitor.track_performance():
        for _ in range(4):  # 12 calls and the step, none of which is over
            model(torch.ones(2, 3, 4))
    assert monitor.snapshot.value("total_retrievals") == 4  # counts are never dropped
    assert monitor.snapshot.value("dropped_events") >= 10
    assert math.isnan(monitor.snapshot.value("avg_retrieval_time"))
    monitor.detach()


def test_what_is_under_way_when_a_stage_ends_is_dropped() -> None:
    monitor, model, device = monitor_of(Probed)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
    monitor.enter_stage("val")
    device.run()
    model(torch.ones(2, 3, 4))
    device.run()
    monitor.leave_stage(0)
    assert monitor.snapshots["val"].value("avg_capture_time") == pytest.approx(0.002)
    assert monitor.snapshots["val"].value("capture_calls") == 1
    with monitor.track_performance():
        pass
    assert math.isnan(monitor.snapshot.value("avg_capture_time"))
    assert monitor.snapshot.value("dropped_events") == 4  # three calls and a forward
    monitor.detach()


@pytest.mark.parametrize("kind", [Probed, Watched])
def test_letting_go_takes_what_is_over(kind: Any) -> None:
    monitor, model, device = monitor_of(kind, log_every_n_steps=100)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
    device.run()
    monitor.detach()
    monitor.flush()
    for name, seconds in TIMES.items():
        assert monitor.snapshot.value(name) == pytest.approx(seconds)
    assert (
        monitor.snapshot.value("invalid_samples") == monitor.snapshot.value("dropped_events") == 0
    )
    monitor.attach(model)  # a second time it is timed anew
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
        device.run()
    monitor.flush()
    assert monitor.snapshot.value("avg_capture_time", over="window") == pytest.approx(0.002)
    monitor.detach()


def test_late_durations_alone_begin_no_window() -> None:
    monitor, model, device = monitor_of(Probed)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
    device.run()
    windows = monitor.windows
    monitor.flush()
    assert monitor.windows == windows == 1
    monitor.detach()


@pytest.mark.parametrize(("timing", "events"), [("host", 0), ("auto", 2048), ("device", 2048)])
def test_the_setting(timing: str, events: int) -> None:
    monitor, model, device = monitor_of(Probed, timing=timing)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
    assert device.made == events
    assert ("cuda events" in monitor.snapshot.source("avg_forward_time")) is bool(events)
    assert (monitor.snapshot.value("avg_capture_time") > 0) is not bool(events)
    monitor.detach()


def test_a_wrong_setting_says_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"monitoring.timing must be .*, got 'gpu'"):
        CMRPerformanceMonitor({"timing": "gpu"})


def test_a_device_that_is_not_there_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Probed(FakeDevice())
    monitor = CMRPerformanceMonitor({**RAISE, "timing": "device"}, model=model)
    assert "monitoring.timing is 'device', but the model is not on one CUDA device" in caplog.text
    with monitor.track_performance():
        model(torch.ones(2))
    assert monitor.snapshot.source("avg_forward_time") == "timer:steps"
    monitor.detach()


def test_seconds_that_the_model_gives_stay_as_given() -> None:
    monitor, model, _ = monitor_of(Probed)
    with monitor.track_performance():
        model.probe.capture(attempted=1, captured=1, stored=1, seconds=0.5)
    assert monitor.snapshot.value("avg_capture_time") == 0.5
    assert monitor.snapshot.source("avg_capture_time") == "explicit:probe"
    monitor.detach()


def test_a_duration_of_several_operations() -> None:
    monitor, model, device = monitor_of(Probed)
    model.operations = 4
    with monitor.track_performance():
        model(torch.ones(2))
        device.run()
    assert monitor.snapshot.value("avg_retrieval_time") == pytest.approx(0.001)
    assert monitor.snapshot.value("total_retrievals") == 4
    model.operations = torch.tensor(4)  # how many only the device knows
    with monitor.track_performance():
        model(torch.ones(2))
        device.run()
    assert monitor.snapshot.value("total_retrievals") == 8
    assert math.isnan(monitor.snapshot.value("avg_retrieval_time", over="window"))
    model.operations = 0
    with monitor.track_performance():
        model(torch.ones(2))
        device.run()
    assert math.isnan(monitor.snapshot.value("avg_retrieval_time", over="window"))
    assert monitor.snapshot.value("invalid_samples") == 0
    monitor.detach()


def test_what_else_is_told_of_a_call_may_be_anything() -> None:
    monitor, model, device = monitor_of(Probed)
    with monitor.track_performance():
        with model.probe.timer() as timer:
            device.launch(0.002)
        assert type(timer.seconds) is DeviceSeconds
        model.probe.capture(torch.tensor(5), 4, 3.0, seconds=timer.seconds)  # type: ignore[arg-type]
        monitor.record_capture(2, 3, timer.seconds)
        device.run()
    found = monitor.snapshot
    assert found.value("avg_capture_time", layer=4) == pytest.approx(0.002)
    assert found.value("avg_capture_time", layer=2) == pytest.approx(0.002)
    assert found.value("states_attempted", layer=4) == 5
    assert found.value("invalid_samples") == 0
    monitor.detach()


def test_a_recompute_is_not_timed_twice() -> None:
    monitor, model, device = monitor_of(Probed)
    x = torch.ones(2, requires_grad=True)
    with monitor.track_performance():
        checkpoint(model, x, use_reentrant=False).sum().backward()
        device.run()
    assert monitor.snapshot.value("capture_calls") == 1
    assert monitor.snapshot.value("avg_capture_time") == pytest.approx(0.002)
    monitor.detach()


def test_only_sampled_steps_use_events() -> None:
    monitor, model, device = monitor_of(Watched, sample_every=2, log_every_n_steps=4)
    for _ in range(4):
        with monitor.track_performance():
            model(torch.ones(2, 3, 4))
            device.run()
    found = monitor.snapshot
    assert found.value("avg_retrieval_time") == pytest.approx(0.004)
    assert found.source("avg_retrieval_time").endswith(", cuda events, every 2nd step")
    monitor.detach()


def test_a_call_that_raises_leaves_no_event_behind() -> None:
    monitor, model, device = monitor_of(Watched, size=8)
    for _ in range(20):
        with monitor.track_performance():
            with pytest.raises(ValueError):
                model.reconstructor(torch.ones(2, 3, 4), [], layer_idx=4)
            device.run()
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
        device.run()
    assert monitor.snapshot.value("error_count") == 20
    assert monitor.snapshot.value("dropped_events") == 0
    assert monitor.snapshot.value("avg_reconstruction_time") == pytest.approx(0.001)
    monitor.detach()


def test_a_copy_of_a_monitor_times_by_the_host() -> None:
    monitor, model, device = monitor_of(Watched, log_every_n_steps=2)
    with monitor.track_performance():
        model(torch.ones(2, 3, 4))
        device.run()
    monitor.detach()
    other = copy.deepcopy(monitor)
    other._listening.timing._find = _nowhere
    plain = Watched(FakeDevice())
    other.attach(plain)
    with other.track_performance():
        plain(torch.ones(2, 3, 4))
    assert other.snapshot.value("avg_retrieval_time") > 0
    assert other.snapshot.source("avg_retrieval_time") == "wrapped:memory_buffer.retrieve"
    assert other.snapshot.value("invalid_samples") == 0
    other.detach()


def _nowhere(model: nn.Module) -> None:
    return None


def test_live_statistics_of_another_thread_ask_no_event() -> None:
    monitor, model, device = monitor_of(Probed, log_every_n_steps=2)
    with monitor.track_performance():
        model(torch.ones(2))
    device.run()
    ledger = monitor._ledger
    ledger._thread = -1  # as another thread sees it
    before = device.queries
    assert math.isnan(monitor.get_live_stats()["metrics"].get("avg_capture_time", math.nan))
    assert device.queries == before
    with monitor.track_performance():
        pass
    assert monitor.snapshot.value("avg_capture_time") == pytest.approx(0.002)
    monitor.detach()


class Fit(pl.LightningModule):
    """Its forward, backward and optimizer put 3, 5 and 2 ms on the device."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.model, self.cuda_ = Probed(device), device

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(batch[0]).square().mean()
        return loss

    def on_before_backward(self, loss: torch.Tensor) -> None:
        loss.register_hook(self._in_backward)

    def _in_backward(self, grad: torch.Tensor) -> None:
        self.cuda_.launch(0.005)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.model(batch[0])
        self.cuda_.run()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.cuda_.launch(0.002)

    def on_train_batch_end(self, *args: Any) -> None:
        self.cuda_.run()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_phases_of_a_step_in_a_trainer(tmp_path: Path, accumulate: int) -> None:
    device = FakeDevice()
    ours = CMRMonitorCallback(monitoring={"log_every_n_steps": 2, "on_monitor_error": "raise"})
    device.time(ours.monitor)
    data = torch.utils.data.TensorDataset(torch.ones(16, 3))
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        callbacks=[ours],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Fit(device), loader, loader)
    found = ours.snapshot
    assert found.value("avg_forward_time") == pytest.approx(0.007)
    assert found.value("backward_time") == pytest.approx(0.005 * accumulate)
    assert found.value("optimizer_time") == pytest.approx(0.002)
    assert found.value("avg_latency") == pytest.approx(0.007)
    assert found.value("avg_retrieval_time") == pytest.approx(0.004)
    assert ours.snapshots["val"].value("avg_forward_time") == pytest.approx(0.007)
    assert ours.snapshots["val"].value("avg_capture_time") == pytest.approx(0.002)
    assert found.source("backward_time") == "timer:steps, cuda events"
    assert found.value("step_time") > 0 and found.source("step_time") == "timer:steps"
    assert ours.monitor.failures == 0
