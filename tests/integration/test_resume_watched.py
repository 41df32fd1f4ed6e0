"""Resuming a run whose memory nobody instrumented: the books go on where they were left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor
from tests.memory_models.buffers import CountingBuffer, Entry, ListBuffer
from tests.memory_models.small import COUNTED, LAYERS, SmallModule, SmallNet, loader
from tests.models import trainer

STRICT = {"on_monitor_error": "raise"}
EACH = {"log_every_n_steps": 1, "on_monitor_error": "raise"}
CAME = ("states_stored", "states_loaded")
WENT = ("eviction_count", "states_overwritten", "states_merged", "states_cleared")
# what a retriever remembers is not in the checkpoint, and so its cache begins empty
COMPARED = tuple(name for name in COUNTED if name != "cache_hits")
TABLE = list(loader(12))


class Module(SmallModule):
    """Trains on the batch of its step; what its buffer holds is in its checkpoints.

    Args:
        net: the model.
        restore: what is done with that: nothing, ``assign`` the lists, ``load`` by the buffer's
            method, or put in ``another`` buffer.
    """

    def __init__(self, net: SmallNet, restore: str) -> None:
        super().__init__(net)
        self.restore = restore

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(TABLE[self.trainer.global_step], batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        buffer = self.core.memory_buffer
        checkpoint["entries"] = [
            (layer, entry.key, entry.age, entry.hidden_state)
            for layer, held in buffer.layer_buffers.items()
            for entry in held
        ]
        checkpoint["stats"] = dict(getattr(buffer, "stats", {}))
        checkpoint["age"] = buffer._age

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.restore:
            return
        buffer: Any = self.core.memory_buffer
        if self.restore == "another":
            buffer = type(buffer)(5, 8, LAYERS)
            self.core.memory_buffer = self.core.retriever.buffer = buffer
        saved = checkpoint["entries"]
        entries = [Entry(state, layer, key, age) for layer, key, age, state in saved]
        if self.restore == "load":
            buffer.load_entries(entries)
        else:
            for entry in entries:
                buffer.layer_buffers[entry.layer_idx].append(entry)
        for entry, (_, _, age, _) in zip(entries, saved, strict=True):
            entry.age = age
        buffer._age = checkpoint["age"]
        if checkpoint["stats"]:
            buffer.stats = dict(checkpoint["stats"])


class SaveAt(pl.Callback):
    """Saves a checkpoint after so many steps; comes before the monitor or after it."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(root: Path, module: Module, probes: Any, *more: Any, path: Any = None) -> Any:
    """Train for 12 steps, in windows of 5."""
    torch.manual_seed(0)
    callback = CMRMonitorCallback(monitoring=STRICT, probes=probes)
    trainer(root, [callback, *more], logger=False).fit(module, loader(12), ckpt_path=path)
    return callback


def number(value: float) -> float | None:
    return None if value != value else value


def totals(callback: Any, names: Any = COMPARED) -> dict[str, Any]:
    """Run totals of the whole and by layer."""
    snapshot = callback.snapshot
    return {
        name: [number(snapshot.value(name, layer=layer)) for layer in (None, *LAYERS)]
        for name in (*names, "total_entries")
    }


def check_law(callback: Any, layers: Any = (None, *LAYERS)) -> None:
    """What came less what went over the whole run is what is held."""
    for layer in layers:
        came, went = (
            sum(number(callback.snapshot.value(name, layer=layer)) or 0 for name in names)
            for names in (CAME, WENT)
        )
        assert came - went == callback.snapshot.value("total_entries", layer=layer), layer


@pytest.mark.parametrize(
    ("buffer", "probes"), [(ListBuffer, None), (CountingBuffer, {"wrap": False})]
)
@pytest.mark.parametrize(
    ("restore", "step"), [("assign", 3), ("another", 5), ("load", 7), ("assign", 10)]
)
def test_a_restored_buffer_is_nobodys_doing(
    tmp_path: Path, buffer: Any, probes: Any, restore: str, step: int
) -> None:
    def new() -> Module:
        return Module(SmallNet(buffer(5, 8, LAYERS)), restore)

    saver = SaveAt(tmp_path / "at.ckpt", step)
    whole = fit(tmp_path, new(), probes, saver)
    resumed = fit(tmp_path, new(), probes, path=saver.path)
    assert totals(resumed) == totals(whole)
    assert totals(whole)["total_entries"][0] == 8
    wrapped = probes is None  # else the buffer counts for all layers together
    assert (totals(whole)["states_stored"][1] is not None) is wrapped
    for callback in (whole, resumed):
        check_law(callback, (None, *LAYERS) if wrapped else (None,))


@pytest.mark.parametrize(
    ("buffer", "probes"), [(ListBuffer, None), (CountingBuffer, {"wrap": False})]
)
@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_buffer_that_begins_empty_was_cleared(
    tmp_path: Path, buffer: Any, probes: Any, step: int
) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", step)
    fit(tmp_path, Module(SmallNet(buffer(5, 8, LAYERS)), ""), probes, saver)
    held = torch.load(saver.path)["entries"]
    resumed = fit(tmp_path, Module(SmallNet(buffer(5, 8, LAYERS)), ""), probes, path=saver.path)
    cleared = resumed.snapshot.value("states_cleared")
    # by its own counters it does not say that it replaced entries in place: those were cleared, too
    assert cleared == len(held) > 0 or (probes and cleared > len(held) > 0)
    assert not number(resumed.snapshot.value("states_loaded"))
    check_law(resumed, (None, *LAYERS) if probes is None else (None,))
    if probes is None:
        accounts = resumed.monitor.run_diagnostics()["memory_analysis"]["conservation"]
        assert [account["gap"] for account in accounts] == [0, 0]


def test_a_checkpoint_made_after_the_fit_knows_what_was_held(tmp_path: Path) -> None:
    path = tmp_path / "end.ckpt"
    found = []
    for epochs, ckpt_path in ((2, None), (1, None), (2, path)):
        found.append(CMRMonitorCallback(monitoring=STRICT))
        fitter = trainer(tmp_path, [found[-1]], logger=False, max_epochs=epochs)
        fitter.fit(Module(SmallNet(), "assign"), loader(6), ckpt_path=ckpt_path)
        fitter.save_checkpoint(path)
    whole, _, resumed = found
    assert totals(resumed) == totals(whole)
    check_law(resumed)


class Model(nn.Module):
    """Holds a buffer."""

    def __init__(self, layers: Any = (2, 4), entries: int = 0) -> None:
        super().__init__()
        self.memory = ListBuffer(5, 20, layers)
        self.fill(*([layer for layer in layers for _ in range(entries)]))

    def fill(self, *layers: Any) -> None:
        for layer in layers:
            self.memory.store_state(torch.ones(2), layer, key=self.memory.next_age())


def left(*layers: Any, entries: int = 0) -> dict[str, Any]:
    """The state of a plain loop in which some entries were stored."""
    model = Model(entries=entries)
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        model.fill(*layers)
    return monitor.state_dict()


def moves(monitor: Any, layer: Any) -> list[float | None]:
    names = ("states_stored", "states_loaded", "states_cleared", "total_entries")
    return [number(monitor.snapshot.value(name, layer=layer)) for name in names]


def gone_on(state: Any, model: Model, *, late: bool = False) -> CMRPerformanceMonitor:
    """A monitor that goes on for one step, in which a state is stored in layer 2."""
    monitor = CMRPerformanceMonitor(EACH, model=None if late else model)
    monitor.load_state_dict(state)
    if late:
        monitor.attach(model)
    with monitor.track_performance():
        model.fill(2)
    monitor.detach()
    return monitor


@pytest.mark.parametrize("late", [False, True])
def test_entries_at_the_start_and_what_is_more_or_less(late: bool) -> None:
    state = left(2, 2, 4, entries=1)  # 3 and 2 are held
    model = Model(entries=2)  # layer 2 lacks one
    model.fill(4)  # layer 4 has one more
    monitor = gone_on(state, model, late=late)
    assert moves(monitor, 2) == [3, 0, 1, 3]
    assert moves(monitor, 4) == [1, 1, 0, 3]


def test_a_layer_that_is_gone_was_cleared_and_a_new_one_loaded() -> None:
    monitor = gone_on(left(2, 4, 4), Model((2, "b"), 1))
    assert moves(monitor, 2) == [2, 0, 0, 2]
    assert moves(monitor, 4)[:3] == [2, 0, 2]
    assert moves(monitor, "b")[1:] == [1, 0, 1]


def test_without_entries_then_or_without_memory_now() -> None:
    assert moves(gone_on(left(), Model()), 2) == [1, 0, 0, 1]
    monitor = CMRPerformanceMonitor(EACH, model=nn.Linear(1, 1))
    monitor.load_state_dict(left(2, 4, 4))
    with monitor.track_performance():
        pass
    again = monitor.state_dict()
    assert dict(again["entries"]) == {2: 1, 4: 2}, "for whoever knows where they are"
    monitor.detach()


def test_an_older_checkpoint_begins_with_what_is_held() -> None:
    state = left(2, 4, 4)
    del state["entries"]
    assert moves(gone_on(state, Model(entries=2)), 2) == [2, 0, 0, 3]


def test_what_was_known_by_layer_is_not_compared_with_a_sum() -> None:
    model = Model()
    model.memory = CountingBuffer(5, 20, (2, 4))
    monitor = CMRPerformanceMonitor(EACH, model=model, probes={"wrap": False})
    monitor.load_state_dict(left(2, 4, 4))
    with monitor.track_performance():
        model.fill(2)
    assert moves(monitor, None)[:3] == [4, 0, 0]
    monitor.detach()


def test_a_run_goes_on_with_the_same_monitor() -> None:
    model = Model()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        model.fill(2, 2, 4)
    state = monitor.state_dict()
    with monitor.track_performance():
        model.fill(2, 4)
        model.memory.clear_layer(4)
    monitor.load_state_dict(state)
    with monitor.track_performance():
        model.fill(4)
    # 2, 2 and 4 were held; then 2 was stored and 4 was emptied, of which this run knows nothing
    assert moves(monitor, 2) == [2, 1, 0, 3]
    assert moves(monitor, 4) == [2, 0, 1, 1]
    monitor.detach()
