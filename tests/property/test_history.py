"""What was kept reads back bitwise; a roll-up is what its definition says, by pure Python."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmr_monitor_callbacks import HistoryConfig, RunHistory
from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.history import blocks, choosing, packing, reading, retention
from cmr_monitor_callbacks.history import store as store_module
from tests.histories import end, snapshot, store

SMALL = 100
KEYS = [("states_stored", None), ("step_time", None), ("utilization_rate", 4), ("capacity", "4")]
# what float64 has: negative zero, the least, the greatest, infinities, and no data
NUMBERS = st.one_of(
    st.floats(allow_nan=False), st.just(math.nan), st.just(-0.0), st.just(5e-324), st.just(1.5)
)


def bits(value: float) -> bytes:
    """A number's own bytes; one for all of no data."""
    return b"none" if math.isnan(value) else struct.pack("<d", value)


def window_lists(least: int, most: int) -> st.SearchStrategy[list[list[float]]]:
    window = st.lists(NUMBERS, min_size=len(KEYS), max_size=len(KEYS))
    return st.lists(window, min_size=least, max_size=most)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are packed sooner than at the size that is shipped."""
    for module in (store_module, packing, retention, reading, choosing):
        monkeypatch.setattr(module, "BLOCK", SMALL)


def write(path: Path, windows: list[list[float]], config: HistoryConfig | None = None) -> None:
    opened = store(path, config)
    for step, values in enumerate(windows):
        numbers = {key: value for key, value in zip(KEYS, values, strict=True)}
        opened.window(snapshot(step, numbers, layers=(4, "4")))
        opened.tidy(0.0)
    end(opened)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(windows=window_lists(1, 20), repeats=st.integers(1, 25))
def test_what_was_kept_reads_back_bitwise(
    windows: list[list[float]],
    repeats: int,
    tmp_path_factory: pytest.TempPathFactory,
    small_blocks: None,
) -> None:
    path = tmp_path_factory.mktemp("history") / "history.sqlite"
    windows = windows * repeats  # up to 500: some packed, some not
    write(path, windows)
    with RunHistory(path) as history:
        assert history.windows() == len(windows)
        for i, (name, layer) in enumerate(KEYS):
            found = history.series(name, layer)
            written = [values[i] for values in windows]
            if all(math.isnan(value) for value in written):
                assert len(found) == 0
                continue
            assert [bits(v) for v in found.value.tolist()] == [bits(v) for v in written]
            assert found.step.tolist() == list(range(len(windows)))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(windows=window_lists(5, 30), tier=st.sampled_from([1, 2]))
def test_a_roll_up_is_what_it_says(
    windows: list[list[float]],
    tier: int,
    tmp_path_factory: pytest.TempPathFactory,
    small_blocks: None,
) -> None:
    path = tmp_path_factory.mktemp("history") / "history.sqlite"
    windows = (windows * 60)[:300]  # 2 packed blocks of 100, 100 single windows
    write(path, windows)
    size = 10**tier
    most = 300 // size
    with RunHistory(path) as history:
        for i, (name, layer) in enumerate(KEYS):
            found = history.series(name, layer, max_points=most)
            written = [values[i] for values in windows]
            if all(math.isnan(value) for value in written):
                continue
            expected = [written[at : at + size] for at in range(0, 300, size)]
            assert len(found) == len(expected)
            for at, group in enumerate(expected):
                known = [value for value in group if not math.isnan(value)]
                assert found.count[at] == len(known)
                if not known:
                    assert math.isnan(found.value[at]) and math.isnan(found.last[at])
                    continue
                assert bits(found.last[at]) == bits(known[-1])
                assert found.minimum[at] == min(known) and found.maximum[at] == max(known)
                if len(known) == 1:
                    assert found.value[at] == known[0]
                elif all(abs(value) < 1e300 for value in known):
                    mean = math.fsum(known) / len(known)
                    scale = max(abs(value) for value in known)
                    assert abs(found.value[at] - mean) <= 1e-12 * scale
            assert found.step[0] == size - 1


def test_blocks_of_the_size_that_is_shipped(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(3 * BLOCK + 7, len(KEYS)))
    write(path, windows.tolist(), HistoryConfig(raw_windows=BLOCK))
    with RunHistory(path) as history:
        found = history.series("step_time")
        # two blocks are packed; exactly kept is the newest of them, the other in tens
        assert len(found) == BLOCK // 10 + BLOCK + BLOCK + 7
        tens = windows[:BLOCK, 1].reshape(-1, 10)
        np.testing.assert_array_equal(found.minimum[:100], tens.min(axis=1))
        np.testing.assert_allclose(found.value[:100], tens.mean(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(found.value[100:], windows[BLOCK:, 1])
        assert found.step[99] == BLOCK - 1 and found.step[100] == BLOCK
        assert history.windows() == len(windows)


def test_bytes_are_those_of_the_numbers() -> None:
    values = np.array([0.1, -0.0, math.inf, 5e-324, math.nan])
    assert blocks.floats(blocks.to_bytes(values)).tobytes() == values.tobytes()
    steps = np.array([-(2**63), 0, 2**63 - 1])
    assert blocks.integers(blocks.to_bytes(steps)).tolist() == steps.tolist()
