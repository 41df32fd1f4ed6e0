"""Between windows nothing waits for a device: probes, recorder and windows on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.recording.cells import CellRead
from tests.device_guard import Waits, on_fake_cuda
from tests.fake_cuda import FakeDevice

SETTINGS = {"log_every_n_steps": 100, "on_monitor_error": "raise"}
CUDA = torch.device("cuda", 0)


def number(value: float = 1.0) -> Tensor:
    return torch.full((), value, device=CUDA)


class Probed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.probe = CMRProbe(4)

    def forward(self, x: Tensor) -> Tensor:
        probe = self.probe
        with probe.timer() as timer:
            kept = (x > 0).sum()
        probe.capture(kept, kept, number(), seconds=timer.seconds, considered=kept)
        probe.capture(5, 4, number(3), timer.seconds)
        probe.retrieval(number(2), number(3), number(1), seconds=timer.seconds, quality=x.mean())
        probe.retrieval(2, number(3), None, 0.5)
        probe.retrieval(number(2), 3, None, 0.5)
        probe.reconstruction(kept, quality=number(0.5), seconds=timer.seconds)
        probe.buffer(number(9), 10, number(4096), evicted=number(0), cleared=number(0))
        probe.buffer(3, 10)
        return x * 2


class Buffer:
    def __init__(self) -> None:
        self.entries: dict[int, list[Tensor]] = {4: []}
        self.max_entries = 6

    def store_state(self, state: Tensor, layer_idx: int) -> bool:
        self.entries[layer_idx] = [*self.entries[layer_idx], state][-self.max_entries :]
        return True

    def retrieve(self, query: Tensor, layer_idx: int) -> list[Tensor]:
        return list(self.entries[layer_idx])


class Reconstructor(nn.Module):
    def forward(
        self, hidden_states: Tensor, memories: list[Tensor], layer_idx: int
    ) -> tuple[Tensor, dict[str, Any]]:
        mixed = hidden_states + torch.stack(memories).mean(0)
        return mixed, {"num_memories_used": len(memories), "quality": hidden_states.mean()}


class Watched(nn.Module):
    """No probe: its methods are replaced, its modules hooked, its attributes read."""

    def __init__(self) -> None:
        super().__init__()
        self.memory_buffer, self.reconstructor = Buffer(), Reconstructor()

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.memory_buffer.store_state(x[0], layer_idx=4)
        found = self.memory_buffer.retrieve(x, layer_idx=4)
        out: Tensor = self.reconstructor(x, found, layer_idx=4)[0]
        return out


def step(monitor: CMRPerformanceMonitor, model: nn.Module) -> None:
    x = torch.ones(2, 3, 8, device=CUDA)
    with monitor.track_performance():
        if isinstance(model, Watched):
            model(x, attention_mask=torch.ones(2, 3, dtype=torch.long, device=CUDA))
        else:
            model(x)


def attached(model: nn.Module) -> CMRPerformanceMonitor:
    device = FakeDevice()
    monitor = CMRPerformanceMonitor(SETTINGS)
    device.time(monitor)
    monitor.attach(model)
    return monitor


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("kind", [Probed, Watched])
def test_steps_and_the_devices_part_of_a_window(
    kind: Callable[[], nn.Module], placed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`placed`: rows are made at the start of a fit, or when the first number comes."""
    device = FakeDevice()
    monkeypatch.setattr(torch.cuda, "Event", lambda: _Recorded(device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    model = kind()
    monitor = attached(model)
    with on_fake_cuda() as guard:
        if placed:
            monitor.place_cells(CUDA)
        begun = guard.operators
        for _ in range(3):
            step(monitor, model)
        assert guard.operators > begun  # it ran on the device's tensors
        monitor.set_gate(False)
        monitor.set_gate(True)
        reads: list[CellRead] = monitor._ledger.cells.read()
        assert all(read.ready for read in reads)
        assert len(reads) == (1 if placed else 4) * (kind is Probed)
        monitor._ledger.recorder.drain(monitor._ledger.layout.width, {})
    monitor._ledger.clear = lambda: None  # type: ignore[method-assign]
    monitor._ledger.cells._blocks.clear()  # fake numbers cannot be read
    monitor.detach()


class _Recorded:
    def __init__(self, device: FakeDevice) -> None:
        self._event = device.event()

    def record(self, stream: Any) -> None:
        self._event.record()

    def query(self) -> bool:
        return self._event.query()


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: float(x.mean()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(2, 3, 8).copy_(x),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x[0, [1, 2]],
        lambda x: x.__setitem__((0, [1, 2]), 1.0),
        lambda x: torch.tensor([1.0, 2.0], device=CUDA),
        lambda x: x[:, torch.tensor([1, 2])],
    ],
)
def test_the_guard_finds_what_waits(waits: Callable[[Tensor], Any]) -> None:
    with on_fake_cuda(), pytest.raises(Waits):
        waits(torch.ones(2, 3, 8, device=CUDA))


@pytest.mark.parametrize(
    "free",
    [
        lambda x: torch.empty(2, 3, 8, pin_memory=True).copy_(x, non_blocking=True),
        lambda x: x.double() + torch.full((), 2.0, device=CUDA),
        lambda x: x[0, 1].fill_(3.0),
        lambda x: x.clone().copy_(x),
        lambda x: torch.where(x > 0, x, 0.0).sum(),
        lambda x: x.index_select(0, torch.arange(2, device=CUDA)),
    ],
)
def test_the_guard_lets_what_waits_for_nothing(free: Callable[[Tensor], Any]) -> None:
    with on_fake_cuda() as guard:
        free(torch.ones(2, 3, 8, device=CUDA))
        assert guard.operators


@pytest.mark.parametrize("kind", [Probed, Watched])
def test_a_wait_in_the_monitors_own_code_would_be_found(
    kind: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind()
    monitor = attached(model)
    if kind is Probed:
        from cmr_monitor_callbacks.probes import explicit

        monkeypatch.setattr(explicit, "countable", lambda value: bool(value >= 0))
    else:
        from cmr_monitor_callbacks.probes.watches import reconstruction

        monkeypatch.setattr(reconstruction, "_host", lambda value: value and float(value))
    with on_fake_cuda(), pytest.raises(Exception, match="reads a number of the device"):
        step(monitor, model)
    monitor._ledger.cells._blocks.clear()
    monitor.detach()
