"""On a CUDA device: nothing waits between windows, and sections take what the profiler says.

``python -m pytest tests/gpu``. Without a device each is skipped and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.recording.device_clock import cuda_clock
from cmr_monitor_callbacks.resources.snapshots import allocator_summary, write_snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SETTINGS = {"log_every_n_steps": 1000, "on_monitor_error": "raise"}
WORK = {"retrieval": 12, "capture": 6, "reconstruction": 3}
"""Products of matrices in each section."""


class Probed(nn.Module):
    """Sections that take a few milliseconds each on the device, and next to nothing to launch."""

    def __init__(self, size: int = 4096) -> None:
        super().__init__()
        self.probe = CMRProbe(4)
        self.weight = nn.Parameter(torch.randn(size, size) / size**0.5)

    def work(self, x: Tensor, products: int) -> Tensor:
        for _ in range(products):
            x = x @ self.weight
        return x

    def forward(self, x: Tensor) -> Tensor:
        probe = self.probe
        with probe.timer("retrieval") as timer:
            x = self.work(x, WORK["retrieval"])
        probe.retrieval(1, x.isfinite().sum(), seconds=timer.seconds, quality=x.abs().mean() * 0)
        with probe.timer("capture") as timer:
            x = self.work(x, WORK["capture"])
        kept = (x > 0).sum()
        probe.capture(kept, kept, kept, seconds=timer.seconds)
        with probe.timer("reconstruction") as timer:
            x = self.work(x, WORK["reconstruction"])
        probe.reconstruction(memories_used=kept, seconds=timer.seconds)
        probe.buffer(kept, 10**9, nbytes=kept * 4)
        return x


class Buffer:
    def __init__(self) -> None:
        self.entries: list[Tensor] = []
        self.max_entries = 8

    def store_state(self, state: Tensor) -> bool:
        self.entries = [*self.entries, state.detach()][-self.max_entries :]
        return True

    def retrieve(self, query: Tensor) -> list[Tensor]:
        return list(self.entries)


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(512, 512) / 512)
        self.memory_buffer = Buffer()

    def forward(self, x: Tensor) -> Tensor:
        self.memory_buffer.store_state(x[0])
        return x @ self.weight + torch.stack(self.memory_buffer.retrieve(x)).mean()


def given(model: nn.Module) -> Tensor:
    return torch.randn(2, 512, 512, device="cuda") if isinstance(model, Watched) else x_of(4096)


def x_of(size: int) -> Tensor:
    return torch.randn(size, size, device="cuda")


@pytest.mark.parametrize("kind", [Probed, Watched])
def test_nothing_waits_between_windows(kind: type[nn.Module]) -> None:
    model = kind().cuda()
    monitor = CMRPerformanceMonitor(SETTINGS, model=model)
    monitor.place_cells(torch.device("cuda", torch.cuda.current_device()))
    x = given(model)
    with monitor.track_performance():
        model(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            with monitor.track_performance():
                model(x).sum().backward()
        monitor._ledger.fold()  # the device's part of a window's end
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monitor.flush()
    assert monitor.failures == 0
    assert monitor.snapshot.value("total_retrievals") == 21
    monitor.detach()


def test_the_guard_of_cuda_finds_a_wait() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_sections_take_what_the_profiler_says() -> None:
    model = Probed().cuda()
    monitor = CMRPerformanceMonitor({**SETTINGS, "enable_profiling": True}, model=model)
    x = x_of(4096)
    for _ in range(3):  # warm, and the first profile of a process too
        model(x)
    with monitor.profile_execution():
        model(x)
    torch.cuda.synchronize()
    monitor.reset_metrics()
    with monitor.profile_execution():
        for _ in range(10):
            with monitor.track_performance():
                model(x)
        torch.cuda.synchronize()
    sections: dict[str, Any] = monitor.get_profile_results()["sections"]
    monitor.flush()
    for kind in WORK:
        section = sections[f"cmr/{kind}/layer_4"]
        each = section["device_seconds"] / section["calls"]
        assert monitor.snapshot.value(f"avg_{kind}_time") == pytest.approx(each, rel=0.05)
        assert monitor.snapshot.source(f"avg_{kind}_time").endswith(", cuda events")
    monitor.detach()


def test_host_seconds_are_those_of_launching() -> None:
    """What the setting is for: the host's clock does not see the work."""
    times = {}
    for timing in ("host", "device"):
        model = Probed().cuda()
        monitor = CMRPerformanceMonitor({**SETTINGS, "timing": timing}, model=model)
        x = x_of(4096)
        model(x)
        torch.cuda.synchronize()
        monitor.reset_metrics()
        with monitor.track_performance():
            model(x)
        torch.cuda.synchronize()
        monitor.flush()
        times[timing] = monitor.snapshot.value("avg_retrieval_time")
        monitor.detach()
    assert times["host"] < times["device"] / 2


def test_a_graph_is_captured_as_without_the_monitor() -> None:
    model = Probed(256).cuda()
    monitor = CMRPerformanceMonitor(SETTINGS, model=model)
    x = x_of(256)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = model(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(out, expected)
    assert monitor.failures == 0
    monitor.detach()


def test_the_clock_is_of_the_stream_that_works() -> None:
    clock = cuda_clock(torch.device("cuda", torch.cuda.current_device()))
    x = x_of(4096)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        start = clock.now()
        for _ in range(10):
            x = x @ x.T / 4096
        took = clock.now() - start
    assert took.pending
    torch.cuda.synchronize()
    clock.harvest()
    assert took.seconds is not None and took.seconds > 1e-4


class Fit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Probed(1024)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = self.model(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def test_a_fit(tmp_path: Path) -> None:
    ours = CMRMonitorCallback(monitoring={"log_every_n_steps": 10, "on_monitor_error": "raise"})
    data = torch.utils.data.TensorDataset(torch.randn(1024 * 40, 1024))
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        max_epochs=1,
        callbacks=[ours],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Fit(), torch.utils.data.DataLoader(data, batch_size=1024))
    found = ours.snapshot
    for name in ("avg_forward_time", "backward_time", "optimizer_time", "avg_capture_time"):
        assert found.value(name) > 0
        assert found.source(name).endswith(", cuda events")
    assert found.value("avg_forward_time") + found.value("backward_time") < found.value("step_time")
    assert found.value("dropped_events") == 0


def test_a_real_error_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Watched().cuda()
    monitor = CMRPerformanceMonitor(SETTINGS, model=model)
    monitor.open_history(tmp_path)
    model(given(model))
    before = torch.cuda.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError), monitor.track_performance():
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_allocated() == before
    assert any("memory_buffer" in m and "512×512 float32" in m for m in caplog.messages)
    text = (tmp_path / "out_of_memory_rank_0.txt").read_text()
    assert "PyTorch CUDA memory summary" in text and "on cuda:0" in text
    assert (tmp_path / "out_of_memory_rank_0.pickle").stat().st_size > 0
    monitor.detach()
    monitor.close_history("failed")


def test_the_allocators_files(tmp_path: Path) -> None:
    held = torch.ones(2**20, device="cuda")
    assert "Allocated memory" in allocator_summary()
    assert write_snapshot(tmp_path / "s.pickle", 2**26) == ""
    assert write_snapshot(tmp_path / "t.pickle", 10).startswith("it is larger than")
    assert held.sum() == 2**20
