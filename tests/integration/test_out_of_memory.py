"""Memory runs out: the first time it is told with names and files, and training's error stays."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe, ConfigError
from cmr_monitor_callbacks.examining.out_of_memory import is_out_of_memory
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.resources.snapshots import allocator_summary, write_snapshot
from tests.unit.resources.test_gpu import FakeCuda

RAISE = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


class Buffer:
    def __init__(self) -> None:
        self.entries: dict[int, list[torch.Tensor]] = {4: [], 6: []}
        self.max_entries = 100

    def store_state(self, state: torch.Tensor, layer_idx: int) -> bool:
        self.entries[layer_idx].append(state)
        return True


class Reconstructor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(256, 256, bias=False)
        self.fails: BaseException | None = None

    def forward(
        self, hidden_states: torch.Tensor, memories: list[torch.Tensor], layer_idx: int
    ) -> torch.Tensor:
        if self.fails is not None:
            raise self.fails
        return hidden_states * self.gate.weight.sum()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, 4096)  # of the model, but not of its memory
        self.memory_buffer, self.reconstructor = Buffer(), Reconstructor()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            self.memory_buffer.store_state(torch.ones(256, 512), layer_idx=4)
        self.memory_buffer.store_state(torch.ones(256, 256, dtype=torch.float16), layer_idx=6)
        out: torch.Tensor = self.reconstructor(x, [], layer_idx=4)
        return out


def with_files(
    folder: Path | None, model: nn.Module, resources: dict[str, Any] | None = None
) -> CMRPerformanceMonitor:
    monitor = CMRPerformanceMonitor(RAISE, model=model, resources=resources)
    monitor.open_history(folder)
    told = monitor._parts.out_of_memory
    told.summary = lambda: "| PyTorch CUDA memory summary |"
    told.snapshot = _snapshot
    return monitor


def _snapshot(path: Path, most: int) -> str:
    path.write_bytes(b"x")
    return ""


NAMES = (
    "memory_buffer, layer 4 (3 tensors, the largest 256×512 float32, 1.5 MiB), "
    "reconstructor.gate.weight (256×256 float32, 0.2 MiB), "
    "memory_buffer, layer 6 (256×256 float16, 0.1 MiB)"
)


def test_the_largest_tensors_are_named_and_what_is_known_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    monitor = with_files(tmp_path, model)
    model.reconstructor.fails = torch.OutOfMemoryError("Tried to allocate 2 GiB")
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(torch.OutOfMemoryError),
        monitor.track_performance(),
    ):
        model(torch.ones(2, 3, 4))
    sentence = (
        f"memory ran out; of the 1.9 MiB of the model's memory the largest: {NAMES}. "
        "See out_of_memory_rank_0.txt and out_of_memory_rank_0.pickle."
    )
    assert f"step 0: {sentence}" in caplog.messages
    page = Path(__file__).parents[2] / "docs" / "gpu.md"
    assert sentence in " ".join(page.read_text().replace("\n> ", " ").split())
    assert any(sentence in line for line in monitor.error_log)
    text = (tmp_path / "out_of_memory_rank_0.txt").read_text()
    for part in (NAMES, "Tried to allocate 2 GiB", "float16, 0.1 MiB) on cpu", "memory summary"):
        assert part in text
    assert (tmp_path / "out_of_memory_rank_0.pickle").exists()
    monitor.close_history("failed")
    with RunHistory(tmp_path) as history:
        found = {record["type"]: record for record in history.errors()}
    assert found["OutOfMemory"]["component"] == "resources"
    assert NAMES in found["OutOfMemory"]["message"]
    assert found["OutOfMemoryError"]["component"] == "reconstruction"
    monitor.detach()


def test_it_is_told_once_in_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    monitor = with_files(tmp_path / "one", model)
    model.reconstructor.fails = torch.OutOfMemoryError("again")
    for _ in range(3):  # a model that goes on without what failed
        with monitor.track_performance(), pytest.raises(torch.OutOfMemoryError):
            model(torch.ones(2, 3, 4))
    assert sum("memory ran out" in message for message in caplog.messages) == 1
    assert monitor.snapshot.value("error_count") == 3
    monitor.open_history(tmp_path / "two")  # another run
    with monitor.track_performance(), pytest.raises(torch.OutOfMemoryError):
        model(torch.ones(2, 3, 4))
    assert sum("memory ran out" in message for message in caplog.messages) == 2
    assert (tmp_path / "two" / "out_of_memory_rank_0.txt").exists()
    monitor.detach()
    monitor.close_history("failed")


@pytest.mark.parametrize(
    ("resources", "text", "snapshot"),
    [
        ({"out_of_memory": False}, False, False),
        ({"memory_snapshot_mb": 0}, True, False),
        ({"enabled": False}, True, True),
    ],
)
def test_the_settings(
    tmp_path: Path, resources: dict[str, Any], text: bool, snapshot: bool
) -> None:
    model = Model()
    monitor = with_files(tmp_path, model, resources)
    monitor.note_error(MemoryError())
    assert (tmp_path / "out_of_memory_rank_0.txt").exists() is text
    assert (tmp_path / "out_of_memory_rank_0.pickle").exists() is snapshot
    monitor.detach()
    monitor.close_history("failed")


def test_a_wrong_setting_says_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"resources.memory_snapshot_mb must be at least 0"):
        CMRPerformanceMonitor(resources={"memory_snapshot_mb": -1})


def test_what_fails_in_the_telling_does_not_hide_the_error(tmp_path: Path) -> None:
    model = Model()
    monitor = with_files(tmp_path, model)

    def broken(*_: Any) -> str:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monitor._parts.out_of_memory.summary = monitor._parts.out_of_memory.snapshot = broken  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError), monitor.track_performance():
        raise torch.OutOfMemoryError("mine")
    assert "unspecified launch failure" in (tmp_path / "out_of_memory_rank_0.txt").read_text()
    monitor.open_history(tmp_path / "another")
    monitor._parts.out_of_memory._held = broken  # type: ignore[assignment]
    before = monitor.failures
    with pytest.raises(torch.OutOfMemoryError), monitor.track_performance():
        raise torch.OutOfMemoryError("mine")
    assert monitor.failures == before + 1
    monitor.detach()
    monitor.close_history("failed")


class Fit(pl.LightningModule):
    """Runs out of memory in the backward, where no watched call is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)
        self.block.probe = CMRProbe(4)  # type: ignore[assignment]
        self.block.bank = [torch.ones(512, 512) for _ in range(2)]  # type: ignore[assignment]

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss: torch.Tensor = self.block(batch[0]).sum()
        loss.register_hook(self._fail)
        return loss

    def _fail(self, grad: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_in_a_trainers_backward(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = CMRMonitorCallback(monitoring=RAISE)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[ours],
        logger=pl.loggers.CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)))
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(Fit(), data)
    name = "block.bank (2 tensors, the largest 512×512 float32, 2.0 MiB)"
    assert any(name in message for message in caplog.messages)
    assert name in (tmp_path / "out_of_memory_rank_0.txt").read_text()
    assert not (tmp_path / "out_of_memory_rank_0.pickle").exists()  # CUDA is not in use
    with RunHistory(tmp_path) as history:
        assert any(name in record["message"] for record in history.errors())


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_are_meant(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_a_real_error_of_the_host_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)


class Snapshots(FakeCuda):
    """With a snapshot of so many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__((1, 1, 1))
        self.memory, self._size = self, size

    def _snapshot(self) -> dict[str, bytes]:
        return {"segments": b"x" * self._size}


def test_a_snapshot_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "s.pickle"
    assert write_snapshot(path, 10_000, Snapshots(1000)) == ""
    assert pickle.loads(path.read_bytes()) == {"segments": b"x" * 1000}
    assert write_snapshot(path, 2**20, Snapshots(2**21)) == "it is larger than 1 MiB"
    assert not path.exists()
    assert write_snapshot(path, 10_000, FakeCuda((1, 1, 1))) == "this torch takes none"
    assert write_snapshot(path, 10_000, FakeCuda(ready=False)) == "CUDA is not in use"
    assert not path.exists()


def test_torch_still_has_what_is_private() -> None:
    """Where this fails, `resources/snapshots.py` says that no snapshot is taken; mend it there."""
    assert callable(torch.cuda.memory._snapshot)


def test_without_cuda_there_is_no_summary() -> None:
    assert torch.cuda.is_initialized() or allocator_summary() == ""
