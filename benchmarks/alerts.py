"""What judging rules costs: 100 rules on 5,000 series in all, and how it grows to 500,000.

    python benchmarks/alerts.py [--json FILE]

Rules are a mix: plain thresholds by layer, three severities, ``for`` in steps, windows and seconds,
``m_of_n``, ``keep_firing_for``, comparisons with the series' own past and among ranks, reductions.
One in a hundred series is wrong at a time. Figures are the median of the windows after the first,
which makes the plan; ratios compare sizes within this one run. Detectors and comparisons with a
recorded run are measured beside plain thresholds on the same series, window by window.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.health import AlertEngine, GivenNumbers, compile_rules
from cmr_monitor_callbacks.health.baseline import Baseline
from cmr_monitor_callbacks.packed import METRIC_ROW

METRICS = ("storage_efficiency", "utilization_rate", "avg_retrieval_time", "eviction_rate")
SHAPES: tuple[dict[str, Any], ...] = (
    {"thresholds": {"warning": {"fire": 0.9, "recover": 0.8}}, "for": "3 windows"},
    {"thresholds": {"warning": 0.9, "error": 0.95, "critical": 0.99}, "for": "50 steps"},
    {"thresholds": {"error": 0.9}, "for": "30s", "keep_firing_for": "60s"},
    {"thresholds": {"error": 0.9}, "m_of_n": [3, 5]},
    {"thresholds": {"warning": 3.0}, "compare": {"vs": "self.ewma"}, "no_data": {"mode": "ok"}},
)


def rules(count: int, ranked: int) -> AlertConfig:
    """So many rules, of which some compare ranks."""
    out: dict[str, Any] = {}
    for i in range(count):
        shape = dict(SHAPES[i % len(SHAPES)])
        out[f"rule_{i:03d}"] = {
            "metric": METRICS[i % len(METRICS)],
            "select": {"layer": "*"},
            "condition": ">",
            **shape,
        }
    for i in range(ranked):
        out[f"ranks_{i:03d}"] = {
            "metric": "step_time",
            "select": {"rank": "*"},
            "compare": {"vs": "ranks.median"},
            "condition": ">",
            "thresholds": {"warning": {"fire": 1.5, "recover": 1.2}},
        }
    return parse(AlertConfig, {"rules": out}, "alerts")


def measure(layers: int, windows: int, count: int = 100, ranked: int = 4) -> dict[str, float]:
    """Seconds per window, and how many series were judged."""
    engine = AlertEngine(compile_rules(rules(count - ranked, ranked)))
    random = np.random.default_rng(0)
    numbers = GivenNumbers({}, layers=tuple(range(layers)), ranks=64)
    table, by_rank = numbers.table("window", "layer"), numbers.table("window", "rank")
    rows = [METRIC_ROW[name] for name in METRICS]
    seconds = []
    for window in range(windows):
        values = random.uniform(0.2, 0.8, (len(rows), 1 + layers))
        wrong = random.random(values.shape) < 0.01
        table[rows] = np.where(wrong, 0.97, values)
        by_rank[METRIC_ROW["step_time"]] = random.uniform(0.1, 0.12, by_rank.shape[1])
        start = time.perf_counter()
        engine.evaluate(numbers, step=50 * window + 49, now=10.0 * window, window=window + 1)
        seconds.append(time.perf_counter() - start)
    series = (count - ranked) * layers + ranked * 64
    return {
        "series": float(series),
        "first_window_ms": 1e3 * seconds[0],
        "window_ms": 1e3 * statistics.median(seconds[1:]),
        "open": float(len(engine.open())),
    }


def beside_plain(layers: int, windows: int) -> dict[str, float]:
    """What a detector, and a recorded run, add to a plain threshold on the same series."""
    plain = {"metric": METRICS[0], "select": {"layer": "*"}, "thresholds": {"error": 10.0}}
    steps = np.arange(windows) * 50 + 49
    recorded = {
        (METRICS[0], layer, None, "window"): (steps, np.full(windows, 0.5))
        for layer in range(layers)
    }
    kinds: dict[str, Any] = {
        "plain": plain,
        "detector": {**plain, "detector": {"name": "telemetry"}},
        "baseline": {**plain, "compare": {"vs": "baseline"}},
    }
    engines = {
        name: AlertEngine(
            compile_rules(parse(AlertConfig, {"rules": {name: rule}}, "alerts")), Baseline(recorded)
        )
        for name, rule in kinds.items()
    }
    random = np.random.default_rng(0)
    numbers = GivenNumbers({}, layers=tuple(range(layers)))
    row = numbers.table("window", "layer")[METRIC_ROW[METRICS[0]]]
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for window in range(windows):
        row[:] = random.normal(0.5, 0.01, len(row))
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.evaluate(numbers, step=50 * window + 49, now=10.0 * window, window=window + 1)
            seconds[name].append(time.perf_counter() - start)
    cost = {name: 1e9 * statistics.median(each[1:]) / layers for name, each in seconds.items()}
    return {
        "series": float(layers),
        **{f"{name}_ns_per_series": value for name, value in cost.items()},
        "detector_added_ns_per_series": cost["detector"] - cost["plain"],
        "detector_to_plain": cost["detector"] / cost["plain"],
        "baseline_to_plain": cost["baseline"] / cost["plain"],
    }


def show_beside(rows: list[dict[str, float]]) -> None:
    """Print what detectors and recorded runs add."""
    heads = ("plain ns", "detector", "baseline", "added ns")
    print(f"{'series':>8} {' '.join(f'{head:>9}' for head in heads)} {'ratio':>6}")
    for one in rows:
        print(
            f"{one['series']:8.0f} {one['plain_ns_per_series']:9.0f} "
            f"{one['detector_ns_per_series']:9.0f} {one['baseline_ns_per_series']:9.0f} "
            f"{one['detector_added_ns_per_series']:9.0f} {one['detector_to_plain']:6.1f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    results = [
        measure(layers, windows) for layers, windows in ((1, 200), (50, 200), (520, 60), (5200, 20))
    ]
    base = results[1]
    print(f"{'series':>8} {'first ms':>9} {'window ms':>10} {'us/series':>10} {'open':>6}")
    for one in results:
        one["growth"] = (one["window_ms"] / base["window_ms"]) / (one["series"] / base["series"])
        each = 1e3 * one["window_ms"] / one["series"]
        print(
            f"{one['series']:8.0f} {one['first_window_ms']:9.1f} {one['window_ms']:10.3f} "
            f"{each:10.3f} {one['open']:6.0f}"
        )
    print(f"growth of time / growth of series, to the largest: {results[-1]['growth']:.2f}")
    beside = [beside_plain(layers, windows) for layers, windows in ((100, 400), (5000, 100))]
    show_beside(beside)
    if args.json is not None:
        found = {"sizes": results, "beside_plain": beside}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
