"""What a run leaves in the event file and in callback_metrics, against the tap's count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from cmr_monitor_callbacks import CMRMonitorCallback
from cmr_monitor_callbacks.config import load_preset
from tests.integration.event_files import raw_events, series, tags_of
from tests.integration.tap import COUNTED, QUANTUM, Tap
from tests.models import LAYERS, MemoryModule, loader, rows, trainer

STRICT = {"on_monitor_error": "raise"}
COMPONENT = {
    "states_captured": "capture",
    "states_stored": "capture",
    "eviction_count": "buffer",
    "total_entries": "buffer",
    "total_reconstructions": "reconstruction",
}
LAYER_TAGS = {
    *(f"cmr_{component}/{name}" for name, component in COMPONENT.items()),
    "cmr_capture/storage_efficiency",
    "cmr_buffer/utilization_rate",
    "cmr_reconstruction/avg_reconstruction_time",
}


class AtSteps(pl.Callback):
    """Keeps what the tap has counted after every optimizer step, by number of the step."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self.after: dict[int, dict[str, dict[int, float]]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        # the first micro-batch of the next step ends with the same number
        self.after.setdefault(trainer.global_step - 1, self.tap.copy())


def since(now: dict[int, float], then: dict[int, float] | None) -> dict[int, float]:
    return {layer: count - (then or {}).get(layer, 0.0) for layer, count in now.items()}


@pytest.fixture
def run(tmp_path: Path) -> dict[int, dict[str, dict[int, float]]]:
    """23 steps in windows of 5: what the tap counted at the end of each, the partial one too."""
    module = MemoryModule()
    steps = AtSteps(Tap(module))
    trainer(tmp_path, [CMRMonitorCallback(monitoring=STRICT), steps]).fit(module, loader(23))
    return {step: steps.after[step] for step in (4, 9, 14, 19, 22)}


def test_counters_and_gauges_are_the_taps(
    tmp_path: Path, run: dict[int, dict[str, dict[int, float]]]
) -> None:
    logged = series(tmp_path)
    for name, component in COMPONENT.items():
        for layer in LAYERS:
            tag = f"cmr_{component}/{name}/layer_{layer:02d}"
            assert logged[tag] == {step: n[name][layer] for step, n in run.items()}
        whole = {step: sum(n[name].values()) for step, n in run.items()}
        assert logged[f"cmr_{component}/{name}"] == whole
    last = run[22]
    assert all(last["eviction_count"].values()), "the model must be full for this to say something"
    assert sum(last["cache_hits"].values()) > 0


def test_ratios_and_averages_are_those_of_the_taps_window(
    tmp_path: Path, run: dict[int, dict[str, dict[int, float]]]
) -> None:
    logged = series(tmp_path)
    expected: dict[str, dict[int, float]] = {}
    before: dict[str, dict[int, float]] = {}
    for step, now in run.items():
        window = {name: since(now[name], before.get(name)) for name in now}
        before = now
        for layer in LAYERS:
            captured, stored = window["states_captured"][layer], window["states_stored"][layer]
            calls, quanta = (
                window[f"reconstruction_{name}"][layer] for name in ("calls", "quanta")
            )
            values = {
                "cmr_capture/storage_efficiency": stored / captured if captured else None,
                "cmr_buffer/utilization_rate": now["total_entries"][layer] / (layer + 2),
                "cmr_reconstruction/avg_reconstruction_time": quanta * QUANTUM / calls,
            }
            for tag, value in values.items():
                if value is not None:
                    expected.setdefault(f"{tag}/layer_{layer:02d}", {})[step] = value
        ratio = sum(window["states_captured"].values()) / sum(window["states_attempted"].values())
        expected.setdefault("cmr_capture/capture_efficiency", {})[step] = ratio
        hits = sum(window["cache_hits"].values()) / sum(window["total_retrievals"].values())
        expected.setdefault("cmr_retrieval/cache_hit_rate", {})[step] = hits
        evicted = sum(window["eviction_count"].values()) / sum(window["states_stored"].values())
        expected.setdefault("cmr_buffer/eviction_rate", {})[step] = evicted
    for tag, values in expected.items():
        assert logged[tag] == pytest.approx(values, rel=1e-6), tag


def test_a_window_is_one_event_on_lightnings_own_axis(
    tmp_path: Path, run: dict[int, dict[str, dict[int, float]]]
) -> None:
    events = raw_events(tmp_path)
    ours = [e for e in events if any(tag.startswith("cmr_") for tag in tags_of(e))]
    assert [e.step for e in ours] == list(run)
    logged = series(tmp_path)
    # what the model logs has no partial window
    assert list(logged["train/loss"]) == [4, 9, 14, 19]
    assert all(list(values) == list(run) for tag, values in logged.items() if "/layer_" in tag)
    # the layout of the Custom Scalars page names tags that exist
    [layout] = [e for e in events if any("custom_scalars" in tag for tag in tags_of(e))]
    text = str(layout.summary.value[0].tensor)
    assert all(f"{tag}/layer_{layer:02d}" in text for tag in LAYER_TAGS for layer in LAYERS)


def test_the_verdict_is_in_the_event_file_and_layers_are_in_no_callback_metric(
    tmp_path: Path,
) -> None:
    rule = {
        "metric": "states_captured",
        "over": "run",
        "thresholds": {"error": 60, "critical": 120},
    }
    callback = CMRMonitorCallback(monitoring=STRICT, alerts={"rules": {"many": rule}})
    module = MemoryModule()
    steps = AtSteps(Tap(module))
    fitter = trainer(tmp_path, [callback, steps])
    fitter.fit(module, loader(23))
    verdicts = {}
    for step in (4, 9, 14, 19, 22):
        captured = sum(steps.after[step]["states_captured"].values())
        verdicts[step] = 1.0 + (captured > 60) + (captured > 120)
    assert set(verdicts.values()) == {1.0, 2.0, 3.0}, "healthy, warning and critical"
    assert series(tmp_path)["cmr_health/status"] == verdicts
    ours = [name for name in fitter.callback_metrics if name.startswith("cmr_")]
    assert {"cmr_health/status", "cmr_capture/states_stored"} <= set(ours)
    assert [name for name in ours if "/layer_" in name or "/rank_" in name] == []


def test_twelve_layers_make_at_most_150_tags(tmp_path: Path, strict: CMRMonitorCallback) -> None:
    layers = tuple(range(1, 13))
    module = MemoryModule(layers)
    trainer(tmp_path, [strict]).fit(module, loader(10))
    tags = [tag for tag in series(tmp_path) if tag.startswith("cmr_")]
    by_layer = {tag.rpartition("/")[0] for tag in tags if "/layer_" in tag}
    assert by_layer == LAYER_TAGS
    assert len([tag for tag in tags if "/layer_" in tag]) == 8 * 12
    assert 8 * 12 + 20 < len(tags) <= 150


def test_the_snapshot_holds_every_number_that_the_tap_counts(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    module = MemoryModule()
    tap = Tap(module)
    trainer(tmp_path, [strict], max_epochs=2).fit(module, loader(11, shuffle=True))
    assert strict.snapshot.step == 21
    for name in COUNTED:
        counted = tap.of(name)
        assert strict.snapshot.layers(name) == counted, name
        assert strict.snapshot.value(name) == sum(counted.values()), name
    assert strict.snapshot.layers("total_entries") == tap.entries()
    held = strict.snapshot.value("memory_size_mb") * 2**20
    assert held == sum(tap.entries().values()) * 8 * 4
    seconds = {layer: n * QUANTUM for layer, n in tap.of("capture_quanta").items()}
    mean = sum(seconds.values()) / sum(tap.of("capture_calls").values())
    assert strict.snapshot.value("avg_capture_time") == pytest.approx(mean, rel=1e-12)


class Stream(IterableDataset[Any]):
    """Rows whose number nobody knows."""

    def __iter__(self) -> Any:
        data = rows(10)
        return (data[i] for i in range(30))


@pytest.mark.parametrize("stream", [False, True], ids=["with a length", "without"])
def test_steps_of_accumulated_batches_are_lightnings(
    tmp_path: Path, strict: CMRMonitorCallback, stream: bool
) -> None:
    # 10 batches in steps of 4, 4 and 2: an epoch's last step is cut short
    batches = DataLoader(Stream(), 3) if stream else loader(10)
    module = MemoryModule()
    steps = AtSteps(Tap(module))
    fitter = trainer(
        tmp_path,
        [strict, steps],
        accumulate_grad_batches=4,
        max_epochs=4,
        log_every_n_steps=2,
    )
    fitter.fit(module, batches)
    logged = series(tmp_path)
    assert list(logged["train/loss"]) == [1, 3, 5, 7, 9, 11]
    stored = logged["cmr_capture/states_stored/layer_04"]
    assert stored == {step: steps.after[step]["states_stored"][4] for step in logged["train/loss"]}
    assert strict.snapshot.value("batch_size") == 3 * 40 / 12


def test_a_skipped_epoch_leaves_no_half_batch_behind(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    class Skips(MemoryModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None  # Lightning skips the rest of the epoch

    module = Skips()
    tap = Tap(module)
    trainer(tmp_path, [strict], max_epochs=3).fit(module, loader(6))
    assert strict.snapshot.layers("states_captured") == tap.of("states_captured")
    assert strict.snapshot.value("batch_size") == 3
    passes = strict.snapshot.value("total_forward_time") / strict.snapshot.value("avg_latency")
    assert passes == pytest.approx(9)


@pytest.mark.parametrize("monitor_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("epoch", [3, 12], ids=["shorter than a window", "longer"])
def test_early_stopping_and_checkpoints_watch_the_monitor(
    tmp_path: Path, epoch: int, monitor_first: bool
) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    stop = pl.callbacks.EarlyStopping("cmr_health/score", mode="max", patience=2, strict=True)
    best = pl.callbacks.ModelCheckpoint(
        tmp_path / "best", monitor="cmr_capture/storage_efficiency", mode="max"
    )
    others = [stop, best]
    fitter = trainer(
        tmp_path,
        [callback, *others] if monitor_first else [*others, callback],
        max_epochs=8,
        log_every_n_steps=10,
        val_check_interval=min(epoch, 4),  # validation comes before the first window
        num_sanity_val_steps=2,
        enable_checkpointing=True,
    )
    fitter.fit(MemoryModule(), loader(epoch), loader(2))
    assert stop.stopped_epoch > 0 or fitter.current_epoch < 8
    assert float(stop.best_score) <= 100.0
    assert best.best_model_score is not None
    assert 0 < float(best.best_model_score) < 1


class Scores(pl.Callback):
    """The score as others find it, at every hook that may ask."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float]] = []

    def _look(self, trainer: pl.Trainer, hook: str) -> None:
        score = trainer.callback_metrics.get("cmr_health/score", torch.tensor(math.nan))
        self.found.append((hook, float(score)))

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._look(trainer, "train start")

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self._look(trainer, "validation end")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._look(trainer, "batch end")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._look(trainer, "epoch end")


@pytest.mark.parametrize("validate", [False, True])
def test_the_score_is_there_from_the_start_on(tmp_path: Path, validate: bool) -> None:
    scores = Scores()
    rules = load_preset("default")["alerts"]["rules"]
    refused = {"rules": {"storage_refused": rules["storage_refused"]}}
    callback = CMRMonitorCallback(monitoring=STRICT, alerts=refused)
    fitter = trainer(tmp_path, [callback, scores], max_epochs=3, num_sanity_val_steps=1)
    # one state in six is accepted at layer 6: the rule has something to say
    fitter.fit(MemoryModule(), loader(12), loader(2) if validate else None)
    assert scores.found[0] == ("train start", 100.0)
    hooks = {hook for hook, _ in scores.found}
    assert hooks >= {"batch end", "epoch end"} | ({"validation end"} if validate else set())
    assert all(math.isfinite(score) for _, score in scores.found)
    assert scores.found[-1][1] == callback.health.score < 100


def test_metrics_for_others_are_new_tensors_each_time(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    class Keeps(pl.Callback):
        def __init__(self) -> None:
            self.kept: list[torch.Tensor] = []

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step % 5 == 0:
                self.kept.append(trainer.callback_metrics["cmr_capture/states_captured"])

    keeps = Keeps()
    module = MemoryModule()
    steps = AtSteps(Tap(module))
    trainer(tmp_path, [strict, keeps, steps]).fit(module, loader(15))
    counted = [sum(steps.after[step]["states_captured"].values()) for step in (4, 9, 14)]
    assert [float(value) for value in keeps.kept] == counted
