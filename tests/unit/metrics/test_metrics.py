"""The Metric classes against the reference: any input, any split, any copy."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from cmr_monitor_callbacks.catalogue import METRICS, RECORDS, STATISTICS
from cmr_monitor_callbacks.metrics import LayeredMetric
from tests.feeding import differences, over_ranks, split
from tests.feeding_metrics import (
    CLASSES,
    LAYERS,
    NAMES,
    answers,
    feed,
    reference,
    rows,
    wanted,
)
from tests.reference import Buffer, Capture, Event, random_events

Cls = type[LayeredMetric]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def some_events(seed: int, n: int = 120) -> list[Event]:
    return random_events(np.random.default_rng(seed), n, LAYERS)


def check(metric: LayeredMetric, events: list[Event]) -> None:
    cls = type(metric)
    assert not differences(answers(metric.compute()), reference(cls, events))


@each_class
@pytest.mark.parametrize("seed", range(8))
def test_one_update_for_each_event(cls: Cls, seed: int) -> None:
    n = int(np.random.default_rng(seed).integers(1, 200))
    events = some_events(seed, n)
    check(feed(cls(), events), events)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_every_metric_of_the_table_is_computed_by_one_class() -> None:
    computed = [name for cls in CLASSES for name in cls().compute()]
    by_itself = {s.name for s in STATISTICS if s.component not in RECORDS}
    given = [m.name for m in METRICS if not by_itself & {m.numerator, m.denominator}]
    assert sorted(computed) == sorted(given)


@each_class
def test_without_an_update_everything_is_no_data(cls: Cls) -> None:
    metric = cls(LAYERS)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        computed = metric.compute()
    assert {name for name in computed if "/" not in name} >= set(NAMES[cls])
    assert all(math.isnan(value) for value in computed.values())
    assert all(value.dtype is torch.float64 and value.ndim == 0 for value in computed.values())


def _batched(cls: Cls, events: list[Event], container: str) -> list[dict[str, Any]]:
    """All rows of the same arguments as one call."""
    calls = []
    given = rows(cls, events)
    for names in dict.fromkeys(tuple(row) for row in given):
        alike = [row for row in given if tuple(row) == names]
        call: dict[str, Any] = {}
        for name in names:
            column = [row[name] for row in alike]
            if name != "layer" and container != "list":
                column = [math.nan if v is None else float(v) for v in column]
            call[name] = column
            if name != "layer" and container == "numpy":
                call[name] = np.array(column)
            if name != "layer" and container == "tensor":
                call[name] = torch.tensor(column, dtype=torch.float64)
        calls.append(call)
    return calls


@each_class
@pytest.mark.parametrize("container", ["list", "numpy", "tensor"])
def test_many_events_in_one_update(cls: Cls, container: str) -> None:
    events = some_events(3, 300)
    metric = cls()
    for call in _batched(cls, events, container):
        metric.update(**call)
    check(metric, events)


def test_one_layer_serves_all_values_and_one_value_all_layers() -> None:
    capture, _, buffer, *_ = (cls() for cls in CLASSES)
    capture.update(4, attempted=[10, 20], captured=np.array([5, 10]), stored=3)
    expected: list[Event] = [Capture(4, 10, 5, 3), Capture(4, 20, 10, 3)]
    check(capture, expected)
    buffer.update([4, 11], entries=[1, 2], capacity=torch.tensor(8), stored=[6, 7])
    looks: list[Event] = [Buffer(4, 1, 8), Buffer(11, 2, 8)]
    got = answers(buffer.compute())
    for name in ("total_entries", "capacity", "utilization_rate"):
        assert not differences(got, {k: v for k, v in _all(looks).items() if k[0] == name})


def _all(events: list[Event]) -> dict[Any, float]:
    return {key: value for cls in CLASSES for key, value in reference(cls, events).items()}


def test_several_looks_at_one_layers_buffer_with_what_was_stored() -> None:
    buffer = CLASSES[2]()
    buffer.update(4, entries=[1, 2], evicted=[1, 2], stored=[10, 20])
    assert float(buffer.compute()["eviction_rate"]) == pytest.approx(3 / 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_of_any_type_and_with_gradients(dtype: torch.dtype) -> None:
    _, reconstruction, *_ = CLASSES
    metric = reconstruction([4])
    quality = torch.tensor(0.5, requires_grad=True)
    used = torch.tensor(8, dtype=dtype)
    rated = quality if dtype is torch.int64 else quality.to(dtype)
    metric.update(4, memories_used=used, quality=rated)
    values = metric.compute()
    assert float(values["memories_used/layer_04"]) == 8
    assert float(values["reconstruction_quality"]) == 0.5


@each_class
def test_reset_forgets_numbers_and_keeps_layers(cls: Cls) -> None:
    events = some_events(5)
    metric = feed(cls(), events)
    layers = metric.layers
    metric.reset()
    assert metric.layers == layers
    assert metric.counts.shape[-1] == 1 + len(layers)
    assert not metric.samples.any()
    later = some_events(6)
    check(feed(metric, later), later)


COPIES = {
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    "deepcopy": copy.deepcopy,
    "clone": lambda metric: metric.clone(),
    "to": lambda metric: metric.clone().to("cpu"),
}


@each_class
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_numbers_and_goes_its_own_way(cls: Cls, how: str) -> None:
    events, later = some_events(7), some_events(8)
    metric = feed(cls(), events)
    twin = COPIES[how](metric)
    assert twin.layers == metric.layers
    check(twin, events)
    check(feed(twin, later), events + later)
    check(metric, events)


@each_class
def test_state_dict_when_persistent(cls: Cls) -> None:
    events, later = some_events(9), some_events(10)
    metric = feed(cls(), events)
    assert not metric.state_dict()
    metric.persistent(True)
    saved = metric.state_dict()
    twin = cls(metric.layers)
    twin.persistent(True)
    twin.load_state_dict(saved)
    check(feed(twin, later), events + later)


def test_a_state_dict_knows_its_layers() -> None:
    metric = CLASSES[0]([11, 4])
    metric.update([4, 11], captured=[1, 2])
    metric.persistent(True)
    saved = metric.state_dict()
    for twin in (CLASSES[0](), CLASSES[0]([4, 11])):
        twin.persistent(True)
        twin.load_state_dict(saved)
        values = twin.compute()
        assert float(values["states_captured/layer_04"]) == 1
        assert float(values["states_captured/layer_11"]) == 2


@each_class
@pytest.mark.parametrize("seed", range(3))
def test_merging_steps_is_one_long_stretch(cls: Cls, seed: int) -> None:
    events = some_events(20 + seed, 150)
    parts = split(np.random.default_rng(seed), events, 4)
    metric = cls()
    for part in parts:
        metric.merge_steps(feed(cls(), part))
    check(metric, events)


def ranks_of_events(seed: int, ranks: int = 3) -> list[list[Event]]:
    """Of each rank. No total limits: how they add over ranks METRICS.md leaves open."""
    every = [some_events(seed + rank, 100) for rank in range(ranks)]
    return [[e for e in one if not isinstance(e, Buffer) or e.layer is not None] for one in every]


@each_class
@pytest.mark.parametrize("how", ["merge_ranks", "merge_state", "metric_state"])
def test_merging_ranks(cls: Cls, how: str) -> None:
    ranks = ranks_of_events(30)
    metric = feed(cls(LAYERS), ranks[0])
    for events in ranks[1:]:
        other = feed(cls(LAYERS), events)
        if how == "merge_ranks":
            metric.merge_ranks(other)
        else:
            metric.merge_state(other if how == "merge_state" else other.metric_state)
    expected = wanted(cls, over_ranks(ranks))
    assert not differences(answers(metric.compute()), expected)


def test_steps_and_ranks_differ_in_the_gauges() -> None:
    buffer = CLASSES[2]
    first, second = buffer([4]), buffer([4])
    first.update(4, entries=10, capacity=100, evicted=1)
    second.update(4, entries=30, evicted=2)
    steps, ranks = first.clone(), first.clone()
    steps.merge_steps(second)
    ranks.merge_ranks(second)
    got = [
        [float(m.compute()[n]) for n in ("total_entries", "capacity", "eviction_count")]
        for m in (steps, ranks)
    ]
    assert got == [[30, 100, 3], [40, 100, 3]]


def test_only_metrics_of_one_kind_merge() -> None:
    capture, reconstruction, *_ = CLASSES
    with pytest.raises(TypeError, match="ReconstructionMetric into CaptureMetric"):
        capture().merge_steps(reconstruction())


@each_class
def test_forward_gives_the_batch_and_adds_it(cls: Cls) -> None:
    metric, so_far = cls(LAYERS), []
    seen = 0
    for event in some_events(40, 60):
        given = rows(cls, [event])
        so_far.append(event)
        for row in given:
            seen += 1
            assert not differences(answers(metric(**row)), reference(cls, [event]))
    assert seen > 3
    check(metric, so_far)


def test_a_collection_computes_each_beside_the_others() -> None:
    events = some_events(50, 200)
    collection = MetricCollection({cls.__name__: cls(LAYERS) for cls in CLASSES})
    for metric in collection.values():
        feed(metric, events)
    got = answers(collection.compute())
    expected = {k: v for cls in CLASSES for k, v in reference(cls, events).items()}
    assert not differences(got, expected)
    collection.reset()
    assert all(not metric.samples.any() for metric in collection.values())
