"""The writer: off the calling thread, patient with a file that cannot be written."""

from __future__ import annotations

import os
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cmr_monitor_callbacks import HistoryConfig, RunHistory
from cmr_monitor_callbacks.history import HistoryWriter, RunInfo, schema
from cmr_monitor_callbacks.history import writer as module
from tests.histories import START, filled_snapshot, snapshot


def make(path: Path | None, **settings: object) -> HistoryWriter:
    return HistoryWriter(path, HistoryConfig(), RunInfo, lambda: START, **settings)  # type: ignore[arg-type]


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "not in time"
        threading.Event().wait(0.01)


def steps_in(path: Path) -> list[int]:
    with RunHistory(path) as history:
        return history.series("step_time").step.tolist()


def texts(writer: HistoryWriter) -> str:
    return "; ".join(str(failure) for failure in writer.take_failures())


def test_windows_are_written_on_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()
    window = module.HistoryStore.window

    def seen(self: module.HistoryStore, *args: object) -> None:
        threads.add(threading.get_ident())
        window(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(module.HistoryStore, "window", seen)
    path = tmp_path / "deep" / "history.sqlite"
    writer = make(path)
    for step in range(20):
        writer.window(filled_snapshot(step))
    assert writer.flush()
    assert steps_in(path) == list(range(20))  # while it is open
    writer.close("completed")
    assert threading.get_ident() not in threads and len(threads) == 1
    assert not {t.ident for t in threading.enumerate()} & threads
    assert [p.name for p in path.parent.iterdir()] == ["history.sqlite"]


def test_a_locked_file_is_waited_for_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY", 0.05)
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.05)
    path = tmp_path / "history.sqlite"
    writer = make(path)
    writer.window(filled_snapshot(0))
    assert writer.flush()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for step in (1, 2, 3):
        writer.window(filled_snapshot(step))
    assert not writer.flush(5.0)
    assert "locked" in texts(writer)
    other.execute("ROLLBACK")
    other.close()
    until(lambda: not writer._queue)
    writer.close("completed")
    assert steps_in(path) == [0, 1, 2, 3] and writer.lost == 0


def test_what_waits_too_long_is_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PENDING", 5)
    blocked = tmp_path / "file"
    blocked.write_text("where a folder should be")
    writer = make(blocked / "history.sqlite")
    for step in range(20):
        writer.window(filled_snapshot(step))
    writer.flush(1.0)
    writer.close("completed", timeout=1.0)
    assert writer.lost == 20
    said = texts(writer)
    assert "Not a directory" in said or "File exists" in said
    assert "are lost: the run has ended" in said


def test_a_file_that_is_deleted_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    writer = make(path)
    writer.window(filled_snapshot(0))
    assert writer.flush()
    for part in tmp_path.iterdir():
        part.unlink()
    writer.window(filled_snapshot(1))
    assert writer.flush()
    assert "was deleted; a new one is begun" in texts(writer)
    assert steps_in(path) == [1]
    writer.close("completed")


@pytest.mark.parametrize("kind", ["text", "newer", "foreign"])
def test_a_file_that_cannot_be_used_is_set_aside_not_lost(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "history.sqlite"
    if kind == "text":
        path.write_bytes(b"mine " * 1000)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
            if kind == "newer":
                connection.execute(f"PRAGMA application_id = {schema.APPLICATION}")
                connection.execute("PRAGMA user_version = 99")
        connection.close()
    before = path.read_bytes()
    writer = make(path)
    for step in range(3):
        writer.window(filled_snapshot(step))
    until(lambda: writer.flush())
    said = texts(writer)
    assert "it is called history.sqlite.unusable-1 now" in said
    assert (tmp_path / "history.sqlite.unusable-1").read_bytes() == before
    assert steps_in(path) == [0, 1, 2]
    writer.close("completed")


def test_a_store_that_is_damaged_in_a_run_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    writer = make(path)
    for step in range(50):
        writer.window(filled_snapshot(step))
    writer.close("completed")
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    for step in range(50, 53):
        writer.window(filled_snapshot(step))
    until(lambda: writer.flush())
    assert "it is called history.sqlite.unusable-1 now" in texts(writer)
    assert steps_in(path) == [50, 51, 52]
    writer.close("completed")


def test_another_process_that_writes_the_same_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    host = __import__("socket").gethostname()
    first = HistoryWriter(path, HistoryConfig(), lambda: RunInfo(host=host), lambda: START)
    first.window(filled_snapshot(0))
    assert first.flush()
    child = os.fork()
    if child == 0:  # another process, as far as the store knows
        second = HistoryWriter(path, HistoryConfig(), lambda: RunInfo(host=host), lambda: START)
        second.window(filled_snapshot(100))
        second.flush()
        found = texts(second)
        second.close("completed")
        os._exit(0 if f"process {os.getppid()} writes to" in found else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    first.window(filled_snapshot(1))
    first.close("completed")
    with RunHistory(path, session=1) as mine, RunHistory(path, session=2) as others:
        assert mine.series("step_time").step.tolist() == [0, 1]
        assert others.series("step_time").step.tolist() == [100]


def test_a_forked_process_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    writer = make(path)
    writer.window(filled_snapshot(0))
    assert writer.flush()
    child = os.fork()
    if child == 0:
        writer.close("ended")
        os._exit(0 if writer.store is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.window(filled_snapshot(1))
    writer.close("completed")
    assert steps_in(path) == [0, 1]
    with RunHistory(path) as history:
        assert [s["outcome"] for s in history.sessions()] == ["completed"]


def test_a_pickled_writer_is_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    writer = HistoryWriter(path, HistoryConfig(), RunInfo, time.time)
    writer.window(filled_snapshot(0))
    other = pickle.loads(pickle.dumps(writer))
    assert other.store is None and other.path == path
    writer.close("completed")
    other.window(filled_snapshot(1))
    other.close("completed")
    assert steps_in(path) == [0, 1]


def test_in_memory_the_newest_windows_are_kept_without_a_thread() -> None:
    before = set(threading.enumerate())
    writer = make(None, in_memory=10)
    for step in range(100):
        writer.window(filled_snapshot(step))
    assert set(threading.enumerate()) <= before
    assert writer.store is not None
    steps = RunHistory(writer.store).series("step_time").step.tolist()
    assert steps == list(range(steps[0], 100)) and 10 <= len(steps) < 20
    writer.close("completed")
    assert RunHistory(writer.store).series("step_time").step[-1] == 99


def test_a_window_that_makes_the_writer_fail_is_said_and_the_next_is_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.sqlite"
    writer = make(path)
    writer.window(snapshot(0, {"step_time": 1.0}), transitions=[object()])  # type: ignore[list-item]
    writer.window(filled_snapshot(1))
    assert writer.flush()
    assert "AttributeError" in str([type(f).__name__ for f in writer.take_failures()])
    assert writer.lost == 1
    writer.close("completed")
    assert steps_in(path) == [1]
