"""The tree of nodes gives what the flat gather gives, in fewer bytes and with few collectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cmr_monitor_callbacks.catalogue import STATISTICS, Store
from cmr_monitor_callbacks.distributed import (
    Exchange,
    Exchanged,
    ExchangeError,
    Header,
    RankGroup,
    flat,
    reasons,
    tree,
)
from cmr_monitor_callbacks.packed import Packed

pytestmark = pytest.mark.distributed
LAYERS = [1, 2, "x"]
GAUGES = [i for i, s in enumerate(STATISTICS) if s.store is Store.GAUGE]
# two nodes of four; ranks that do not follow their nodes; nodes of one, two and five ranks
NODES = ("aaaabbbb", "abababab", "abbccccc")


def window(rank: int, *, by_layer: bool = False) -> Packed:
    random = np.random.default_rng(rank)
    packed = Packed.empty(1 + len(LAYERS), by_layer=by_layer)
    packed.values[:] = random.integers(0, 1000, packed.values.shape)
    packed.samples[:] = random.integers(0, 3, packed.samples.shape)
    packed.histograms[:] = random.integers(0, 5, packed.histograms.shape)
    packed.extremes[:] = np.sort(random.random(packed.extremes.shape), axis=1)
    if packed.by_layer is not None:
        layers = packed.by_layer
        layers.counts[:] = random.integers(0, 5, layers.counts.shape)
        layers.extremes[:] = np.sort(random.random(layers.extremes.shape), axis=2)
    if rank % 3 == 0:
        packed.values[GAUGES] = np.nan  # it has no buffer
    return packed


def send(exchange: Exchange, rank: int, step: float, reason: str = "") -> Exchanged:
    header = Header(step=step, time=float(rank), stop=float(bool(reason)))
    mine = window(rank, by_layer=exchange.by_layer)
    exchange.launch(header, reasons({"stop": reason}), mine, LAYERS)
    return exchange.take()


def sums(exchanged: Exchanged) -> list[float]:
    """Of the histograms of layers: counts, and the extremes of all."""
    layers = exchanged.statistics.by_layer
    assert layers is not None
    ends = layers.extremes
    return [float(x) for x in (layers.counts.sum(), ends[..., 0].min(), ends[..., 1].max())]


def alike(a: Exchanged, b: Exchanged) -> bool:
    pairs = [(a.statistics, b.statistics), (a.by_rank, b.by_rank)]
    arrays = [
        (getattr(x, name), getattr(y, name))
        for x, y in pairs
        for name in ("values", "samples", "histograms", "extremes")
    ]
    layers = [one.statistics.by_layer for one in (a, b)]
    if layers[0] is not None and layers[1] is not None:
        arrays += [
            (getattr(layers[0], name), getattr(layers[1], name)) for name in ("counts", "extremes")
        ]
    elif layers[0] is not layers[1]:
        return False
    return a.headers[1:] == b.headers[1:] and all(
        np.array_equal(x, y, equal_nan=True) for x, y in arrays
    )


def _rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    path = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=path, rank=rank, world_size=size)
    found: dict[str, Any] = {}
    for nodes in NODES:
        group = RankGroup.create(30.0)
        assert group is not None
        one = send(Exchange(group, flat(group), LAYERS), rank, 5.0, "why" if rank == 5 else "")
        by_tree = Exchange(group, tree(group, nodes[rank]), LAYERS)
        before = group.collectives_of_rank
        other = send(by_tree, rank, 5.0, "why" if rank == 5 else "")
        found[nodes] = {
            "collectives": group.collectives_of_rank - before,
            "alike": alike(one, other),
            "votes": [one.vote("stop"), other.vote("stop"), other.vote("checkpoint")],
        }
        layered = [
            send(Exchange(group, route, LAYERS, by_layer=True), rank, 5.0)
            for route in (flat(group), tree(group, nodes[rank]))
        ]
        found[nodes]["layers"] = sums(layered[0]) if alike(*layered) else None
        try:
            send(by_tree, rank, 6.0 + (rank == 6))
            found[nodes]["error"] = ""
        except ExchangeError as error:
            found[nodes]["error"] = str(error)
        group.close()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (8, str(folder)), 8)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(8)]


@pytest.mark.parametrize("nodes", NODES)
def test_the_tree_gives_what_the_flat_gather_gives(
    answers: list[dict[str, Any]], nodes: str
) -> None:
    assert all(answer[nodes]["alike"] for answer in answers)
    assert all(answer[nodes]["votes"] == ["why", "why", None] for answer in answers)
    given = [window(rank, by_layer=True).by_layer for rank in range(8)]
    counts = sum(float(layers.counts.sum()) for layers in given if layers is not None)
    least = min(float(layers.extremes.min()) for layers in given if layers is not None)
    greatest = max(float(layers.extremes.max()) for layers in given if layers is not None)
    assert all(answer[nodes]["layers"] == [counts, least, greatest] for answer in answers)


@pytest.mark.parametrize("nodes", NODES)
def test_a_rank_takes_part_in_three_collectives_at_most(
    answers: list[dict[str, Any]], nodes: str
) -> None:
    leaders = [rank for rank in range(8) if nodes.index(nodes[rank]) == rank]
    collectives = [answer[nodes]["collectives"] for answer in answers]
    assert collectives == [3 if rank in leaders else 2 for rank in range(8)]


@pytest.mark.parametrize("nodes", NODES)
def test_a_rank_at_another_step_is_known_to_all(answers: list[dict[str, Any]], nodes: str) -> None:
    assert all(answer[nodes]["error"] for answer in answers)
