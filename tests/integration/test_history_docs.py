"""The manual of the history says what the code does: tables, settings, snippets."""

from __future__ import annotations

import json
import re
import runpy
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmr_monitor_callbacks import HistoryConfig, RunHistory
from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.history import schema
from tests.histories import end, snapshot, store
from tests.integration.test_docs import ROOT, snippets
from tests.needed import needed

PAGE = (ROOT / "docs" / "history.md").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A history with packed windows and others."""
    path = tmp_path / "history.sqlite"
    opened = store(path)
    rng = np.random.default_rng(0)
    for step in range(2 * BLOCK + 10):
        values = {"step_time": rng.lognormal(), ("states_stored", 4): step}
        opened.window(snapshot(step, values, layers=(4,)))
        opened.tidy(0.0)
    end(opened)
    return path


def test_the_figures_are_those_of_the_benchmark() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_history_tables.py"))
    result = json.loads(maker["RESULT"].read_text(encoding="utf-8"))
    for page in maker["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert "<!-- others -->\n| " in text
        assert maker["written"](text, result) == text, page.name


def documented() -> dict[str, list[tuple[str, str]]]:
    """Tables of the page, and their columns' names and types."""
    out = {}
    for table, body in re.findall(r"### `(\w+)`\n(.*?)(?=\n### )", PAGE, re.DOTALL):
        out[table] = re.findall(r"^\| `(\w+)` \| (\w+) \|", body, re.MULTILINE)
    return out


def test_tables_and_columns_are_those_of_the_schema() -> None:
    connection = schema.open_to_write(None)
    tables = [
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    found = {
        table: [(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({table})")]
        for table in tables
    }
    connection.close()
    assert documented() == found
    assert f"`PRAGMA user_version` {schema.VERSION}:" in PAGE
    assert f"`PRAGMA application_id` 0x{schema.APPLICATION:X} " in PAGE


def test_settings_and_defaults_are_those_of_the_config() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGE, re.MULTILINE))
    shown = {None: "null", True: "true", False: "false"}
    expected = {
        name: shown.get(value, str(value)) if not isinstance(value, (int, float)) else str(value)
        for name, value in HistoryConfig().model_dump().items()
    }
    expected["enabled"] = "true"
    assert rows == expected


def test_the_snippets_run_and_other_tools_read_the_same_numbers(path: Path) -> None:
    needed("pandas")
    names: dict[str, Any] = {"path": path}
    *reading, raw = snippets("docs/history.md")
    for snippet in reading:
        exec(snippet, names)
    assert len(names["series"]) == 2 * BLOCK + 10 and names["moment"].step == 500
    assert len(names["lately"]) == 601 and 0 < len(names["frame"]) <= 2 * BLOCK + 10
    exec(raw, names)
    with RunHistory(path) as history:
        np.testing.assert_array_equal(names["values"], history.series("step_time").value)
    assert names["series"].windows.max() == 1 and names["coarse"].windows.max() > 1


def test_the_sql_runs(path: Path) -> None:
    [queries] = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    connection = sqlite3.connect(path)
    found = [connection.execute(query).fetchall() for query in queries.strip().split(";\n")]
    connection.close()
    assert len(found) == 4 and found[2][0][0] == 1
    assert ("states_stored", "4", "states") in found[3]
