"""Exports: what a run's history holds, as CSV or Parquet files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import HEALTH_COMPONENTS
from cmr_monitor_callbacks.health import HealthStatus, reported_name
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.reading import Range
from cmr_monitor_callbacks.history.series import label_of
from cmr_monitor_callbacks.reports.stretch import iso
from cmr_monitor_callbacks.resources import RESOURCES

Columns = dict[str, list[Any]]
"""By name; times are seconds since the Unix epoch, None is no data."""
_ALERTS: Final = (
    *("session", "step", "time", "rule", "metric", "layer", "rank", "component", "name"),
    *("before", "after", "severity", "value", "threshold", "message"),
)
_ERRORS: Final = (
    *("origin", "component", "layer", "rank", "type", "message", "traceback", "count"),
    *("first_step", "last_step", "first_time", "last_time"),
)
_HEALTH: Final = ("step", "time", "component", "score", "status")
_INTEGERS: Final = ("session", "step", "rank", "count", "first_step", "last_step")
_TEXTS: Final = (
    *("rule", "metric", "layer", "component", "name", "before", "after", "severity", "message"),
    *("origin", "type", "traceback", "status"),
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_STATUS: Final = {float(status.code): status.value for status in HealthStatus}


def export(
    history: RunHistory, folder: Path, time_range: Range = None, form: str = "csv"
) -> list[Path]:
    """Write ``time_series``, ``health``, ``alerts``, ``errors`` and ``resources`` to a folder.

    Numbers are written so that they read back as they are; an empty cell is no data. A file has
    its columns also where it has no rows. Times are ISO 8601 in CSV and timestamps in Parquet.

    Args:
        history: of the run.
        folder: made where it is not there.
        time_range: the stretch, see `RunHistory.series`.
        form: ``csv`` or ``parquet``.

    Returns:
        the files, one for each table; of other stages than training one more each.

    Raises:
        HistoryError: Parquet is asked for and pyarrow is not installed, or the store is unreadable.
        OSError: the files cannot be written.
    """
    write = _writer(form)
    stages = [key.stage for key in history.list_series()]
    tables = {"time_series": time_series(history, time_range)}
    for stage in dict.fromkeys(stages):
        if stage not in ("train", RESOURCES):
            tables[f"time_series_{stage}"] = time_series(history, time_range, stage)
    tables["health"] = health(history, time_range)
    tables["alerts"] = _columns(_ALERTS, history.alerts(time_range))
    tables["errors"] = _columns(_ERRORS, history.errors(time_range))
    tables["resources"] = time_series(history, time_range, RESOURCES)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, columns in tables.items():
        paths.append(folder / f"{name}.{form}")
        write(paths[-1], columns)
    return paths


def time_series(history: RunHistory, time_range: Range = None, stage: str = "train") -> Columns:
    """A row for each window: ``step``, ``time``, and a column for each series."""
    step, time, columns = history.table(time_range, stage=stage)
    out: Columns = {"step": step.tolist(), "time": time.tolist()}
    for key, values in columns.items():
        out[label_of(key)] = [None if np.isnan(v) else v for v in values.tolist()]
    return out


def health(history: RunHistory, time_range: Range = None) -> Columns:
    """A row for each window and component that has a status: its score and status."""
    names = ("status", *(f"{name}_status" for name in HEALTH_COMPONENTS))
    scores = ("score", *HEALTH_COMPONENTS)
    keys = [SeriesKey("train", name) for name in (*names, *scores)]
    found = history.many(keys, time_range)
    out: Columns = {name: [] for name in _HEALTH}
    for status, score in zip(names, scores, strict=True):
        codes, points = found[SeriesKey("train", status)], found[SeriesKey("train", score)]
        component = "system" if score == "score" else reported_name(score)
        for i in range(len(codes)):
            if np.isnan(codes.last[i]):
                continue
            out["step"].append(int(codes.step[i]))
            out["time"].append(float(codes.time[i]))
            out["component"].append(component)
            value = points.value[i] if i < len(points) else np.nan
            out["score"].append(None if np.isnan(value) else float(value))
            out["status"].append(_STATUS.get(float(codes.last[i]), "unknown"))
    return out


def _columns(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Columns:
    out: Columns = {name: [] for name in names}
    for row in rows:
        for name in names:
            value = row[name]
            out[name].append(str(value) if name == "layer" and value is not None else value)
    return out


def _is_time(name: str) -> bool:
    return name in ("time", "first_time", "last_time")


def _writer(form: str) -> Callable[[Path, Columns], None]:
    if form == "csv":
        return _write_csv
    if form != "parquet":
        raise HistoryError(f"format must be csv or parquet, got {form!r}")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise HistoryError("Parquet needs pyarrow: pip install pyarrow") from None

    def array(name: str, values: list[Any]) -> Any:
        """Typed by its name, so that files of several runs have one schema."""
        if _is_time(name):
            instants = [round(value * 1e6) for value in values]
            return pyarrow.array(instants, type=pyarrow.timestamp("us", tz="UTC"))
        if name in _INTEGERS:
            return pyarrow.array(values, type=pyarrow.int64())
        # a time series may have the name of a text, such as the code of a status
        if name in _TEXTS and not any(isinstance(value, float) for value in values):
            return pyarrow.array(values, type=pyarrow.string())
        return pyarrow.array(values, type=pyarrow.float64())

    def write(path: Path, columns: Columns) -> None:
        table = {name: array(name, values) for name, values in columns.items()}
        pyarrow.parquet.write_table(pyarrow.table(table), path)

    return write


def _write_csv(path: Path, columns: Columns) -> None:
    told = [
        [iso(value) for value in values] if _is_time(name) else values
        for name, values in columns.items()
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_cells(list(columns)))
        writer.writerows(_cells(row) for row in zip(*told, strict=True))


def _cells(row: Sequence[Any]) -> list[Any]:
    """Text that a spreadsheet would run as a formula is quoted; numbers stay as they are.

    >>> _cells(["=1+1", -1.5, "slow"])
    ["'=1+1", -1.5, 'slow']
    """
    return [f"'{cell}" if isinstance(cell, str) and cell[:1] in _FORMULA else cell for cell in row]
