"""The reference itself, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.reference import (
    LAYER_NAMES,
    NAMES,
    Buffer,
    Capture,
    Error,
    Event,
    Reconstruction,
    Retrieval,
    Step,
    evaluate,
    get,
    random_events,
)


def same(value: float, expected: float) -> bool:
    if math.isnan(expected):
        return math.isnan(value)
    return math.isclose(value, expected, rel_tol=1e-12)


def check(events: list[Event], layer: int | str | None = None, **expected: float) -> None:
    result = evaluate(events)
    got = {name: get(result, name, layer) for name in expected}
    wrong = {n: (got[n], expected[n]) for n in expected if not same(got[n], expected[n])}
    assert not wrong, f"(got, expected) at layer {layer!r}: {wrong}"


NAN = math.nan


# The contract numbers of METRICS.md.


def test_contract_storage_efficiency() -> None:
    events: list[Event] = [Capture(4, 50, 50, 45), Capture(6, 100, 100, 90)]
    check(events, states_captured=150, states_stored=135, storage_efficiency=0.90)
    check(events, layer=4, states_stored=45, storage_efficiency=0.90, states_rejected=5)
    check(events, layer=6, states_stored=90, storage_efficiency=0.90, states_rejected=10)


def test_contract_avg_capture_time() -> None:
    events = [Capture(4, 1, 1, 1, s) for s in (0.001, 0.002, 0.001)]
    value = get(evaluate(events), "avg_capture_time")
    assert same(value, 0.004 / 3)
    assert f"{value:.5f}" == "0.00133"


def test_contract_avg_reconstruction_time() -> None:
    check([Reconstruction(4, 3, None, s) for s in (0.003, 0.002)], avg_reconstruction_time=0.0025)


def test_contract_cache_hit_rate() -> None:
    check([Retrieval(None, 200, 900, hits=160)], cache_hits=160, cache_hit_rate=0.8)


def test_contract_utilization_with_a_total_limit_and_with_two_of_the_layers() -> None:
    total: list[Event] = [Buffer(4, 500, None), Buffer(6, 1000, None), Buffer(None, None, 2000)]
    check(total, total_entries=1500, capacity=2000, utilization_rate=0.75)
    check(total, layer=4, total_entries=500, capacity=NAN, utilization_rate=NAN)
    layered: list[Event] = [Buffer(4, 500, 1000), Buffer(6, 1000, 1000)]
    check(layered, total_entries=1500, capacity=2000, utilization_rate=0.75)


def test_contract_eviction_rate() -> None:
    events: list[Event] = [Capture(4, 1550, 1550, 1550), Buffer(4, 1500, 2000, evicted=50)]
    value = get(evaluate(events), "eviction_rate")
    assert same(value, 50 / 1550)
    assert f"{value:.3f}" == "0.032"


# Captures.


def test_a_whole_is_the_layers_and_the_events_without_a_layer() -> None:
    events: list[Event] = [
        Capture(1, 10, 8, 6, considered=40),
        Capture(1, 10, 4, 4, considered=10),
        Capture("a", 5, 5, 0),
        Capture(None, 100, 50, 25),
    ]
    check(
        events,
        layer=1,
        states_considered=50,
        states_attempted=20,
        states_captured=12,
        states_stored=10,
        states_rejected=2,
        capture_calls=2,
        capture_efficiency=12 / 20,
        storage_efficiency=10 / 12,
        selection_rate=20 / 50,
    )
    check(events, layer="a", states_considered=NAN, selection_rate=NAN, storage_efficiency=0)
    check(
        events,
        states_considered=50,
        states_attempted=125,
        states_captured=67,
        states_stored=35,
        states_rejected=32,
        capture_calls=4,
        capture_efficiency=67 / 125,
        storage_efficiency=35 / 67,
        # Only layer 1 gives considered, so only its 20 attempts count.
        selection_rate=20 / 50,
    )


def test_a_ratio_of_the_whole_leaves_out_a_layer_that_gives_one_side_only() -> None:
    events: list[Event] = [
        Capture(1, 10, 5, 4),
        Capture(2, None, 1000, None),
        Capture(3, 1000, None, None),
    ]
    check(events, states_captured=1005, states_attempted=1010, capture_efficiency=0.5)
    check(events, storage_efficiency=0.8, states_rejected=1)
    check(events, layer=2, capture_efficiency=NAN, states_stored=NAN, states_rejected=NAN)


def test_a_layer_giving_the_sides_in_different_events_gives_both() -> None:
    check([Capture(1, 10, None, None), Capture(1, None, 5, None)], layer=1, capture_efficiency=0.5)


def test_no_data_is_nan_and_zero_is_zero() -> None:
    check([Capture(1, None, None, None)], states_stored=NAN, capture_calls=1, avg_capture_time=NAN)
    check([Capture(1, 0, 0, 0)], states_stored=0, capture_efficiency=NAN, storage_efficiency=NAN)
    result = evaluate([])
    assert {name for name, _ in result} == set(NAMES)
    assert all(math.isnan(value) for value in result.values())


def test_capture_times() -> None:
    # 1..21 ms out of order: places 20 * 0.5 = 10, 19, and 19.8 rounded down to 19.
    events: list[Event] = [Capture(i % 3, 1, 1, 1, i / 1000) for i in range(21, 0, -1)]
    events.append(Capture(0, 1, 1, 1))
    check(
        events,
        avg_capture_time=0.011,
        capture_time_p50=0.011,
        capture_time_p95=0.020,
        capture_time_p99=0.020,
        capture_calls=22,
    )
    check(events, layer=1, avg_capture_time=0.010, capture_time_p50=NAN)  # 1, 4, ..., 19 ms


def test_the_lower_of_two_is_every_quantile() -> None:
    events: list[Event] = [Reconstruction(1, 1, None, 0.2), Reconstruction(None, 1, None, 0.1)]
    check(events, reconstruction_time_p50=0.1, reconstruction_time_p99=0.1)


# Reconstructions.


def test_reconstructions() -> None:
    events: list[Event] = [
        Reconstruction(1, 4, 0.5, 0.1),
        Reconstruction(1, 0, 0.9, 0.3),
        Reconstruction(2, 2.5),
        Reconstruction(None, 1, 0.1),
    ]
    check(
        events,
        reconstruction_calls=4,
        total_reconstructions=3,
        memories_used=7.5 / 3,
        reconstruction_quality=0.5,
        avg_reconstruction_time=0.2,
    )
    check(events, layer=1, reconstruction_calls=2, total_reconstructions=1, memories_used=4)
    check(events, layer=2, reconstruction_quality=NAN, avg_reconstruction_time=NAN)
    check([Reconstruction(1, 0)], layer=1, total_reconstructions=0, memories_used=NAN)
    unknown: list[Event] = [Reconstruction(1, None, 0.5)]
    check(unknown, reconstruction_calls=1, total_reconstructions=NAN, memories_used=NAN)


# Buffers.


def test_gauges_are_the_last_given() -> None:
    events: list[Event] = [
        Buffer(1, 10, 100, 2**20),
        Buffer(1, 20, None, 3 * 2**19, evicted=2, cleared=3, loaded=4),
        Buffer(1, None, None, None, evicted=5),
    ]
    for layer in (1, None):
        check(
            events,
            layer=layer,
            total_entries=20,
            capacity=100,
            utilization_rate=0.2,
            memory_size_mb=1.5,
            eviction_count=7,
            states_cleared=3,
            states_loaded=4,
        )


def test_entries_of_the_whole_count_only_where_no_layer_reports() -> None:
    events: list[Event] = [Buffer(None, 70, 100, 2**20)]
    check(events, total_entries=70, capacity=100, utilization_rate=0.7, memory_size_mb=1)
    events.append(Buffer(1, 30, None))
    check(events, total_entries=30, capacity=100, utilization_rate=0.3, memory_size_mb=1)


def test_capacity_is_over_the_layers_that_hold_or_have_held() -> None:
    events: list[Event] = [Buffer(1, 0, 100), Buffer(2, 0, 200)]
    check(events, total_entries=0, capacity=300, utilization_rate=0)
    events.append(Buffer(1, 50, 100))
    check(events, total_entries=50, capacity=100, utilization_rate=0.5)
    events.append(Buffer(1, 0, None))
    check(events, total_entries=0, capacity=100, utilization_rate=0)
    events.append(Buffer(2, 60, None))
    check(events, total_entries=60, capacity=300, utilization_rate=0.2)


def test_capacity_is_at_most_the_total_limit() -> None:
    layers: list[Event] = [Buffer(1, 50, 100), Buffer(2, 50, 200)]
    check([*layers, Buffer(None, None, 250)], capacity=250, utilization_rate=0.4)
    check([*layers, Buffer(None, None, 1000)], capacity=300, utilization_rate=1 / 3)
    empty: list[Event] = [Buffer(1, 0, 100), Buffer(None, None, 1000)]
    check(empty, capacity=100, utilization_rate=0)


def test_the_total_limit_stands_alone_where_a_layer_that_held_names_none() -> None:
    layers: list[Event] = [Buffer(1, 50, 100), Buffer(2, 900, None)]
    total: list[Event] = [Buffer(None, None, 1000)]
    check([*layers, *total], total_entries=950, capacity=1000, utilization_rate=0.95)
    # Layer 2 never held anything: the 100 of layer 1 bounds what is there.
    check([layers[0], Buffer(2, 0, None), *total], capacity=100, utilization_rate=0.5)
    # It held something once, and now is empty.
    check([*layers, Buffer(2, 0, None), *total], capacity=1000, utilization_rate=0.05)
    # It names a limit later: the sum of both is a bound again.
    check([*layers, Buffer(2, 800, 850), *total], capacity=950, utilization_rate=850 / 950)


def test_entries_that_no_capacity_bounds_are_no_utilization() -> None:
    events: list[Event] = [Buffer(1, 50, 100), Buffer(2, 900, None)]
    check(events, total_entries=950, capacity=100, utilization_rate=0.5)
    check([Buffer(1, 50, None)], total_entries=50, capacity=NAN, utilization_rate=NAN)
    check([Buffer(1, None, 50)], total_entries=NAN, capacity=50, utilization_rate=NAN)
    check([Buffer(1, 3, 0)], layer=1, utilization_rate=NAN)


def test_layers_without_a_capacity_that_held_do_not_hide_those_with_one() -> None:
    check([Buffer(1, 50, None), Buffer(2, 0, 200)], capacity=200, utilization_rate=0)


def test_evictions_over_the_layers_that_store() -> None:
    events: list[Event] = [
        Capture(1, 40, 40, 40),
        Buffer(1, 30, None, evicted=10),
        Buffer(2, 30, None, evicted=99),
        Capture(3, 40, 40, 1000),
    ]
    check(events, eviction_count=109, states_stored=1040, eviction_rate=0.25)
    check(events, layer=2, eviction_count=99, eviction_rate=NAN)


# Retrievals.


def test_retrievals() -> None:
    events: list[Event] = [
        Retrieval(1, 3, 12, 2, 0.03, 0.25),
        Retrieval(1, 1, 1, None, 0.05),
        Retrieval(None, 4, 0, 0, None, 0.75),
        Retrieval(2, 0, 0, 0),
    ]
    check(
        events,
        total_retrievals=8,
        entries_retrieved=13,
        cache_hits=2,
        cache_hit_rate=2 / 7,
        avg_retrieval_time=0.08 / 4,
        retrieval_time_p50=0.01,  # 0.01, 0.01, 0.01, 0.05
        retrieval_time_p99=0.01,
        retrieval_quality=0.5,
    )
    check(events, layer=1, cache_hit_rate=2 / 3, avg_retrieval_time=0.02, retrieval_quality=0.25)
    check(events, layer=2, total_retrievals=0, cache_hits=0, cache_hit_rate=NAN)
    check([Retrieval(1, 5, 5)], cache_hits=NAN, cache_hit_rate=NAN, avg_retrieval_time=NAN)


def test_retrievals_weigh_by_operations() -> None:
    events: list[Event] = [Retrieval(1, 1, 1, seconds=9.0), Retrieval(1, 1, 1, seconds=8.0)]
    check(events, retrieval_time_p50=8)
    events.append(Retrieval(1, 9, 9, seconds=0.9))  # places 10 * 0.5 = 5, 9, 9 of 9 x 0.1, 8, 9
    check(events, retrieval_time_p50=0.1, retrieval_time_p95=8, retrieval_time_p99=8)
    none: list[Event] = [Retrieval(1, 0, 0, seconds=1.0)]
    check(none, retrieval_time_p50=NAN, avg_retrieval_time=NAN, total_retrievals=0)
    check([*events, *none], retrieval_time_p50=0.1, avg_retrieval_time=17.9 / 11)


# Errors and steps.


def test_errors() -> None:
    events: list[Event] = [
        Capture(1, 1, 1, 1),
        Capture(1, 1, 1, 1),
        Reconstruction(2, 0),
        Retrieval(1, 3, 3),
        Step(1.0, None, None, None, None, None, None, forward_passes=4),
    ]
    check(events, error_count=0, error_rate=0)
    events += [Error(1), Error(None)]
    check(events, error_count=2, error_rate=2 / 10)
    check(events, layer=1, error_count=1, error_rate=NAN)
    check(events, layer=2, error_count=0)
    check([Error(1)], error_count=1, error_rate=NAN)


def test_steps() -> None:
    events: list[Event] = [
        Step(2.0, 1.0, 0.6, 0.4, 0.2, 6, 300, forward_passes=2),
        Step(4.0, None, 0.3, None, 0.4, 10, None),
        Step(3.0, 2.0, None, 0.8, None, None, 100, forward_passes=7),
    ]
    check(
        events,
        step_time=3,
        data_wait=1.5,
        avg_forward_time=0.3,
        avg_latency=0.3,
        total_forward_time=0.9,
        backward_time=0.6,
        optimizer_time=0.3,
        throughput=16 / 7,
        tokens_per_second=400 / 8,
        tokens=400,
        batch_size=8,
        error_rate=0,
    )
    bare: list[Event] = [Step(2.0, None, None, None, None, None, None)]
    check(bare, step_time=2, data_wait=NAN, total_forward_time=NAN, avg_latency=NAN)
    check(bare, throughput=NAN, tokens_per_second=NAN, tokens=NAN, batch_size=NAN)


# The result and the random events.


def test_an_unknown_name_is_an_error_and_an_unknown_layer_no_data() -> None:
    result = evaluate([Capture(1, 1, 1, 1)])
    with pytest.raises(KeyError, match="states_captred"):
        get(result, "states_captred")
    assert math.isnan(get(result, "states_captured", 9))
    assert len(set(NAMES)) == len(NAMES)
    assert {name for name, layer in result if layer == 1} == set(LAYER_NAMES)


def test_random_events_are_valid_and_of_every_kind() -> None:
    events = random_events(np.random.default_rng(0), 5000, [4, "deep"])
    assert events == random_events(np.random.default_rng(0), 5000, [4, "deep"])
    assert {type(e) for e in events} == {Capture, Reconstruction, Retrieval, Buffer, Error, Step}
    assert {e.layer for e in events if not isinstance(e, Step)} == {4, "deep", None}
    for event in events:
        parts: list[float | None] = []
        if isinstance(event, Capture):
            chain = (event.considered, event.attempted, event.captured, event.stored)
            given = [c for c in chain if c is not None]
            assert given == sorted(given, reverse=True)
            assert all(c >= 0 for c in given)
            parts = [event.seconds]
        elif isinstance(event, Reconstruction):
            assert event.memories_used is not None and event.memories_used >= 0
            assert event.quality is None or 0 <= event.quality <= 1
            parts = [event.seconds]
        elif isinstance(event, Retrieval):
            assert event.requested is not None and event.requested >= 0
            assert event.hits is None or 0 <= event.hits <= event.requested
            assert event.quality is None or 0 <= event.quality <= 1
            parts = [event.seconds]
            if event.seconds is not None:
                assert event.seconds >= 2e-6 * event.requested
        elif isinstance(event, Buffer):
            assert min(event.evicted, event.cleared, event.loaded) >= 0
        elif isinstance(event, Step):
            inner = [event.forward, event.backward, event.optimizer]
            assert sum(s for s in inner if s is not None) <= event.seconds
            parts = [event.seconds, event.data_wait, *inner]
            assert event.forward_passes >= 1
        assert all(2e-6 <= s <= 10 for s in parts if s is not None)


@pytest.mark.parametrize("seed", range(20))
def test_relations_that_hold_for_any_events(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events = random_events(rng, int(rng.integers(1, 400)), [0, 1, "x"])
    result = evaluate(events)
    order = [events[i] for i in rng.permutation(len(events))]
    shuffled = evaluate(order)
    gauges = {"total_entries", "capacity", "utilization_rate", "memory_size_mb"}
    for (name, layer), value in result.items():
        if name not in gauges:  # a gauge is the last given, so the order matters to it alone
            assert same(get(shuffled, name, layer), value), name
    for kind in ("capture", "reconstruction", "retrieval"):
        p50, p95, p99 = (get(result, f"{kind}_time_p{p}") for p in (50, 95, 99))
        assert math.isnan(p50) or 0 < p50 <= p95 <= p99 <= 10
