"""Percentiles of each layer's calls, of several ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

STEPS, WINDOW, NEW = 12, 4, 9
"""Steps, those of a window, and the step at which rank 1 gets a layer."""
LAYERS: tuple[tuple[Any, ...], ...] = ((4, "deep"), ("deep", 7))
"""Of each rank; ``deep`` is on both."""
HELD = (4, "deep", 7, "late")


def drawn(rank: int, layer: Any, step: int) -> list[float]:
    """Durations of a layer's calls in a step."""
    random = np.random.default_rng((rank, HELD.index(layer), step))
    found: list[float] = (random.lognormal(0.0, 1.0, 5) * 10.0 ** -HELD.index(layer)).tolist()
    return found


def expected(layer: Any, q: float, first: int = 0) -> float:
    """The exact percentile over all ranks."""
    steps = range(max(first, NEW if layer == "late" else 0), STEPS)
    ranks = [r for r in (0, 1) if layer in LAYERS[r] or (layer == "late" and r == 1)]
    given = [x for r in ranks for step in steps for x in drawn(r, layer, step)]
    return float(np.quantile(given, q, method="lower"))


def _run(rank: Rank, reduction: str, on: tuple[bool, bool]) -> dict[str, Any]:
    with rank.together():
        model = nn.Module()
        probes = [CMRProbe(layer) for layer in LAYERS[rank.rank]]
        model.probes = probes  # type: ignore[assignment]
        settings = {"log_every_n_steps": WINDOW, "on_monitor_error": "raise"}
        monitor = CMRPerformanceMonitor(
            {**settings, "reduction": reduction, "layer_quantiles": on[rank.rank]},
            alert_config={"enable_alerts": False},
        )
        monitor.join_ranks()
        monitor.attach(model)
        monitor.agree_on_layers()
        for step in range(STEPS):
            if step == NEW and rank.rank == 1:
                probes.append(CMRProbe("late"))
                monitor.attach(model)
            with monitor.track_performance():
                for probe in probes:
                    for seconds in drawn(rank.rank, probe.layer, step):
                        probe.capture(2, 2, 1, seconds)
        monitor.flush()
        snapshot, exchange = monitor.snapshot, monitor._ranks.exchange
        assert exchange is not None
        state, length = monitor.state_dict(), exchange.payload_length
        monitor.leave_ranks()
        monitor.detach()
        again = CMRPerformanceMonitor({**settings, "layer_quantiles": True})
        again.load_state_dict(state)
        after = again.snapshot
    return {
        "run": {
            (layer, q): [s.value(f"capture_time_p{q}", layer=layer) for s in (snapshot, after)]
            for layer in HELD
            for q in (50, 95, 99)
        },
        "window": {
            layer: snapshot.value("capture_time_p95", layer=layer, over="window") for layer in HELD
        },
        "whole": snapshot.value("capture_time_p50"),
        "failures": monitor.failures,
        "bytes": 8 * length,
    }


@pytest.mark.parametrize("reduction", ["flat", "hierarchical"])
def test_within_two_percent_over_all_ranks(tmp_path: Path, reduction: str) -> None:
    for one in results(_run, 2, tmp_path / "job", reduction, (True, True)):
        for (layer, q), values in one["run"].items():
            exact = expected(layer, q / 100)
            assert values == pytest.approx([exact, exact], rel=0.02), (layer, q)
        for layer, value in one["window"].items():
            assert value == pytest.approx(expected(layer, 0.95, STEPS - WINDOW), rel=0.02), layer
        assert one["failures"] == 0


def test_one_rank_without_them_is_no_data_on_any(tmp_path: Path) -> None:
    both = results(_run, 2, tmp_path / "job", "flat", (True, False))
    for one in both:
        assert all(math.isnan(x) for values in one["run"].values() for x in values)
        assert one["whole"] > 0
        assert one["failures"] == 0
    assert both[0]["bytes"] == both[1]["bytes"] <= 32 * 1024
