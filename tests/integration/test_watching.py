"""What a user can say of a model that is watched: which objects, which layers, other numbers."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.probes import adapters
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import BaseWatch, Watch, Ways
from tests.memory_models.buffers import Entry, ListBuffer, SingleBuffer
from tests.memory_models.small import SmallNet

EACH: dict[str, Any] = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


class Two(nn.Module):
    """Two memories that know of no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = SingleBuffer(4, 3), SingleBuffer(4, 3)
        self.stored = 0

    def forward(self, x: Tensor) -> Tensor:
        for row in x:
            self.stored += 1
            self.early.store_state(row, key=self.stored)
            self.late.store_state(row, key=self.stored)
        return x


def watch(model: nn.Module, probes: Any = None, steps: int = 1) -> CMRPerformanceMonitor:
    """A monitor after some steps of a model."""
    monitor = CMRPerformanceMonitor(EACH, model=model, probes=probes)
    for _ in range(steps):
        with monitor.track_performance():
            model(torch.ones(2, 4))
    return monitor


def test_objects_are_chosen_by_the_globs_of_their_paths() -> None:
    monitor = watch(Two(), {"objects": ["la*"]})
    assert monitor.snapshot.layers("states_stored") == {"late": 2.0}
    monitor.detach()


def test_layers_are_named_by_the_globs_of_paths() -> None:
    monitor = watch(Two(), {"layer_names": {"early": 3, "l*": "last"}})
    assert monitor.snapshot.layers("states_stored") == {3: 2.0, "last": 2.0}
    monitor.detach()


def test_layers_that_are_not_watched_cost_nothing_and_show_nothing() -> None:
    model = Two()
    model.late.stats = {"total_insertions": 0, "total_evictions": 0}
    before = dict(vars(model.late))
    monitor = CMRPerformanceMonitor({**EACH, "layers": ["early"]}, model=model)
    assert vars(model.late) == before
    assert {watch.path for watch in monitor._listening.automatic.watches()} == {"", "early"}
    with monitor.track_performance():
        model(torch.ones(2, 4))
        model.late.stats["total_evictions"] += 7
    assert monitor.snapshot.layer_ids == ("early",)
    assert monitor.snapshot.value("eviction_count") == 0
    assert monitor.snapshot.value("states_stored") == 2
    monitor.detach()


class EntryBuffer:
    """Its entries may say their layer: nobody knows before one is stored."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def add_entry(self, entry: Any) -> None:
        self.entries.append(entry)


class Queue(nn.Module):
    """A tensor that acts as a memory, and a memory that is passed to a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(4, 3))
        self.passed = SingleBuffer(4, 3)
        self.reader = Reader()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reader(x, SingleBuffer(4, 3))
        return out


class Reader(nn.Module):
    """Is given a memory."""

    def forward(self, x: Tensor, memory: Any) -> Tensor:
        assert all(type(value).__name__ != "Wrapped" for value in vars(memory).values())
        return x


def test_a_layer_is_off_where_calls_cannot_name_another() -> None:
    model = nn.Module()
    model.named, model.told, model.deep = SingleBuffer(4, 3), EntryBuffer(), Queue()
    monitor = CMRPerformanceMonitor(
        {**EACH, "layers": ["3"]}, model=model, probes={"layer_names": {"named": 3}}
    )
    watched = {watch.path for watch in monitor._listening.automatic.watches()}
    assert watched == {"", "deep", "named", "told"}  # "deep": its forward, not its queue
    assert not any(
        watch.path == "deep" and watch.unknown for watch in monitor._listening.automatic.watches()
    )
    with monitor.track_performance():
        model.told.add_entry(Entry(torch.ones(4), 3, 1))
        model.told.add_entry(Entry(torch.ones(4), 5, 1))
        model.deep(torch.ones(1))
    assert monitor.snapshot.layers("states_stored") == {3: 1.0}
    monitor.detach()


def test_components_that_are_not_watched_are_left_alone() -> None:
    model = Two()
    before = dict(vars(model.early))
    monitor = CMRPerformanceMonitor({**EACH, "components": ["timing"]}, model=model)
    assert vars(model.early) == before
    monitor.detach()


def test_nothing_is_watched_where_that_is_off_or_a_probe_speaks() -> None:
    off = watch(Two(), {"automatic": False})
    assert math.isnan(off.snapshot.value("states_stored"))
    model = Two()
    model.probe = CMRProbe(7)
    by_probe = watch(model)
    assert by_probe.snapshot.layer_ids == (7,) or math.isnan(
        by_probe.snapshot.value("states_stored")
    )
    assert "early" not in by_probe.snapshot.layer_ids
    off.detach()
    by_probe.detach()


def test_a_probes_word_wins_component_by_component() -> None:
    model = Two()
    model.probe = CMRProbe("early")
    monitor = CMRPerformanceMonitor(EACH, model=model, probes={"automatic": True})
    with monitor.track_performance():
        model(torch.ones(2, 4))
        model.probe.capture(attempted=50, captured=40, stored=30)
    snapshot = monitor.snapshot
    assert snapshot.value("states_stored") == 30, "the author's word, for the whole component"
    assert snapshot.value("total_entries") == 4, "of the buffer the author says nothing"
    monitor.detach()


def test_other_numbers_come_from_a_function_of_the_users() -> None:
    model = Two()
    model.total = 5

    def read(net: Any) -> dict[str, Any]:
        net.total += 3
        return {
            "states_merged": net.total,
            "memory_size_mb": {"early": 2.0},
            "threshold_adjustments": {"early": net.total, "late": 1},
        }

    monitor = watch(model, {"read": read}, steps=2)
    snapshot = monitor.snapshot
    assert snapshot.value("states_merged") == 6, "what it was at the start is not counted"
    assert snapshot.value("threshold_adjustments", layer="early") == 6
    assert snapshot.value("threshold_adjustments", layer="late") == 0
    assert snapshot.value("memory_size_mb", layer="early") == 2.0
    assert snapshot.source("states_merged") == "polled:probes.read"
    monitor.detach()


def test_a_number_that_follows_from_others_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1}, model=Two(), probes={"read": lambda net: {"cache_hit_rate": 1.0}}
    )
    assert "give the counts that it is made of" in monitor.error_log[-1]
    monitor.detach()


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        ({"automatik": True}, "did you mean 'automatic'"),
        ({"layer_names": {"a": 1.5}}, "probes.layer_names"),
        ({"objects": "early"}, "must be a list"),
        ({"read": 3}, "probes.read"),
    ],
)
def test_a_wrong_setting_is_named(probes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CMRPerformanceMonitor(EACH, probes=probes)


class Tape:
    """A memory of a family that nobody knows."""

    def __init__(self) -> None:
        self.cells = [0, 0]

    def write_head(self, cell: int) -> None:
        self.cells.append(cell)


class TapeWatch(BaseWatch):
    """Sees a tape."""

    def install(self, ways: Ways) -> None:
        self._report = ways.report
        self.source("buffer", "polled", "cells")

    def poll(self) -> None:
        at = self._report.place(self.layer)
        assert at is not None
        self._report.put(at, "total_entries", len(self._owner().cells))


def tape(part: Part) -> Watch | None:
    """An adapter, as another package would have one."""
    return TapeWatch(part) if "write_head" in part.offers else None


@pytest.fixture
def adapter_of_another_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Entry:
        def load(self) -> Any:
            return tape

    def found(*, group: str) -> list[Entry]:
        return [Entry()] if group == "cmr_monitor_callbacks.adapters" else []

    monkeypatch.setattr(adapters, "entry_points", found)
    adapters.installed.cache_clear()
    yield
    adapters.installed.cache_clear()


def test_a_new_family_is_one_adapter(adapter_of_another_package: None) -> None:
    model = nn.Module()
    model.tape = Tape()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        model.tape.write_head(1)
    assert monitor.snapshot.layers("total_entries") == {"tape": 3.0}
    assert monitor.snapshot.source("total_entries") == "polled:tape.cells"
    monitor.detach()


class Counting(nn.Module):
    """Keeps counters of its optimiser, and says them with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.optimization_stats = {"threshold_adjustments": 4, "prefetch_hits": 0}


class Says(pl.LightningModule):
    """Returns its statistics from the step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Counting()
        self.captured = 0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.net.optimization_stats["threshold_adjustments"] += 1
        self.captured += 10
        return {
            "loss": self.net.linear(batch[0]).sum(),
            "performance_stats": {
                "total_captures": batch_idx,  # calls or states? it does not say
                "states_captured_per_layer": {4: self.captured, 6: 2 * self.captured},
            },
            "memory_info": {"buffer_stats": {"total_evictions": 3 * self.captured}},
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(module: pl.LightningModule, callback: CMRMonitorCallback, steps: int, **more: Any) -> None:
    """Train a little."""
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **more,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(2 * steps, 4)), batch_size=2))


def test_what_a_step_returns_and_what_a_model_counts_is_read() -> None:
    callback = CMRMonitorCallback(monitoring={**EACH, "log_every_n_steps": 2})
    fit(Says(), callback, 6)
    snapshot = callback.snapshot
    assert snapshot.layers("states_captured") == {4: 60.0, 6: 120.0}
    assert snapshot.value("eviction_count") == 180
    assert math.isnan(snapshot.value("capture_calls")), "what is ambiguous is not used"
    assert snapshot.value("threshold_adjustments") == 6
    assert math.isnan(snapshot.value("prefetch_hits")), "what never moved may be dead"
    assert snapshot.source("threshold_adjustments").startswith("polled:net.optimization_stats")


def test_what_is_watched_is_said_once_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = SmallNet(ListBuffer(5, 8, (2, 4)))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            keys = torch.arange(12).reshape(3, 4)
            out: Tensor = self.net(torch.ones(3, 4, 8), keys)
            return out.mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    names = ("pytorch_lightning", "lightning.pytorch", "lightning_utilities")
    for name in names:
        logging.getLogger(name).propagate = True
    with caplog.at_level(logging.INFO):
        fit(Module(), CMRMonitorCallback(monitoring=EACH), 3)
    # both import names' loggers hand the same record on
    said = list({r.created: r.getMessage() for r in caplog.records if "watches" in r.msg}.values())
    assert len(said) == 1
    assert "capture: wrapped:net.memory_buffer.store_state" in said[0]
    assert "reconstruction: hook:net.reconstructor.forward" in said[0]


class Passing(nn.Module):
    """Hands a memory that nobody holds to the module that uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.reader = Two(), Storing()
        self.reader.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        memories.append(SingleBuffer(4, 3))
        out: Tensor = self.reader(self.two(x), memories[-1])
        return out


memories: list[SingleBuffer] = []
"""Kept alive, for the monitor keeps none so."""


class Storing(nn.Module):
    """Stores in the memory that it is given."""

    def forward(self, x: Tensor, memory: SingleBuffer) -> Tensor:
        memory.store_state(x[0], key=1)
        return x


def around(model: nn.Module, how: str) -> nn.Module:
    if how == "data parallel":
        return nn.DataParallel(model)
    if how == "compiled":
        return torch.compile(model, backend="eager")  # type: ignore[return-value]
    if how == "compiled within":
        model.two = torch.compile(model.two, backend="eager")
    elif how == "fsdp":
        holder = nn.Module()
        holder._fsdp_wrapped_module = model.two
        holder.forward = model.two.forward  # type: ignore[method-assign]
        model.two = holder
    return model


@pytest.mark.parametrize("how", ["", "data parallel", "compiled", "compiled within", "fsdp"])
def test_a_layer_named_by_its_path_is_the_same_within_a_wrapper(how: str) -> None:
    model = Passing()
    inner = model.two
    monitor = CMRPerformanceMonitor(EACH, model=around(model, how))
    with monitor.track_performance():
        if how.startswith("compiled"):  # compiled code is another matter; the names are the same
            inner(torch.ones(2, 4))
        else:
            model(torch.ones(2, 4))
    found = monitor.snapshot.layers("total_entries")
    told = {} if how.startswith("compiled") else {"reader": 1.0}
    assert found == {"two.early": 2.0, "two.late": 2.0, **told}
    assert monitor.snapshot.source("total_entries").startswith("polled:two.early.entries")
    monitor.detach()


def test_a_part_of_the_model_that_is_called_module_keeps_its_name() -> None:
    model = nn.Module()
    model.module = Two()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        model.module(torch.ones(1, 4))
    assert set(monitor.snapshot.layer_ids) == {"module.early", "module.late"}
    monitor.detach()


def test_a_buffer_that_holds_more_than_it_may_is_used_to_more_than_all() -> None:
    model = Two()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        model.early.entries.extend(range(6))  # type: ignore[arg-type]
        model.late.store_state(torch.ones(4), key=1)
    value = monitor.snapshot.value
    assert value("utilization_rate", layer="early") == 2.0
    assert value("utilization_rate", layer="late") == pytest.approx(1 / 3)
    assert value("utilization_rate") == pytest.approx(7 / 6)
    monitor.detach()


class Returns(Says):
    """Returns tensors with its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        out = super().training_step(batch, batch_idx)
        tensors = [torch.ones(3) for _ in range(3)]
        self.returned += [weakref.ref(tensor) for tensor in tensors]
        out["performance_stats"]["last"], out["memory_info"]["states"], out["hidden"] = tensors
        out["memory_stats"] = {"total_evictions": batch_idx, "of": {"last": tensors[0]}}
        return out

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.alive.append(sum(ref() is not None for ref in self.returned))


def test_tensors_that_a_step_returns_are_not_kept_alive() -> None:
    module, callback = Returns(), CMRMonitorCallback(monitoring=EACH)
    fit(module, callback, 6)
    assert callback.snapshot.value("states_captured") == 180
    assert len(module.returned) == 18
    assert not any(ref() is not None for ref in module.returned), "nor by the end"
    assert max(module.alive) <= 3, "the Trainer itself may hold the last step's"


@pytest.mark.parametrize("compiled", [False, True])
def test_what_compiled_code_does_is_said_not_to_be_known(compiled: bool) -> None:
    model = Two()
    if compiled:
        model.compile(backend="eager")
    monitor = CMRPerformanceMonitor(EACH, model=model)
    said = "not known: what the memory does inside compiled code; a CMRProbe can tell"
    assert (said in monitor.describe()) is compiled
    monitor.detach()
