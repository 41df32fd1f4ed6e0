"""What the history costs: bytes, the writer's time, and reading, at a million windows.

A window is 100 series (counters, gauges, ratios, noisy times, constants, some with gaps). Real
`Snapshot`s go through the real `HistoryStore`, on one thread, as the writer's thread calls it; what
is read afterwards is compared with NumPy on the numbers that went in. Two stores:

* ``default``: the settings as they are, so of windows older than 100,000 summaries remain;
* ``all exact``: no limits, so every window remains exactly.

Then pairs and triples that alternate in one run, each on a file of its own:

* ``flush``: a window as the writer's thread keeps it, beside a bare insert of the same bytes (WAL,
  ``synchronous = NORMAL``, one commit for each); and the training thread's put into the queue;
* ``others``: the store's window with its share of packing, beside a row for each value (one
  ``executemany``, one commit; as they come, and in a table that a series can be read from), and
  one TensorBoard event that holds all values, flushed as the sink does.

Bytes are of a window's 100 numbers, those without data among them.

    python benchmarks/history.py            # prints a table, writes benchmarks/results/…json
    python benchmarks/history.py --windows 20000 --pairs 2000 --out /tmp     # a quick one
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _beside import flush, others, seconds_of
from _windows import COUNTS, KEYS, SECONDS, START, Array, Snapshots, kind_of, step_of

from cmr_monitor_callbacks import HistoryConfig, RunHistory
from cmr_monitor_callbacks.history import HistoryStore, RunInfo

DEFAULT = HistoryConfig()
ALL_EXACT = HistoryConfig(raw_windows=10**12, max_size_mb=None)
COMPARED = [0, 30, 41, 45, 70, 99]
"""Series whose numbers are remembered: one of each kind."""


def fill(path: Path, windows: int, config: HistoryConfig) -> tuple[dict[str, Any], Array]:
    """Write them; what that took, and the numbers of the series to compare."""
    store = HistoryStore(path, config, RunInfo(), now=START)
    kept = np.empty((len(COMPARED), windows))
    inserts, tidies = np.empty(windows), np.empty(windows)
    for i, row, snapshot in Snapshots().all(windows):
        kept[:, i] = row[COMPARED]
        inserts[i] = seconds_of(store.window, snapshot)
        tidies[i] = seconds_of(store.tidy, snapshot.time)
    store.end(START + SECONDS * windows, "completed")
    store.connection.close()
    return {
        "insert_us": round(1e6 * inserts.mean(), 2),
        "packing_and_retention_us": round(1e6 * tidies.mean(), 2),
        "longest_insert_ms": round(1e3 * inserts.max(), 2),
        "longest_pause_ms": round(1e3 * (inserts + tidies).max(), 2),
        # longer than 1 ms: on a busy machine some that pack nothing are among them
        "packings": int((tidies > 1e-3).sum()),
        "packing_median_ms": round(1e3 * float(np.median(tidies[tidies > 1e-3])), 2),
    }, kept


def sizes(path: Path, windows: int) -> dict[str, Any]:
    """Bytes per value: of the file, and of what each tier holds of the windows that it covers."""
    connection = sqlite3.connect(path)
    by_tier, by_kind = {}, {}
    query = (
        "SELECT b.tier, sum(b.rows * {series}), sum(c.size) FROM blocks b JOIN (SELECT block, "
        "sum(length(data)) AS size FROM columns {which} GROUP BY block) c ON c.block = b.id "
        "GROUP BY b.tier"
    )
    for tier, rows, size in connection.execute(query.format(series=len(KEYS), which="")):
        by_tier[tier] = {"windows": rows * 10**tier // len(KEYS), "bytes": size}
    for kind, count in COUNTS.items():
        names = sorted({key.name for key in KEYS if kind_of(key.name) == kind})
        ids = f"SELECT id FROM series WHERE name IN ({', '.join('?' * len(names))})"
        text = query.format(series=count, which=f"WHERE series IN ({ids})")
        by_kind[kind] = {t: size / rows for t, rows, size in connection.execute(text, names)}[0]
    connection.close()
    size = path.stat().st_size
    return {
        "file_mib": round(size / 2**20, 1),
        "bytes_per_value": round(size / (windows * len(KEYS)), 3),
        "bytes_per_value_in_tier": {
            tier: round(found["bytes"] / found["windows"] / len(KEYS), 3)
            for tier, found in by_tier.items()
        },
        "windows_in_tier": {tier: found["windows"] for tier, found in by_tier.items()},
        "bytes_per_exact_value_by_kind": {kind: round(v, 2) for kind, v in by_kind.items()},
    }


def reading(path: Path, windows: int, kept: Array) -> dict[str, float]:
    """Milliseconds, the least of five; the file is in the system's cache."""

    def least(what: Callable[[RunHistory], Any], times: int = 5) -> float:
        with RunHistory(path) as history:
            return round(1e3 * min(seconds_of(what, history) for _ in range(times)), 2)

    def opened() -> None:
        RunHistory(path).close()

    key = KEYS[70]
    where = {"name": key.name, "layer": key.layer}
    newest = min(1000, windows) * SECONDS - SECONDS / 2
    compare(path, windows, kept)
    return {
        "open": round(1e3 * min(seconds_of(opened) for _ in range(5)), 2),
        "series_last_1000_points": least(lambda h: h.series(**where, time_range=newest)),
        "series_whole": least(lambda h: h.series(**where)),
        "series_whole_2000_points": least(lambda h: h.series(**where, max_points=2000)),
        "at_newest": least(lambda h: h.at(step_of(windows - 1))),
        "at_old": least(lambda h: h.at(step_of(windows // 10))),
        "describe": least(lambda h: h.describe(), 1),
    }


def compare(path: Path, windows: int, kept: Array) -> None:
    """What is read is what NumPy makes of the numbers that went in.

    Raises:
        AssertionError: it is not.
    """
    ends = np.array([step_of(i) for i in range(windows)])
    with RunHistory(path) as history:
        summary = history.describe()
        for i, at in enumerate(COMPARED):
            key, values = KEYS[at], kept[i]
            series = history.series(key.name, key.layer)
            begins = np.searchsorted(ends, series.step) + 1 - series.windows.astype(int)
            assert series.windows.sum() == windows and begins[0] == 0, key
            given = ~np.isnan(values)
            count = np.add.reduceat(given, begins)
            sums = np.add.reduceat(np.where(given, values, 0.0), begins)
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(series.value, sums / count, rtol=1e-12)
            np.testing.assert_array_equal(series.count, count)
            np.testing.assert_array_equal(series.minimum, np.fmin.reduceat(values, begins))
            np.testing.assert_array_equal(series.maximum, np.fmax.reduceat(values, begins))
            exact = series.windows == 1
            np.testing.assert_array_equal(series.value[exact], values[begins[exact]])
            found = summary[key]
            assert found["count"] == given.sum() and found["last"] == values[given][-1], key
            assert found["min"] == np.nanmin(values) and found["max"] == np.nanmax(values), key
            np.testing.assert_allclose(found["mean"], values[given].mean(), rtol=1e-9)
            for window in (windows // 10, windows - 1):
                moment = history.at(ends[window] + 1)
                row = int(np.searchsorted(series.step, ends[window], side="right")) - 1
                assert moment.step == series.step[row], key
                np.testing.assert_equal(moment.value(key.name, key.layer), series.last[row])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    windows = arguments.windows
    result: dict[str, Any] = {
        "command": "python benchmarks/history.py",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "processors": os.cpu_count(),
        "windows": windows,
        "series": len(KEYS),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["flush"] = flush(folder, arguments.pairs)
        result["others"] = others(folder, arguments.pairs)
        for label, config in (("default", DEFAULT), ("all exact", ALL_EXACT)):
            path = folder / label / "history.sqlite"
            writing, kept = fill(path, windows, config)
            result[label] = {
                "writing": writing,
                **sizes(path, windows),
                "reading_ms": reading(path, windows, kept),
            }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "history.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
