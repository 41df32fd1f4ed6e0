"""torchmetrics' own sync of the Metric classes, under real gloo ranks, against the reference."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cmr_monitor_callbacks.metrics import LayeredMetric
from tests.feeding import differences, over_ranks
from tests.feeding_metrics import CLASSES, LAYERS, answers, feed, reference, wanted
from tests.reference import Buffer, Capture, Event, random_events

pytestmark = pytest.mark.distributed


def events_of(rank: int) -> list[Event]:
    """No total limits: how they add over ranks METRICS.md leaves open."""
    every = random_events(np.random.default_rng(rank), 80 + 40 * rank, LAYERS)
    events = [e for e in every if not isinstance(e, Buffer) or e.layer is not None]
    # layer 11's buffer is on rank 0 alone, and so are the longest and the shortest capture
    events = [e for e in events if rank == 0 or not isinstance(e, Buffer) or e.layer != 11]
    events.append(Buffer(4, 30 + rank, 100))
    if rank == 0:
        events.append(Buffer(11, 7, 70, 700))
        events += [Capture(4, 1, 1, 1, seconds) for seconds in (1e-9, 1e6)]
    return events


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world)
    try:
        out = {cls.__name__: _results_or_failure(cls, rank) for cls in CLASSES}
        Path(folder, f"rank{rank}.json").write_text(json.dumps(out))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _results_or_failure(cls: type[LayeredMetric], rank: int) -> dict[str, Any]:
    """A class that fails must not hide what the others say."""
    try:
        return _results(cls, rank)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def _results(cls: type[LayeredMetric], rank: int) -> dict[str, Any]:
    metric = feed(cls(LAYERS), events_of(rank))
    synced = {name: float(value) for name, value in metric.compute().items()}
    own = cls(LAYERS, sync_on_compute=False)
    own.merge_steps(metric)  # what is left after the sync is this rank's alone
    alone = {name: float(value) for name, value in own.compute().items()}
    again = feed(cls(LAYERS), events_of(rank))
    again.sync()
    states = {
        "lowest": again.lowest.tolist(),
        "highest": again.highest.tolist(),
        "histograms": again.histograms.sum(dim=-1).tolist(),
    }
    again.unsync()
    return {"synced": synced, "alone": alone, "states": states}


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.spawn(_rank, args=(request.param, str(folder)), nprocs=request.param, join=True)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    texts = [(folder / f"rank{rank}.json").read_text() for rank in range(request.param)]
    return [json.loads(text) for text in texts]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_synced_numbers_are_those_of_all_ranks(
    cls: type[LayeredMetric], results: list[dict[str, Any]]
) -> None:
    assert [r[cls.__name__].get("failed") for r in results] == [None] * len(results)
    expected = wanted(cls, over_ranks([events_of(rank) for rank in range(len(results))]))
    assert any(not math.isnan(value) for value in expected.values())
    for result in results:
        assert not differences(answers(result[cls.__name__]["synced"]), expected)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_after_the_sync_each_rank_has_its_own_numbers_again(
    cls: type[LayeredMetric], results: list[dict[str, Any]]
) -> None:
    for rank, result in enumerate(results):
        expected = reference(cls, events_of(rank))
        assert not differences(answers(result[cls.__name__]["alone"]), expected)


def test_gauges_add_over_ranks(results: list[dict[str, Any]]) -> None:
    synced = results[-1]["BufferMetric"]["synced"]
    assert synced["total_entries/layer_11"] == 7
    world = len(results)
    assert synced["total_entries/layer_04"] == 30 * world + world * (world - 1) / 2
    assert synced["capacity/layer_04"] == 100 * world


def test_extremes_and_histograms_merge(results: list[dict[str, Any]]) -> None:
    captures = [
        e.seconds
        for rank in range(len(results))
        for e in events_of(rank)
        if isinstance(e, Capture) and e.seconds is not None
    ]
    for result in results:
        states = result["CaptureMetric"]["states"]
        assert states["lowest"] == [1e-9]
        assert states["highest"] == [1e6]
        assert states["histograms"] == [len(captures)]


def test_rates_add_over_ranks(results: list[dict[str, Any]]) -> None:
    alone = [result["ThroughputMetric"]["alone"]["throughput"] for result in results]
    for result in results:
        synced = result["ThroughputMetric"]["synced"]["throughput"]
        assert synced == pytest.approx(sum(alone), rel=1e-12)
        assert synced > max(alone)
