"""Exports, read back with csv, pandas and pyarrow, against what was put in."""

from __future__ import annotations

import csv
import math
import struct
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from cmr_monitor_callbacks import HistoryError, RunHistory
from cmr_monitor_callbacks.reports.stretch import iso
from cmr_monitor_callbacks.reports.tables import export
from tests.histories import START, snapshot, store
from tests.reported import HOSTILE, filled

NAMES = ("time_series", "health", "alerts", "errors", "resources")
AWKWARD = (0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 1e16 + 2, math.inf, -math.inf)


def exported(root: Path, form: str, time_range: str | None = None) -> Path:
    with RunHistory(root) as history:
        paths = export(history, root / form, time_range, form)
    assert [path.name for path in paths if path.stem in NAMES] == [f"{n}.{form}" for n in NAMES]
    return root / form


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def awkward(root: Path) -> list[float]:
    """A run whose numbers need every digit; returns them."""
    numbers = [*AWKWARD, math.nan, *np.random.default_rng(0).standard_normal(40).tolist()]
    opened = store(root / "history.sqlite")
    for i, value in enumerate(numbers):
        values = {"step_time": value, ("step_time", "b"): value, "states_stored": float(i)}
        opened.window(snapshot(i, values, layers=("b",), time=START + i / 8))
    return numbers


def test_every_number_reads_back_bitwise_from_csv(tmp_path: Path) -> None:
    numbers = awkward(tmp_path)
    folder = exported(tmp_path, "csv")
    rows = rows_of(folder / "time_series.csv")
    assert [int(row["step"]) for row in rows] == list(range(len(numbers)))
    assert [row["time"] for row in rows] == [iso(START + i / 8) for i in range(len(numbers))]
    frame = pandas.read_csv(folder / "time_series.csv")
    for column in ("step_time", "step_time/layer_b"):
        for i, value in enumerate(numbers):
            if math.isnan(value):
                assert rows[i][column] == "" and math.isnan(frame[column][i])
            else:
                assert bits(float(rows[i][column])) == bits(value) == bits(frame[column][i])
    assert pandas.to_datetime(frame["time"]).dt.tz is not None


def test_every_number_reads_back_bitwise_from_parquet(tmp_path: Path) -> None:
    numbers = awkward(tmp_path)
    table = pyarrow.parquet.read_table(exported(tmp_path, "parquet") / "time_series.parquet")
    assert table.schema.field("step").type == pyarrow.int64()
    assert table.schema.field("time").type == pyarrow.timestamp("us", tz="UTC")
    for column in ("step_time", "step_time/layer_b"):
        found = table[column].to_pylist()
        for value, read in zip(numbers, found, strict=True):
            assert read is None if math.isnan(value) else bits(read) == bits(value)
    frame = table.to_pandas()
    assert frame["time"].map(lambda t: t.timestamp()).tolist() == [
        START + i / 8 for i in range(len(numbers))
    ]


def frame_of(folder: Path, name: str, form: str) -> Any:
    path = folder / f"{name}.{form}"
    return pandas.read_csv(path) if form == "csv" else pandas.read_parquet(path)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_health_alerts_errors_and_resources(form: str, tmp_path: Path) -> None:
    filled(tmp_path / "history.sqlite", 60)
    folder = exported(tmp_path, form)
    health = frame_of(folder, "health", form)
    capture = health[health["component"] == "capture"]
    assert capture["step"].tolist() == list(range(4, 300, 5))
    assert capture["status"].tolist()[::20] == ["healthy", "healthy", "warning"]
    assert capture["score"].tolist()[-1] == 40.0
    assert {"system", "memory_buffer", "retrieval_system"} <= set(health["component"])
    errors = frame_of(folder, "errors", form)
    assert errors["count"].tolist() == [4, 2] and errors["type"].tolist() == ["KeyError", "OSError"]
    assert errors["layer"].map(str).tolist()[0] in ("2", "2.0")
    alerts = frame_of(folder, "alerts", form)
    assert alerts["name"].tolist() == ["pending", "firing", "firing", "resolved", "pending"]
    assert alerts["value"].tolist() == [0.25] * 5 and alerts["step"].tolist()[1] == 154
    resources = frame_of(folder, "resources", form)
    assert resources["memory_size_mb"].tolist() == [float(s) for s in range(10, 299, 10)]
    if form == "parquet":
        assert alerts["time"].iloc[0].timestamp() == START + 149
    else:
        assert alerts["time"].iloc[0] == iso(START + 149)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_where_nothing_happened_the_columns_are_there(form: str, tmp_path: Path) -> None:
    for folder, eventful in (("quiet", False), ("loud", True)):
        filled(tmp_path / folder / "history.sqlite", 20, eventful=eventful)
        exported(tmp_path / folder, form)
    for name in NAMES:
        quiet = frame_of(tmp_path / "quiet" / form, name, form)
        loud = frame_of(tmp_path / "loud" / form, name, form)
        if name == "resources":
            assert list(quiet.columns) == ["step", "time"] and len(quiet) == 0
            continue
        assert list(quiet.columns) == list(loud.columns)
        assert len(quiet) == len(loud) or len(quiet) == 0 < len(loud)
    if form == "parquet":  # files of several runs are one data set
        schemas = [
            pyarrow.parquet.read_schema(tmp_path / folder / form / "errors.parquet")
            for folder in ("quiet", "loud")
        ]
        assert schemas[0].equals(schemas[1])


def test_a_run_without_a_window_exports_empty_tables(tmp_path: Path) -> None:
    store(tmp_path / "history.sqlite")
    folder = exported(tmp_path, "csv")
    for name in NAMES:
        assert len(pandas.read_csv(folder / f"{name}.csv")) == 0


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_text_is_a_formula(start: str, tmp_path: Path) -> None:
    text = f"{start}cmd|' /C calc'!A0"
    filled(tmp_path / "history.sqlite", 20, (text,), text=text)
    folder = exported(tmp_path, "csv")
    cells = [
        cell
        for name in NAMES
        for row in rows_of(folder / f"{name}.csv")
        for pair in row.items()
        for cell in pair
    ]
    assert f"'{text}" in cells
    for cell in cells:
        if cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n"):
            float(cell)  # a number below 0 stays one
    table = pyarrow.parquet.read_table(exported(tmp_path, "parquet") / "errors.parquet")
    assert table["message"].to_pylist() == [text] * 2, "no spreadsheet opens it: as it is"


def test_texts_with_quotes_commas_and_lines_read_back(tmp_path: Path) -> None:
    text = f'a "quoted", text\nof\r\nlines; {HOSTILE}'
    filled(tmp_path / "history.sqlite", 20, text=text)
    folder = exported(tmp_path, "csv")
    assert [row["message"] for row in rows_of(folder / "errors.csv")] == [text] * 2
    assert pandas.read_csv(folder / "alerts.csv")["rule"][0] == text


def test_other_stages_have_files_of_their_own(tmp_path: Path) -> None:
    opened = store(tmp_path / "history.sqlite")
    opened.window(snapshot(4, {"step_time": 0.1}))
    opened.window(snapshot(4, {"states_stored": 3.0}, stage="val"))
    folder = exported(tmp_path, "csv")
    [row] = rows_of(folder / "time_series_val.csv")
    assert float(row["states_stored"]) == 3.0


def test_a_range_is_exported_alone(tmp_path: Path) -> None:
    filled(tmp_path / "history.sqlite", 60)
    rows = rows_of(exported(tmp_path, "csv", "1m") / "time_series.csv")
    assert [int(row["step"]) for row in rows] == list(range(239, 300, 5))


@pytest.mark.parametrize("missing", ["pyarrow", "pyarrow.parquet"])
def test_without_pyarrow_it_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "history.sqlite", 5)
    monkeypatch.setitem(sys.modules, missing, None)
    with RunHistory(tmp_path) as history:
        with pytest.raises(HistoryError, match="Parquet needs pyarrow: pip install pyarrow"):
            export(history, tmp_path / "out", form="parquet")
        assert not (tmp_path / "out").exists()
        export(history, tmp_path / "out")


class NoPandas(MetaPathFinder):
    """Pandas is not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(f"No module named {fullname!r}")


def test_without_pandas_only_the_frame_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "history.sqlite", 5)
    # None in its place would do for Python alone: pyarrow's compiled code takes that for a module
    for name in [name for name in sys.modules if name.partition(".")[0] == "pandas"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoPandas(), *sys.meta_path])
    with RunHistory(tmp_path) as history:
        with pytest.raises(HistoryError, match="needs pandas: pip install pandas"):
            history.frame()
        for form in ("csv", "parquet"):
            export(history, tmp_path / form, form=form)


def test_another_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="must be csv or parquet, got 'xlsx'"):
        export(RunHistory(filled(None, 5)), tmp_path, form="xlsx")
