"""What diagnostics found is kept in the history, bounded, and older files get room for it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import RunHistory
from cmr_monitor_callbacks.history import HistoryStore, schema
from cmr_monitor_callbacks.history.happenings import as_text
from tests.histories import START, end, filled_snapshot, store
from tests.reported import finding, keep_diagnostics


def looked(step: int = 3, count: int = 1) -> dict[str, Any]:
    return {
        "step": step,
        "time": START + step,
        "status": "warning",
        "findings": [finding(layer=i) for i in range(count)],
        "not_available": ["ages"],
        "memory_analysis": {"layers": {"4": {"entries": 7}}},
    }


@pytest.mark.parametrize("in_memory", [False, True])
def test_it_reads_back_as_it_was(tmp_path: Path, in_memory: bool) -> None:
    path = None if in_memory else tmp_path / "history.sqlite"
    opened = store(path)
    for step in (3, 9):
        opened.diagnostics(looked(step), as_text(looked(step)))
    with RunHistory(opened if path is None else path) as history:
        assert history.diagnostics() == [looked(3), looked(9)]
        assert history.diagnostics((START + 4, START + 10)) == [looked(9)]
    end(opened)


def test_the_newest_twenty_stay(tmp_path: Path) -> None:
    opened = store(tmp_path / "history.sqlite")
    for step in range(25):
        keep_diagnostics(opened, step, [])
    end(opened)
    with RunHistory(tmp_path) as history:
        assert [one["step"] for one in history.diagnostics()] == list(range(5, 25))


def test_of_what_is_too_large_the_worst_findings_stay() -> None:
    text = as_text(looked(count=20_000))
    found = json.loads(text)
    assert len(text) < 2**18
    assert found["findings"] == [finding(layer=i) for i in range(500)]
    assert found["not_available"][0] == "ages" and "too many" in found["not_available"][1]
    assert "memory_analysis" not in found
    assert as_text(looked()) == json.dumps(looked())


def of_version_1(path: Path) -> None:
    """A finished run, as the first version wrote it: it had no such table."""
    opened = store(path)
    opened.window(filled_snapshot(0))
    end(opened)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE diagnostics")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


def tables(path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as connection:
        query = "SELECT name, sql FROM sqlite_master ORDER BY name"
        found: list[tuple[str, str]] = connection.execute(query).fetchall()
    connection.close()
    return found


def test_a_file_of_version_1_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    of_version_1(path)
    before = path.read_bytes()
    with RunHistory(path) as history:
        assert history.diagnostics() == []
        assert history.series("step_time").step.tolist() == [0]
    assert path.read_bytes() == before


def test_a_file_of_version_1_that_is_written_becomes_one_of_this_version(tmp_path: Path) -> None:
    path, new = tmp_path / "history.sqlite", tmp_path / "new.sqlite"
    of_version_1(path)
    end(store(new))
    assert tables(path) != tables(new)
    again: HistoryStore = store(path)
    keep_diagnostics(again, 7, [finding()])
    end(again)
    assert tables(path) == tables(new)
    with sqlite3.connect(path) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    assert version == schema.VERSION
    with RunHistory(path) as history:
        assert history.series("step_time").step.tolist() == [0]
        assert [one["step"] for one in history.diagnostics()] == [7]


def test_every_older_version_has_its_step() -> None:
    assert sorted(schema._MIGRATIONS) == list(range(1, schema.VERSION))
