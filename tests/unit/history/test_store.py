"""What a store keeps and gives back: sessions, ranges, tiers, alerts, errors, limits."""

from __future__ import annotations

import math
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from cmr_monitor_callbacks import HistoryConfig, HistoryError, RunHistory
from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Phase
from cmr_monitor_callbacks.history import requests, schema
from cmr_monitor_callbacks.history.retention import prune
from cmr_monitor_callbacks.reports import report_of
from tests.histories import START, end, snapshot, store, transition
from tests.needed import needed


def filled(path: Path, steps: range, value: float = 0.0, every: int = 1) -> None:
    """A session of a run, whose step time is the step plus ``value``."""
    opened = store(path)
    for step in steps:
        opened.window(snapshot(step * every, {"step_time": step * every + value}))
        opened.tidy(START)
    end(opened)


def test_layers_of_other_types_are_others(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path)
    numbers = {("states_stored", 4): 1.0, ("states_stored", "4"): 2.0, ("states_stored", "é \n"): 3}
    opened.window(snapshot(0, numbers, layers=(4, "4", "é \n")))
    end(opened)
    with RunHistory(path) as history:
        assert history.layers() == [4, "4", "é \n"]
        assert [history.series("states_stored", at).value.tolist() for at in history.layers()] == [
            [1.0],
            [2.0],
            [3.0],
        ]
        assert len(history.series("states_stored")) == 0
        assert history.series("total_captures").key.name == "states_captured"
        with pytest.raises(KeyError, match="did you mean 'states_stored'"):
            history.series("states_storde")


def test_a_series_that_comes_later_has_no_data_before(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path)
    opened.window(snapshot(0, {"step_time": 1.0}))
    opened.window(snapshot(1, {"step_time": 2.0, ("capacity", 7): 5.0}, layers=(7,)))
    opened.window(snapshot(2, {("capacity", 7): 6.0}, layers=(7,)))
    end(opened)
    with RunHistory(path) as history:
        np.testing.assert_array_equal(history.series("capacity", 7).value, [math.nan, 5.0, 6.0])
        np.testing.assert_array_equal(history.series("step_time").value, [1.0, 2.0, math.nan])
        assert history.series("step_time").count.tolist() == [1.0, 1.0, 0.0]
        assert history.at(1).value("capacity", 7) == 5.0
        assert math.isnan(history.at(0).value("capacity", 7))
        assert history.at(100).step == 2
        with pytest.raises(HistoryError, match="no window of train had ended by step -1"):
            history.at(-1)


def test_a_resumed_run_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(0, 10))
    filled(path, range(6, 12), value=0.5)  # from the checkpoint of step 5
    with RunHistory(path) as history:
        series = history.series("step_time")
        assert series.step.tolist() == list(range(12))
        assert series.value.tolist() == [*range(6), *(step + 0.5 for step in range(6, 12))]
        assert [s["state"] for s in history.sessions()] == ["ended", "ended"]
        # a range that the second session alone lies in hides the first one's steps all the same
        assert history.series("step_time", time_range="2s").step.tolist() == [9, 10, 11]
    with RunHistory(path, session=1) as first:
        assert first.series("step_time").step.tolist() == list(range(10))
    with pytest.raises(HistoryError, match="session must be one of 1, 2, got 3"):
        RunHistory(path, session=3)


def test_what_was_done_again_is_hidden_in_a_range_before_it_too(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(0, 10))
    opened = store(path)  # an hour later, from the checkpoint of step 5
    for step in range(6, 12):
        opened.window(snapshot(step, {"step_time": step + 0.5}, time=START + 3600 + step))
    end(opened)
    with RunHistory(path) as history:
        first_alone = history.series("step_time", time_range=(START, START + 60))
        assert first_alone.step.tolist() == list(range(6))


def test_a_resumed_run_of_packed_windows_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(2 * BLOCK + 5))
    filled(path, range(500, 2 * BLOCK + 500), value=0.5)
    with RunHistory(path) as history:
        series = history.series("step_time")
        assert series.step.tolist() == list(range(2 * BLOCK + 500))
        assert series.value[499] == 499 and series.value[500] == 500.5
        assert history.at(499).value("step_time") == 499


@pytest.mark.parametrize(
    ("time_range", "steps"),
    [
        (None, [0, 60, 120, 180]),
        ("1m", [120, 180]),
        (119.5, [120, 180]),
        ("1h", [0, 60, 120, 180]),
        ((START + 60, START + 120), [60, 120]),
        ((START + 1000, math.inf), []),
    ],
)
def test_ranges_of_time(tmp_path: Path, time_range: object, steps: list[int]) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(4), every=60)
    with RunHistory(path) as history:
        assert history.series("step_time", time_range=time_range).step.tolist() == steps  # type: ignore[arg-type]


def test_a_range_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(2))
    with (
        RunHistory(path) as history,
        pytest.raises(ValueError, match="time_range must be a duration"),
    ):
        history.series("step_time", time_range="5 parsecs")


def test_a_clock_that_jumps_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path)
    for step, time in enumerate((100.0, 101.0, 7.0, 8.0, 9e9)):
        opened.window(snapshot(step, {"step_time": step}, time=time))
    end(opened)
    with RunHistory(path) as history:
        assert history.series("step_time").value.tolist() == [0, 1, 2, 3, 4]
        assert history.series("step_time").time.tolist() == [100.0, 101.0, 7.0, 8.0, 9e9]


def test_describe_is_numpys(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    values = np.random.default_rng(1).normal(size=50)
    opened = store(path)
    for step, value in enumerate(values.tolist()):
        opened.window(snapshot(step, {"step_time": math.nan if step == 3 else value}))
    end(opened)
    given = np.delete(values, 3)
    with RunHistory(path) as history:
        (found,) = history.describe().values()
    expected = {
        "count": 49,
        "mean": given.mean(),
        "std": given.std(),
        "min": given.min(),
        "max": given.max(),
        "p5": np.quantile(given, 0.05),
        "p50": np.quantile(given, 0.5),
        "p95": np.quantile(given, 0.95),
        "p99": np.quantile(given, 0.99),
        "last": values[-1],
    }
    assert found == pytest.approx(expected)


def test_describe_gives_a_summary_the_weight_of_its_windows(tmp_path: Path) -> None:
    """Quantiles counted the mean of ten windows as one."""
    path = tmp_path / "history.sqlite"
    opened = store(path, limits(raw_windows=BLOCK))
    values = np.repeat(np.random.default_rng(3).normal(size=400), 10)  # summaries lose nothing
    values[::70] = np.nan
    for step, value in enumerate(values.tolist()):
        opened.window(snapshot(step, {"step_time": value}))
        opened.tidy(START)
    end(opened)
    given = values[~np.isnan(values)]
    with RunHistory(path) as history:
        assert history.series("step_time").windows.max() == 10
        (found,) = history.describe().values()
    for name, at in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert found[name] == pytest.approx(np.quantile(given, at))
    assert found["count"] == len(given)
    assert found["mean"] == pytest.approx(given.mean())
    assert found["std"] == pytest.approx(given.std())


def test_a_frame_holds_every_number(tmp_path: Path) -> None:
    pandas = needed("pandas")
    path = tmp_path / "history.sqlite"
    opened = store(path)
    for step in range(3):
        values = {"step_time": step / 10, ("states_stored", 4): step}
        opened.window(snapshot(step, values, layers=(4,)))
    end(opened)
    with RunHistory(path) as history:
        frame = history.frame()
    assert list(frame.columns) == ["time", "states_stored/layer_04", "step_time"]
    assert frame.index.name == "step" and frame["step_time"].tolist() == [0.0, 0.1, 0.2]
    assert frame["time"].iloc[0] == pandas.Timestamp(START, unit="s", tz="UTC")


def test_alerts_and_health_are_kept_with_their_window(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path)
    fires = transition("slow", 1, Phase.FIRING, Phase.PENDING, layer=4)
    other = transition("other", 1, Phase.PENDING)
    opened.window(snapshot(1, {}), [fires, other], [("capture", "healthy", "warning", 1, START)])
    ends = transition("slow", 2, Phase.INACTIVE, Phase.FIRING, layer=4)
    opened.window(snapshot(2, {}), [ends], [])
    end(opened)
    with RunHistory(path) as history:
        assert [(row["rule"], row["name"], row["layer"]) for row in history.alerts()] == [
            ("slow", "firing", 4),
            ("other", "pending", None),
            ("slow", "resolved", 4),
        ]
        assert [row["name"] for row in history.alerts(rule="slow")] == ["firing", "resolved"]
        assert [row["rule"] for row in history.open_alerts()] == ["other"]
        assert history.health_changes()[0]["after"] == "warning"
        assert history.alerts((START + 2, START + 3))[0]["name"] == "resolved"


def record(message: str = "gone", step: int = 1, count: int = 1, **what: object) -> ErrorRecord:
    fields = {"origin": "model", "component": "buffer", "layer": 4, "type": "KeyError"} | what
    return ErrorRecord(message=message, step=step, count=count, time=START + step, **fields)  # type: ignore[arg-type]


def test_errors_are_grouped_by_kind_and_place(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path)
    opened.errors([record(traceback="line 1"), record("other", layer=6, traceback="line 1")])
    opened.errors([record("gone again", step=5, count=3, traceback="line 1")])
    opened.errors([record(step=6, traceback="line 2")])
    end(opened)
    with RunHistory(path) as history:
        first, other, elsewhere = history.errors()
    assert first["count"] == 4 and (first["first_step"], first["last_step"]) == (1, 5)
    assert first["message"] == "gone" and first["over_time"] == [(1, 1), (5, 3)]
    assert other["layer"] == 6 and elsewhere["traceback"] == "line 2"


def test_errors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmr_monitor_callbacks.history import happenings as module

    monkeypatch.setattr(module, "_ERRORS_KEPT", 10)
    monkeypatch.setattr(module, "_KINDS_KEPT", 5)
    path = tmp_path / "history.sqlite"
    opened = store(path)
    for step in range(40):
        opened.errors([record(f"error {step % 8}", step)])
    end(opened)
    with RunHistory(path) as history:
        found = history.errors()
        assert len(found) == 5 and sum(error["count"] for error in found) == 25
        assert sum(len(error["over_time"]) for error in found) == 10


def test_the_limit_of_age(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(2 * BLOCK + 10))
    before, after = prune(path, limits(max_age=500.0), START + 2 * BLOCK)
    assert after.size < before.size
    assert before.exact - after.exact == 1500
    with RunHistory(path) as history:
        steps = history.series("step_time").step
        # a block goes when all of it is too old
        assert steps[0] == 1500 and steps[-1] == 2 * BLOCK + 9


def limits(**given: float) -> HistoryConfig:
    unlimited = {"raw_windows": 10**12, "max_age": None, "max_size_mb": None}
    return HistoryConfig(**(unlimited | given))  # type: ignore[arg-type]


def test_the_limit_of_number_leaves_summaries(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(4 * BLOCK))
    prune(path, limits(raw_windows=BLOCK), START)
    with RunHistory(path) as history:
        series = history.series("step_time")
        assert series.count.tolist() == [10.0] * 200 + [1.0] * (2 * BLOCK)
        assert series.windows.tolist() == series.count.tolist()
        assert series.count.sum() == 4 * BLOCK == history.windows()
        assert history.series("step_time", max_points=10).windows.max() == 1000
        # of an old step the newest summary that ended by then, and its newest value
        assert [history.at(step).step for step in (9, 508, 509, 2001)] == [9, 499, 509, 2001]
        assert history.at(508).value("step_time") == 499.0
        # a range decides by the time of a summary's last window
        old = history.series("step_time", time_range=(START + 1990, START + 2001))
        assert old.step.tolist() == [1999, 2000, 2001] and old.windows.tolist() == [10, 1, 1]


def test_the_limit_of_size(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    rng = np.random.default_rng(2)
    opened = store(path)
    for step in range(4 * BLOCK):
        values = {("states_stored", layer): rng.random() for layer in range(12)}
        opened.window(snapshot(step, values, layers=tuple(range(12))))
        opened.tidy(START)
    end(opened)
    before, after = prune(path, limits(max_size_mb=0.55), START)
    assert after.size <= 0.55 * 2**20 < before.size
    assert path.stat().st_size <= 0.56 * 2**20
    assert (before.exact, before.summarised) == (4 * BLOCK, 0)
    assert after.exact + after.summarised == 4 * BLOCK and after.summarised > 0
    with RunHistory(path) as history:
        series = history.series("states_stored", 3)
        assert series.step[-1] == 4 * BLOCK - 1
        assert series.count.sum() == 4 * BLOCK  # some in summaries
        assert series.count.max() > 1


def test_the_limit_of_size_is_of_windows_that_earlier_sessions_left_too(tmp_path: Path) -> None:
    """Sessions of fewer windows than are packed: they were kept for ever."""
    path = tmp_path / "history.sqlite"
    config = limits(max_size_mb=0.5)
    for session in range(6):
        opened = store(path, config)
        for step in range(session * 1500, session * 1500 + 1500):
            values = {("states_stored", layer): step for layer in range(12)}
            opened.window(snapshot(step, values, layers=tuple(range(12))))
            opened.tidy(START)
        end(opened)
    end(store(path, config))
    with RunHistory(path) as history:
        steps = history.series("states_stored", 3).step
        assert 0 < steps[0] < 6 * 1500 - 1000 and steps.tolist() == list(range(steps[0], 9000))
    assert path.stat().st_size <= 0.5 * 2**20


def test_windows_deleted_for_their_age_are_not_packed(tmp_path: Path) -> None:
    """Another stage's packing deletes them; a block of the few left was counted as full."""
    path = tmp_path / "history.sqlite"
    opened = store(path, limits(max_age=10.0))
    for step in range(2 * BLOCK - 1):
        opened.window(snapshot(step, {"step_time": 1.0}, stage="val"))
        opened.tidy(START + step)
    for step in range(2 * BLOCK, 4 * BLOCK):
        opened.window(snapshot(step, {"step_time": 1.0}))
        opened.tidy(START + step)
    for step in range(4 * BLOCK, 4 * BLOCK + 3):
        opened.window(snapshot(step, {"step_time": 1.0}, stage="val"))
        opened.tidy(START + step)
    end(opened)
    with RunHistory(path) as history:
        assert len(history.series("step_time", stage="val")) == 4 == history.windows("val")


def test_limits_are_applied_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path, HistoryConfig(raw_windows=BLOCK))
    for step in range(4 * BLOCK):
        opened.window(snapshot(step, {"step_time": 1.0}))
        opened.tidy(START)
    end(opened)
    with RunHistory(path) as history:
        assert len(history.series("step_time")) == 2 * (BLOCK // 10) + 2 * BLOCK


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "foreign", "newer", "cut", "garbled"])
def test_what_is_no_store_is_said_to_be(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "history.sqlite"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("I am no database, but long enough to look at." * 40)
    elif kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
        connection.close()
    elif kind in ("newer", "cut", "garbled"):
        filled(path, range(50))
        data = bytearray(path.read_bytes())
        if kind == "newer":
            with sqlite3.connect(path) as connection:
                connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
            connection.close()
        elif kind == "cut":
            path.write_bytes(data[: len(data) // 3])
        else:
            data[4096:20480] = b"\xff" * (20480 - 4096)
            path.write_bytes(data)
    said = {
        "missing": "there is no history at",
        "empty": "is empty: the run has ended no window yet",
        "text": "cannot be read .file is not a database.",
        "foreign": "is a database, but not a history of this monitor",
        "newer": f"is of version {schema.VERSION + 1}, and this version of .* knows versions up to",
        "cut": "cannot be read .database disk image is malformed.",
        "garbled": "cannot be read .database disk image is malformed.",
    }[kind]

    def read() -> None:
        with RunHistory(path) as history:
            history.series("step_time")

    with pytest.raises(HistoryError, match=said):
        read()


def test_a_store_that_is_locked_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY", 0.1)
    path = tmp_path / "history.sqlite"
    filled(path, range(3))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(HistoryError, match="is locked by another process"):
            RunHistory(path)
    finally:
        other.close()


def test_a_read_only_copy_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(3))
    assert [p.name for p in tmp_path.iterdir()] == ["history.sqlite"]  # one file again
    with RunHistory(tmp_path) as history:
        assert history.series("step_time").value.tolist() == [0.0, 1.0, 2.0]
    assert not any(p.name.endswith("-journal") for p in tmp_path.iterdir())


def test_requests_reach_the_session_that_runs_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    filled(path, range(3))
    early = requests.ask(path, {"kind": "acknowledge", "rule": "early"}, START - 5)
    opened = store(path)
    number = requests.ask(path, {"kind": "acknowledge", "rule": "slow"}, START + 1)
    assert not requests.is_taken(path, number, 0.0)
    assert opened.requests(START + 2) == [{"kind": "acknowledge", "rule": "slow"}]
    assert opened.requests(START + 3) == []
    assert requests.is_taken(path, number, 0.0)
    assert not requests.is_taken(path, early, 0.0)
    end(opened)


def test_a_process_that_died_is_said_to_have(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    opened = store(path, host=__import__("socket").gethostname())
    opened.window(snapshot(0, {"step_time": 1.0}))
    with RunHistory(path) as history:
        assert history.sessions()[0]["state"] == "running"
    opened.connection.execute("UPDATE sessions SET pid = 999999999")
    opened.connection.close()
    with RunHistory(path) as history:
        assert history.sessions()[0]["state"] == "died"


def test_a_folder_above_runs_stands_for_the_newest_run(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        folder = tmp_path / "logs" / f"version_{number}"
        opened = store(folder / "history.sqlite")
        opened.window(snapshot(number, {"step_time": 1.0}))
        end(opened)
        os.utime(folder / "history.sqlite", (START + number, START + number))
    with RunHistory(tmp_path) as history:
        assert history.last() == (10, START + 10)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(HistoryError, match=r"there is no history\.sqlite in or under"):
        RunHistory(tmp_path / "nothing")


def test_another_ranks_file_that_is_damaged_is_an_error_of_that_rank(tmp_path: Path) -> None:
    opened = store(tmp_path / "history.sqlite")
    opened.window(snapshot(1, {"step_time": 1.0}))
    end(opened)
    (tmp_path / "history.rank_003.sqlite").write_bytes(b"no store at all" * 100)
    with RunHistory(tmp_path) as history:
        [error] = history.errors()
        assert report_of(history)["errors"][0]["rank"] == 3
    assert (error["rank"], error["type"]) == (3, "HistoryError")
    assert "history.rank_003.sqlite" in error["message"]
