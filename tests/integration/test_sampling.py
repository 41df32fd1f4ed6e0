"""Calls timed in every N-th step: counts are exact, times right, and other steps read no clock."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.utils import counters

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.probes.watches import passage, reconstruction
from cmr_monitor_callbacks.reports.explained_numbers import explain_number
from tests.integration.test_cmr_like import COUNTED, MEANS, QUANTUM, check_held, run
from tests.integration.test_compatible import check as same_counts
from tests.integration.test_compatible import fit
from tests.memory_models.cmr_tap import CMRTap
from tests.memory_models.small import SmallModule, SmallNet, Tap, plain_steps
from tests.memory_models.small import loader as batches
from tests.memory_models.tally import same, same_mean
from tests.models import MemoryModule, loader, trainer

TIMES = {
    "avg_capture_time": ("capture_quanta", "capture_calls"),
    "avg_retrieval_time": ("retrieval_quanta", "total_retrievals"),
    "avg_reconstruction_time": ("reconstruction_quanta", "reconstruction_calls"),
}
STRICT: dict[str, Any] = {"on_monitor_error": "raise"}
QUIET: dict[str, Any] = {"enable_alerts": False}


def sampled(after: dict[int, Any], total: str, per: str, n: int) -> dict[Any, float]:
    """Mean by layer over every n-th step, by a tap's counts after each step; None: the whole."""
    sums: dict[Any, float] = {}
    calls: dict[Any, float] = {}
    for step in range(n - 1, max(after) + 1, n):
        for into, name in ((sums, total), (calls, per)):
            before = after[step - 1].get(name, {}) if step else {}
            for layer, count in after[step].get(name, {}).items():
                into[layer] = into.get(layer, 0.0) + count - before.get(layer, 0.0)
    means = {layer: sums[layer] * QUANTUM / c for layer, c in calls.items() if layer and c}
    return means | {None: sum(sums.values()) * QUANTUM / sum(calls.values())}


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> CMRTap:
    return CMRTap(monkeypatch)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_counts_are_exact_and_times_those_of_every_nth_step(
    tmp_path: Path, tap: CMRTap, n: int
) -> None:
    """Accumulated batches of several passes, validation in between, a partial window at the end."""
    config = {**STRICT, "log_every_n_steps": 7, "sample_every": n}
    callback = CMRMonitorCallback(monitor=CMRPerformanceMonitor(config, clock=tap.clock))
    _, steps = run(tmp_path, tap, callback, eviction_strategy="lru")
    snapshot = callback.snapshot
    for stage, shown in {"train": snapshot, "val": callback.snapshots["val"]}.items():
        for name in COUNTED:
            same(shown, tap, name, stage)
        for name, (total, per, unit) in MEANS.items():
            if name not in TIMES:
                same_mean(shown, tap, name, total, per, unit=unit, stage=stage)
    check_held(snapshot, tap)
    for name, (total, per) in TIMES.items():
        expected = sampled(steps.after, total, per, n)
        shown_means = {**snapshot.layers(name), None: snapshot.value(name)}
        assert shown_means == pytest.approx(expected, rel=1e-9), name
        assert snapshot.source(name).endswith(", every 3rd step") is (n == 3)
        assert "every" not in snapshot.source(per)
    assert snapshot.value("sample_every") == n
    timed = snapshot.statistics.samples[ROW["capture_seconds"]].sum()
    assert timed == sum(
        sum(steps.after[s]["capture_calls"].values())
        - (sum(steps.after[s - 1]["capture_calls"].values()) if s else 0)
        for s in range(n - 1, 40, n)
    )
    assert snapshot.statistics.samples[ROW["step_seconds"], 0] == 40, "of every step"


def test_validation_looks_at_its_first_batch_and_times_every_nth_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pl.seed_everything(3, verbose=False)
    found, clock = looks(monkeypatch), Counting()
    seen: list[tuple[int, bool, bool]] = []
    config = {**STRICT, "sample_every": 3}
    callback = CMRMonitorCallback(monitor=CMRPerformanceMonitor(config, clock=clock))

    class Module(SmallModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            before, looked = clock.readings, found["similarity"]
            super().validation_step(batch, batch_idx)
            seen.append((batch_idx, clock.readings > before, found["similarity"] > looked))

    # a window ends just before each validation
    fitter = trainer(tmp_path, [callback], logger=False, val_check_interval=5)
    fitter.fit(Module(SmallNet()), batches(10), batches(8, seed=7))
    assert seen == [(i, i % 3 == 0, i == 0) for i in (*range(8), *range(8))]


class Counting(ManualClock):
    """Counts its readings, each a little later than the last."""

    readings = 0

    def monotonic(self) -> float:
        self.readings += 1
        self.now += 2.0**-10
        return self.now


def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the closer looks at tensors."""
    found = {"similarity": 0, "output": 0}

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any) -> Any:
            found[name] += 1
            return original(*args)

        return look

    similarity = reconstruction._similarity
    monkeypatch.setattr(reconstruction, "_similarity", counted("similarity", similarity))
    monkeypatch.setattr(passage, "_logits", counted("output", passage._logits))
    return found


@pytest.mark.parametrize("n", [1, 3, 4, 10])
def test_in_other_steps_no_watched_call_reads_the_clock(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    torch.manual_seed(3)
    net, clock, found = SmallNet(), Counting(), looks(monkeypatch)
    tap = Tap(monkeypatch, net)
    config = {**STRICT, "log_every_n_steps": 6, "sample_every": n}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=net, clock=clock)
    read, looked = [], []
    for number, step in enumerate(plain_steps(net, 24)):
        monitor.refresh()
        before, looks_before = clock.readings, dict(found)
        step()
        read.append(clock.readings - before)
        looked.append({name: found[name] - looks_before[name] for name in found})
        monitor.step(number)
    timed = [step for step in range(24) if (step + 1) % n == 0]
    assert [step for step, readings in enumerate(read) if readings] == timed
    # of each window the last step that is timed, if it has one
    last = sorted({step // 6: step for step in timed}.values())
    assert [step for step, one in enumerate(looked) if one["similarity"]] == last
    assert [step for step, one in enumerate(looked) if one["output"]] == last
    same_counts(monitor.snapshot, tap)
    monitor.detach()


@pytest.mark.parametrize("n", [1, 3, 10])
def test_in_other_steps_the_timer_of_a_probe_is_idle(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    clock = ManualClock()
    readings = 0

    def reading() -> float:
        nonlocal readings
        readings += 1
        return clock.now

    probe, own = CMRProbe(4), CMRProbe(7)
    model = nn.Module()
    model.probes = [probe, own]
    config = {**STRICT, "log_every_n_steps": 10, "sample_every": n}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model)
    monkeypatch.setattr("time.perf_counter", reading)
    durations = []
    for step in range(40):
        monitor.refresh()
        before = readings
        took = (1 + step % 7) * QUANTUM
        with probe.timer() as timer:
            clock.advance(took)
        probe.capture(8, 6, 4, timer.seconds)
        probe.reconstruction(3, 0.5, timer.seconds)
        probe.retrieval(4, 8, 2, timer.seconds)
        own.capture(8, 6, 4, 0.25)
        assert readings - before == (2 if (step + 1) % n == 0 else 0)
        if (step + 1) % n == 0:
            durations.append(took)
        monitor.step(step)
    monkeypatch.undo()
    snapshot = monitor.snapshot
    mean = sum(durations) / len(durations)
    assert snapshot.value("avg_capture_time", layer=4) == mean
    assert snapshot.value("avg_reconstruction_time") == mean
    assert snapshot.value("avg_retrieval_time") == mean / 4, "of four operations each"
    assert snapshot.value("avg_capture_time", layer=7) == 0.25
    assert snapshot.statistics.samples[ROW["capture_seconds"], 2] == 40, "always taken"
    for layer in (4, 7):
        assert snapshot.value("capture_calls", layer=layer) == 40
        assert snapshot.value("states_stored", layer=layer) == 160
    assert snapshot.value("total_retrievals") == 160
    assert snapshot.value("reconstruction_calls") == snapshot.value("total_reconstructions") == 40
    monitor.detach()
    with probe.timer() as timer:
        pass
    assert timer.seconds is None


def test_a_profile_shows_a_section_that_is_not_timed() -> None:
    opened: list[str] = []

    def section(component: str) -> Any:
        opened.append(component)
        return nullcontext()

    probe = CMRProbe(1)
    model = nn.Module()
    model.probe = probe
    monitor = CMRPerformanceMonitor({**STRICT, "sample_every": 2}, model=model)
    probe.show_sections(section)
    timed = []
    for step in range(4):
        monitor.refresh()
        with probe.timer("capture") as timer:
            pass
        timed.append(timer.seconds is not None)
        monitor.step(step)
    assert timed == [False, True, False, True]
    assert opened == ["capture"] * 4
    monitor.detach()


def test_a_probe_that_comes_in_another_step_is_idle_too() -> None:
    model = nn.Module()
    model.probes = [CMRProbe(1)]
    monitor = CMRPerformanceMonitor({**STRICT, "sample_every": 5}, model=model)
    monitor.refresh()  # the first step is not timed
    model.probes.append(CMRProbe(2))
    monitor.attach(model)
    for probe in model.probes:
        with probe.timer() as timer:
            pass
        assert timer.seconds is None
    monitor.step()
    monitor.detach()


def test_errors_are_counted_in_every_step() -> None:
    net = SmallNet()
    monitor = CMRPerformanceMonitor({**STRICT, "sample_every": 10}, alert_config=QUIET, model=net)
    for step in range(4):
        monitor.refresh()
        with pytest.raises(TypeError):
            net.memory_buffer.store_state(None, 2, relevance="much")
        with pytest.raises((TypeError, AttributeError)):
            net.reconstructor(None, None, 2)
        monitor.step(step)
    monitor.close_window()
    assert monitor.snapshot.value("error_count") == 8
    monitor.detach()


@pytest.mark.parametrize("recompute", ["", "reentrant", "direct"])
def test_recomputes_and_passes_without_grad_are_left_out_in_every_step(recompute: str) -> None:
    def make() -> SmallModule:
        return SmallModule(SmallNet(recompute=recompute))

    callback = CMRMonitorCallback(monitoring={**STRICT, "sample_every": 5})
    _, tap, _ = fit(make, [callback], tap=True)
    assert tap is not None
    same_counts(callback.snapshot, tap)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def test_compiled_code_is_not_compiled_anew(tmp_path: Path, fresh_compiler: None) -> None:
    graphs: list[int] = []

    class Graphs(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            graphs.append(counters["stats"]["unique_graphs"])

    def trained(n: int, callbacks: list[Any]) -> dict[str, dict[Any, float]]:
        torch._dynamo.reset()
        counters.clear()
        graphs.clear()
        module = MemoryModule((2, 4), tensors=True, backend="aot_eager")
        callback = CMRMonitorCallback(monitoring={**STRICT, "sample_every": n})
        trainer(tmp_path, [callback, *callbacks], logger=False).fit(module, loader(12))
        names = ("states_captured", "states_stored", "eviction_count", "total_retrievals")
        return {name: callback.snapshot.layers(name) for name in names}

    expected = trained(1, [])
    assert trained(3, [Graphs()]) == expected
    assert not counters["graph_break"]
    assert graphs[0] > 0 and graphs[1:] == graphs[1:2] * 11


@pytest.mark.parametrize("what", ["reconstructor", "blocks"])
def test_watched_models_with_compiled_parts(fresh_compiler: None, what: str) -> None:
    graphs: list[int] = []

    class Graphs(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            graphs.append(counters["stats"]["unique_graphs"])

    def make() -> SmallModule:
        module = SmallModule()
        parts = [module.core.reconstructor] if what == "reconstructor" else module.core.blocks
        for part in parts:
            part.compile(backend="eager")
        return module

    shown = {}
    for n in (1, 3):
        torch._dynamo.reset()
        counters.clear()
        graphs.clear()
        callback = CMRMonitorCallback(monitoring={**STRICT, "sample_every": n})
        left, tap, _ = fit(make, [callback, Graphs()], tap=True)
        assert tap is not None
        assert callback.snapshot.layers("states_stored") == tap.of("states_stored")
        shown[n] = (left["losses"], left["weights"], list(graphs))
    assert shown[1] == shown[3], "neither training nor what is compiled depends on it"


def test_training_is_the_same_to_the_bit() -> None:
    every_third = {**STRICT, "sample_every": 3}
    watched = [CMRMonitorCallback(monitoring=every_third)]
    left = [fit(SmallModule, callbacks)[0] for callbacks in ([], watched)]
    assert left[0] == left[1]


def test_a_sampled_series_says_so_everywhere(tmp_path: Path) -> None:
    config = {**STRICT, "log_every_n_steps": 2, "sample_every": 10}
    net = SmallNet()
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=net)
    for step in plain_steps(net, 4):
        with monitor.track_performance():
            step()
    snapshot = monitor.snapshot
    wrapped = snapshot.source("retrieval_time_p95")
    assert wrapped.startswith("wrapped:") and wrapped.endswith(", every 10th step")
    assert snapshot.source("avg_retrieval_time") == wrapped
    assert snapshot.source("total_retrievals") == wrapped.removesuffix(", every 10th step")
    assert snapshot.source("output_entropy").endswith(", every 10th step")
    assert snapshot.source("step_time") == "timer:steps"
    assert f"  avg_retrieval_time: {wrapped}" in monitor.describe().splitlines()
    with monitor.history as history:
        assert history.sessions()[-1]["sources"]["avg_retrieval_time"] == wrapped
        assert explain_number(history, "avg_retrieval_time").facts["source"] == wrapped
        assert explain_number(history, "retrieval_time_p99").facts["source"] == wrapped
    assert math.isnan(snapshot.value("avg_retrieval_time")), "no step was timed yet"
    monitor.detach()


# -- how it follows the overhead -----------------------------------------------------------------


def cost(monitor: CMRPerformanceMonitor, windows: int, share: float, steps: int = 2) -> list[int]:
    """Windows in which the monitor takes a share of the time; what N is after each."""
    found = []
    for _ in range(windows):
        for _ in range(steps):
            monitor.refresh()
            monitor.record_step(1.0, 0.0, 0.5, 0.25, 0.125, share, 1)
            monitor.step()
        found.append(monitor.overhead()["sample_every"])
    return found


def test_over_the_budget_it_samples_less_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = {**STRICT, "log_every_n_steps": 2, "adaptive": True}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, clock=ManualClock())
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks.windows"):
        assert cost(monitor, 3, 0.05) == [2, 4, 8]
        assert cost(monitor, 3, 0.005) == [8, 8, 8]
        assert cost(monitor, 6, 0.001) == [8, 8, 8, 8, 4, 4]
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(" from")[0] for text in said] == [
        f"every {n} step is timed" for n in ("2nd", "4th", "8th", "4th")
    ]
    assert "the monitor took 5.0% of the time (budget: 1.0%)" in said[0]
    with monitor.history as history:
        marks = history.marks()
        assert [mark["label"] for mark in marks] == said
        assert [mark["step"] for mark in marks] == [1, 3, 5, 21]
    assert monitor.snapshot.value("sample_every") == monitor.health.sample_every == 4
    assert "every 4th step" in monitor._repr_html_()
    overhead = monitor.get_live_stats()["overhead"]
    assert overhead["fraction"] == pytest.approx(0.001)
    assert (overhead["budget"], overhead["adaptive"], overhead["sample_every"]) == (0.01, True, 4)
    assert overhead["seconds"]["hooks"] == pytest.approx(6 * 0.05 + 6 * 0.005 + 12 * 0.001)
    parts = {"hooks", "window_end", "rules", "history", "resources"}
    assert set(overhead["seconds"]) == parts
    monitor.detach()


def test_the_budget_is_a_setting_and_the_window_in_hand_keeps_its_steps() -> None:
    config = {**STRICT, "log_every_n_steps": 4, "adaptive": True, "overhead_budget": 0.1}
    probe = CMRProbe(1)
    model = nn.Module()
    model.probe = probe
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model, clock=ManualClock())
    assert cost(monitor, 2, 0.09, 4) == [1, 1]
    timed = []
    for step in range(8, 20):
        monitor.refresh()
        with probe.timer() as timer:
            pass
        if timer.seconds is not None:
            timed.append(step)
        monitor.record_step(1.0, 0.0, 0.5, 0.25, 0.125, 0.11, 1)
        monitor.step()
    assert timed == [8, 9, 10, 11, 13, 15, 19]
    monitor.detach()


def test_windows_that_something_else_fills_are_no_measure() -> None:
    config = {**STRICT, "log_every_n_steps": 2, "adaptive": True}
    monitor = CMRPerformanceMonitor(config, clock=ManualClock())
    monitor.mute("checkpoint")
    assert cost(monitor, 1, 0.5) == [1]
    assert cost(monitor, 1, 0.5) == [2]
    monitor.detach()


def test_a_checkpoint_keeps_what_was_chosen() -> None:
    config = {**STRICT, "log_every_n_steps": 2, "adaptive": True}
    first = CMRPerformanceMonitor(config, alert_config=QUIET, clock=ManualClock())
    assert cost(first, 2, 0.05) == [2, 4]
    again = CMRPerformanceMonitor(config, alert_config=QUIET, clock=ManualClock())
    again.load_state_dict(first.state_dict())
    assert again.overhead()["sample_every"] == 4
    old = first.state_dict()
    del old["sample_every"]  # of an earlier version
    again.load_state_dict(old)
    assert again.overhead()["sample_every"] == 1
    first.detach()
    again.detach()
