"""Packed statistics: adding, widening, moving, saving."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

from cmr_monitor_callbacks.folding import add_durations, add_event
from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.packed import METRIC_ROW, ROW, TIMER_ROW, Packed, read, read_counters
from tests.feeding import arguments, differences, split
from tests.reference import (
    LAYER_NAMES,
    Buffer,
    Capture,
    Error,
    Event,
    Reconstruction,
    Retrieval,
    Step,
    evaluate,
    random_events,
)

LAYERS = (4, "deep")


def fold(events: list[Event], layout: Layout | None = None) -> Packed:
    layout = layout or Layout(LAYERS)
    packed = Packed.empty(layout.width)
    for event in events:
        if isinstance(event, (Step, Error)):
            continue
        component, given = arguments(event)
        column = layout.column(given.pop("layer"))
        packed.widen(layout.width)
        add_event(packed, component, column, tuple(given.values()))
        if isinstance(event, Capture) and event.seconds is not None:
            add_durations(packed, [(TIMER_ROW["capture_time"], np.array([event.seconds]), None)])
    return packed


def some_events(seed: int) -> list[Event]:
    """Without steps and errors, which `fold` leaves out, and retrievals of nothing."""
    events = random_events(np.random.default_rng(seed), 150, LAYERS)
    kinds = (Capture, Reconstruction, Retrieval, Buffer)
    return [e for e in events if isinstance(e, kinds) and getattr(e, "requested", 1)]


def equal(one: Packed, other: Packed) -> None:
    np.testing.assert_allclose(one.values, other.values, rtol=1e-12)
    np.testing.assert_array_equal(one.samples, other.samples)
    np.testing.assert_array_equal(one.histograms, other.histograms)
    np.testing.assert_array_equal(one.extremes, other.extremes)


@pytest.mark.parametrize("seed", range(5))
def test_windows_add_up_to_the_run(seed: int) -> None:
    events = some_events(seed)
    run = Packed.empty(1)
    for window in split(np.random.default_rng(seed), events, 5):
        run.add(fold(window))
    equal(run, fold(events))
    table = read(run, run)
    names = set(LAYER_NAMES) - {"error_count"}
    expected = {key: v for key, v in evaluate(events).items() if key[0] in names}
    columns = {None: 0, 4: 1, "deep": 2}
    got = {(n, layer): float(table[METRIC_ROW[n], columns[layer]]) for n, layer in expected}
    assert not differences(got, expected)


def test_adding_leaves_the_added_as_it_was() -> None:
    run, window = fold(some_events(1)), fold(some_events(2))
    before = copy.deepcopy(window)
    run.add(window)
    run.add(window)
    equal(window, before)


def test_gauges_take_the_later_value_where_there_is_one() -> None:
    run = fold([Buffer(4, 10, 100, 1000), Buffer("deep", 1, 2, 3)])
    run.add(fold([Buffer(4, 20, None, None)]))
    rows = [ROW[name] for name in ("total_entries", "capacity", "memory_bytes")]
    assert run.values[rows, 1].tolist() == [20, 100, 1000]
    assert run.values[rows, 2].tolist() == [1, 2, 3]
    assert np.isnan(run.values[rows, 0]).all()


def test_widening_moves_no_column_and_never_narrows() -> None:
    packed = fold(some_events(3))
    before = copy.deepcopy(packed)
    packed.widen(5)
    assert packed.width == 5
    np.testing.assert_array_equal(packed.values[:, :3], before.values)
    assert not packed.samples[:, 3:].any()
    assert np.isnan(packed.values[ROW["capacity"], 3:]).all()
    assert not packed.values[ROW["states_captured"], 3:].any()
    packed.widen(2)
    assert packed.width == 5


def test_a_layer_that_came_later_widens_the_run() -> None:
    run = Packed.empty(2)
    run.add(fold([Capture("deep", 3, 2, 1)]))
    assert run.width == 3
    assert run.values[ROW["states_captured"]].tolist() == [0, 0, 2]


def test_moving_columns() -> None:
    events = some_events(4)
    moved = fold(events).moved([0, 3, 1], 4)
    other = fold(events, Layout(["deep", "new", 4]))
    equal(moved, other)


def test_a_copy_is_its_own() -> None:
    packed = fold(some_events(5))
    twin = packed.copy()
    twin.values += 1
    twin.samples += 1
    twin.histograms += 1
    twin.extremes += 1
    equal(packed, fold(some_events(5)))


def test_state_survives_json() -> None:
    packed = fold(some_events(6))
    state = json.loads(json.dumps(packed.state()))
    equal(Packed.from_state(state, packed.width), packed)
    assert state["values"]["states_captured"] == packed.values[ROW["states_captured"]].tolist()


def test_state_of_another_version() -> None:
    packed = fold([Capture(4, 9, 8, 7, 0.5)])
    state = packed.state()
    for part in ("values", "samples"):
        state[part]["of_a_later_version"] = [1.0, 1.0, 1.0]
        del state[part]["states_stored"]
    del state["histograms"]["capture_time"], state["extremes"]["capture_time"]
    loaded = Packed.from_state(state, 3)
    table = read(loaded, loaded)
    assert table[METRIC_ROW["states_captured"], 1] == 8
    assert math.isnan(table[METRIC_ROW["states_stored"], 1])
    assert math.isnan(table[METRIC_ROW["capture_time_p50"], 0])


def test_a_window_reads_0_for_what_the_run_has_seen() -> None:
    run = fold([Capture(4, 9, 8, 7), Buffer(4, 10, 100)])
    window = fold([Capture("deep", 1, 1, 1)])
    table = read(window, run)
    assert table[METRIC_ROW["states_captured"], 1] == 0
    assert math.isnan(table[METRIC_ROW["states_considered"], 1])
    assert math.isnan(table[METRIC_ROW["storage_efficiency"], 1])
    assert math.isnan(table[METRIC_ROW["total_retrievals"], 0])


def test_counters_alone_are_those_of_the_table() -> None:
    run = fold(some_events(7))
    from cmr_monitor_callbacks.packed import COUNTERS

    rows = [METRIC_ROW[name] for name in COUNTERS]
    np.testing.assert_array_equal(read_counters(run), read(run, run)[rows])
