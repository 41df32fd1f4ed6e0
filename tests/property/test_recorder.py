"""What goes through real probes comes out as the reference says, however it is split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from cmr_monitor_callbacks import CMRPerformanceMonitor, Snapshot
from tests.feeding import GAUGES, Table, differences, same
from tests.feeding_probes import LAYERS, Call, calls, kind_of, say, watched
from tests.reference import Buffer, Capture, Event, Layer, Retrieval, Step, evaluate, get

# Shrinking a failure of twenty events takes minutes and says little more.
quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
Windows = Sequence[Sequence[Call]]
SUMS_OF_CALLS = (
    "capture_calls",
    "reconstruction_calls",
    "total_reconstructions",
    "error_count",
    "tokens",
    "total_forward_time",
)


def windows_of(one: st.SearchStrategy[Call]) -> st.SearchStrategy[list[list[Call]]]:
    return st.lists(st.lists(one, max_size=6), min_size=1, max_size=3)


def run(windows: Windows) -> tuple[CMRPerformanceMonitor, Snapshot]:
    model, monitor = watched()
    for window in windows:
        for call in window:
            say(model, monitor, call)
        monitor.close_window()
    monitor.detach()
    return monitor, monitor.snapshot


def table(snapshot: Snapshot, over: str, keys: Table) -> dict[tuple[str, Layer], float]:
    return {
        (name, layer): snapshot.value(name, layer=layer, over=over)  # type: ignore[arg-type]
        for name, layer in keys
    }


def evaluated(windows: Windows) -> dict[tuple[str, Layer], float]:
    everything = evaluate([call.valid for window in windows for call in window])
    timed = evaluate([call.timed for window in windows for call in window])
    return {key: (timed if "_time_p" in key[0] else everything)[key] for key in everything}


def last_window(windows: Windows) -> dict[tuple[str, Layer], float]:
    """As METRICS.md reads a window: 0 where a source is live but still, gauges what holds now."""
    so_far, window = evaluated(windows), [call.valid for call in windows[-1]]
    alone, quantiles = evaluate(window), evaluated([windows[-1]])
    padded = evaluate([*window, *_zeros(so_far)])
    out = {}
    for name, layer in so_far:
        value = get(padded, name, layer)
        if name in GAUGES:
            value = so_far[name, layer]
        elif "_time_p" in name:
            value = quantiles.get((name, layer), math.nan)
        elif name == "error_rate":
            value = get(alone, name, layer)
        elif name in SUMS_OF_CALLS:
            value = get(alone, name, layer)
            known = not math.isnan(so_far[name, layer])
            value = 0.0 if known and math.isnan(value) else value
        out[name, layer] = value
    return out


def _zeros(so_far: Table) -> list[Event]:
    """Events of nothing at all, for every count that a layer has ever given.

    The whole's own part of a count is not told apart here; a 0 there changes no sum.
    """

    def zero(name: str, layer: Layer) -> int | None:
        return None if math.isnan(so_far[name, layer]) else 0

    out: list[Event] = []
    for layer in {layer for _, layer in so_far}:
        taken = [zero(n, layer) for n in ("states_attempted", "states_captured", "states_stored")]
        out.append(Capture(layer, *taken, None, zero("states_considered", layer)))
        counts = [zero(n, layer) for n in ("total_retrievals", "entries_retrieved", "cache_hits")]
        out.append(Retrieval(layer, *counts))
        gone = [zero(n, layer) for n in ("eviction_count", "states_cleared", "states_loaded")]
        out.append(Buffer(layer, None, None, None, *gone))  # type: ignore[arg-type]
    return out


def check(windows: Windows) -> None:
    _, snapshot = run(windows)
    expected = evaluated(windows)
    assert not differences(table(snapshot, "run", expected), expected)
    # the reference's whole holds no None column of its own, so ratios over mixed ones are left out
    whole = {c.valid.layer for w in windows for c in w if not isinstance(c.valid, Step)} == {None}
    of_window = last_window(windows)
    if not whole and any(_layerless(call) for window in windows for call in window):
        of_window = {key: value for key, value in of_window.items() if key[0] not in RATIOS}
    assert not differences(table(snapshot, "window", of_window), of_window)
    for name in ("states_captured", "total_entries", "cache_hit_rate"):
        shown = {layer: get(expected, name, layer) for layer in LAYERS if layer is not None}
        given = {layer: value for layer, value in shown.items() if not math.isnan(value)}
        got = snapshot.layers(name)
        assert list(got) == list(given)
        assert all(same(got[layer], value) for layer, value in given.items())
    _check_invalid(snapshot, [call for window in windows for call in window])


RATIOS = (
    "capture_efficiency",
    "storage_efficiency",
    "selection_rate",
    "eviction_rate",
    "states_rejected",
)


def _layerless(call: Call) -> bool:
    return not isinstance(call.valid, Step) and call.valid.layer is None


def _check_invalid(snapshot: Snapshot, given: Sequence[Call]) -> None:
    if not given:
        assert math.isnan(snapshot.value("nonfinite_count"))
        return
    assert snapshot.value("invalid_samples") == sum(call.invalid for call in given)
    assert snapshot.value("nonfinite_count") == sum(call.nonfinite for call in given)
    for layer in ("deep", 4):
        own = [c.nonfinite for c in given if getattr(c.valid, "layer", None) == layer]
        assert snapshot.value("nonfinite_count", layer=layer) == sum(own)


def plain(event: Event, **given: object) -> Call:
    return Call(event, event, given)


@quick
@given(windows_of(calls()))
def test_numbers_of_the_host(windows: Windows) -> None:
    check(windows)


@quick
@given(windows_of(calls(invalid=True)))
def test_invalid_values_are_left_out_and_counted(windows: Windows) -> None:
    check(windows)


@quick
@given(windows_of(calls(tensors=True)))
def test_numbers_of_a_device(windows: Windows) -> None:
    check(windows)


@quick
@given(windows_of(calls()))
def test_fast_and_slow_path_agree(windows: Windows) -> None:
    """NumPy scalars take the slow path, plain numbers the fast one."""
    fast, slow = [], []
    for window in windows:
        fast.append([_as(call, plain_number) for call in window])
        slow.append([_as(call, numpy_number) for call in window])
    (_, one), (_, other) = run(fast), run(slow)
    for a, b in ((one.run, other.run), (one.window, other.window), (one.counters, other.counters)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=0)
    assert one.value("events") == other.value("events")


def _as(call: Call, convert: object) -> Call:
    given = {name: convert(getattr(call.valid, name)) for name in call.given}  # type: ignore[operator]
    return Call(call.valid, call.timed, given)


def plain_number(value: float | None) -> float | None:
    return value


def numpy_number(value: float | None) -> object:
    if value is None:
        return None
    return np.int64(value) if isinstance(value, int) else np.float64(value)


@quick
@given(windows_of(calls(invalid=True)))
@example([[plain(Capture(4, 2, 1, 1), attempted=2, captured=1, stored=1)], []])
def test_the_split_into_windows_does_not_change_the_run(windows: Windows) -> None:
    together = [[call for window in windows for call in window]]
    (_, apart), (_, at_once) = run(windows), run(together)
    np.testing.assert_allclose(apart.run, at_once.run, rtol=1e-9, atol=0)
    np.testing.assert_allclose(apart.counters, at_once.counters, rtol=1e-9, atol=0)
    assert {kind_of(call.valid) for call in together[0]} <= {
        "capture",
        "reconstruction",
        "retrieval",
        "buffer",
        "error",
        "step",
    }
