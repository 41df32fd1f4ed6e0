"""Random events, split at random over ranks, steps and layers, against the reference."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, Snapshot
from tests.distributed.processes import Rank, results
from tests.feeding import GAUGES, arguments, differences, over_ranks
from tests.property.test_recorder import RATIOS, SUMS_OF_CALLS, _zeros
from tests.reference import (
    NAMES,
    Buffer,
    Capture,
    Error,
    Event,
    Layer,
    Reconstruction,
    Step,
    evaluate,
    get,
    random_events,
)

pytestmark = pytest.mark.distributed

STEPS = 23
LAYERS: tuple[int | str, ...] = (11, 4, "deep", 7)
SEEDS = range(6)
Key = tuple[str, Layer]
Table = dict[Key, float]


@dataclass(frozen=True)
class Plan:
    """What happens where.

    Attributes:
        window: steps in a window.
        arrives: step at which a rank gets a layer, by rank and layer; those it never gets lack.
        events: by rank and step.
    """

    window: int
    arrives: list[dict[int | str, int]]
    events: list[list[list[Event]]]

    @property
    def ends(self) -> list[int]:
        """Last steps of the windows."""
        full = range(self.window - 1, STEPS, self.window)
        return sorted({*full, STEPS - 1})

    def between(self, first: int, last: int) -> list[list[Event]]:
        """Each rank's events of these steps."""
        return [[e for step in rank[first : last + 1] for e in step] for rank in self.events]

    def late(self, last: int) -> bool:
        """Whether a layer that not all agreed on had events in the window that ends there."""
        first = max([end + 1 for end in self.ends if end < last], default=0)
        return any(first <= step <= last for own in self.arrives for step in own.values() if step)


def plan(seed: int, world: int) -> Plan:
    """A random one; seed 0 has every layer on every rank from the start."""
    rng = np.random.default_rng((seed, world))
    window = int(rng.choice([1, 2, 5, 7]))
    arrives: list[dict[int | str, int]] = []
    for _ in range(world):
        own = {layer: 0 for layer in rng.permutation(np.array(LAYERS, object)).tolist()}
        if seed:
            own = {layer: 0 for layer in own if rng.random() < 0.6}
            for layer in LAYERS:
                if layer not in own and rng.random() < 0.5:
                    own[layer] = int(rng.integers(1, STEPS))
        arrives.append(own)
    bufferless = int(rng.integers(world)) if seed else -1
    events = [
        [
            _events(
                rng,
                [layer for layer, at in arrives[rank].items() if at <= step],
                rank == bufferless,
            )
            for step in range(STEPS)
        ]
        for rank in range(world)
    ]
    for own in events:  # the last window is never empty
        own[-1].append(Step(0.5, 0.25, 0.125, None, None, 3, None))
    return Plan(window, arrives, events)


def _events(rng: np.random.Generator, layers: list[int | str], bufferless: bool) -> list[Event]:
    found: list[Event] = []
    for event in random_events(rng, int(rng.integers(0, 9)), layers):
        # how total limits add over ranks METRICS.md leaves open
        if isinstance(event, Buffer) and (bufferless or event.layer is None):
            continue
        if isinstance(event, Step):  # a forward is always timed
            event = dataclasses.replace(event, forward=event.forward or 0.0)
        found.append(event)
    return found


class _Ranks:
    """A rank's model, which gets its layers as the plan says."""

    def __init__(self, monitor: CMRPerformanceMonitor, arrives: dict[int | str, int]) -> None:
        self.monitor, self.arrives = monitor, arrives
        self.probes: dict[Layer, CMRProbe] = {}
        self._add(None)
        self.grow(0)

    def grow(self, step: int) -> None:
        for layer, at in self.arrives.items():
            if at == step:
                self._add(layer)

    def _add(self, layer: Layer) -> None:
        model = nn.Module()
        self.probes[layer] = model.probe = CMRProbe(layer)
        self.monitor.attach(model)

    def tell(self, event: Event) -> None:
        monitor = self.monitor
        if isinstance(event, Step):
            times = (event.seconds, event.data_wait, event.forward or 0.0, event.backward)
            amounts = (event.forward_passes, event.samples, event.tokens)
            monitor.record_step(*times, event.optimizer, None, *amounts)
        elif isinstance(event, Error):
            self.probes[event.layer].error(RuntimeError("no memory left"))
        elif isinstance(event, Capture) and event.considered is None and event.stored is not None:
            counts = {"states_captured": event.captured, "states_attempted": event.attempted}
            if event.layer is not None:
                monitor.record_capture(event.layer, event.stored, event.seconds, **counts)
            else:
                self._probe(event)
        elif isinstance(event, Reconstruction) and event.quality is None and event.layer == 4:
            monitor.record_reconstruction(4, event.memories_used, event.seconds)  # type: ignore[arg-type]
        else:
            self._probe(event)

    def _probe(self, event: Event) -> None:
        component, given = arguments(event)
        getattr(self.probes[given.pop("layer")], component)(**given)


class _Sink:
    """Keeps all that a snapshot says."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.said: list[dict[str, Any]] = []

    def write(self, report: Any) -> None:
        shown: Snapshot = report.snapshot
        every = (None, *LAYERS)
        said: dict[str, Any] = {"step": shown.step, "world": shown.world_size}
        said["layers"] = shown.layer_ids
        for over in ("run", "window"):
            said[over] = {(n, i): shown.value(n, layer=i, over=over) for n in NAMES for i in every}
            for rank in range(shown.world_size):
                said[over, rank] = {(n, None): shown.value(n, rank=rank, over=over) for n in NAMES}
            said[over, "ranks"] = {
                n: (shown.ranks(n, over), shown.greatest(n, over), shown.skew(n, over))
                for n in ("capture_calls", "avg_capture_time", "total_entries")
            }
        said["events"] = shown.value("events")
        self.said.append(said)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def _run(rank: Rank, nodes: str) -> list[list[dict[str, Any]]]:
    """All plans, one after another, each with a monitor and a group of its own."""
    if rank.world == 1:
        return [_run_plan(plan(seed, 1), rank, nodes) for seed in SEEDS]
    with rank.together():
        return [_run_plan(plan(seed, rank.world), rank, nodes) for seed in SEEDS]


def _run_plan(given: Plan, rank: Rank, nodes: str) -> list[dict[str, Any]]:
    settings = {
        "log_every_n_steps": given.window,
        "on_monitor_error": "raise",
        "reduction": "hierarchical" if nodes else "auto",
    }
    monitor = CMRPerformanceMonitor(settings, alert_config={"enable_alerts": False})
    if nodes:
        monitor._ranks._node = nodes[rank.rank]
    sink = _Sink(rank.world)
    monitor.sinks.append(sink)
    monitor.join_ranks()
    model = _Ranks(monitor, given.arrives[rank.rank])
    monitor.agree_on_layers()
    for step, events in enumerate(given.events[rank.rank]):
        if step:
            model.grow(step)
        for event in events:
            model.tell(event)
        monitor.step()
    monitor.flush()
    monitor.leave_ranks()
    monitor.detach()
    return sink.said


WAYS = {
    "1 rank": (1, ""),
    "2 ranks": (2, ""),
    "4 ranks": (4, ""),
    "4 ranks on nodes": (4, "abab"),  # by way of each node's first rank
    "4 ranks on uneven nodes": (4, "abbb"),
}


@pytest.fixture(scope="module", params=WAYS)
def said(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[list[list[dict[str, Any]]]]:
    """What each rank's snapshots said: by rank, plan and window."""
    world, nodes = WAYS[request.param]
    return results(_run, world, tmp_path_factory.mktemp("ranks") / "job", nodes)


Said = list[list[list[dict[str, Any]]]]


def at(said: Said, seed: int, step: int) -> dict[str, Any]:
    """What was said last of a window."""
    return next(one for one in reversed(said[0][seed]) if one["step"] == step)


def of_window(so_far: Table, window: list[list[Event]]) -> Table:
    """As METRICS.md reads a window: 0 where a source is live but still, gauges what holds now."""
    alone = over_ranks(window)
    padded = over_ranks([[*window[0], *_zeros(so_far)], *window[1:]])
    out: Table = {}
    for key, known in so_far.items():
        name, layer = key
        value = get(alone, *key)
        if name in GAUGES:
            value = known
        elif name in SUMS_OF_CALLS or name in ("tokens", "total_forward_time"):
            value = 0.0 if math.isnan(value) and not math.isnan(known) else value
        elif not ("_time" in name or name in ("error_rate", "throughput", "tokens_per_second")):
            value = get(padded, name, layer)
        out[key] = value
    return out


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rank_has_the_same_snapshots(said: Said, seed: int) -> None:
    world = len(said)
    for mine in said:
        assert len(mine[seed]) == len(said[0][seed])
        for one, first in zip(mine[seed], said[0][seed], strict=True):
            assert (one["step"], one["layers"], one["world"]) == (
                first["step"],
                first["layers"],
                world,
            )
            for part in first:
                np.testing.assert_equal(one[part], first[part])
    assert {one["step"] for one in said[0][seed]} == set(plan(seed, world).ends)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_run_is_that_of_all_ranks(said: Said, seed: int) -> None:
    given = plan(seed, len(said))
    for end in given.ends:
        if given.late(end) and end != given.ends[-1]:
            continue
        one = at(said, seed, end)
        expected = over_ranks(given.between(0, end))
        assert not differences(one["run"], expected), f"window that ends at {end}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_window_is_that_of_all_ranks(said: Said, seed: int) -> None:
    given = plan(seed, len(said))
    ends = [-1, *given.ends]
    layerless = any(
        not isinstance(e, Step) and e.layer is None
        for events in given.between(0, STEPS)
        for e in events
    )
    for before, end in zip(ends, given.ends, strict=False):
        if given.late(end) or (before >= 0 and given.late(before)):
            continue
        so_far = over_ranks(given.between(0, end))
        expected = of_window(so_far, given.between(before + 1, end))
        if layerless:  # the reference's whole has no part of its own, see test_recorder
            expected = {k: v for k, v in expected.items() if k[0] not in RATIOS}
        assert not differences(at(said, seed, end)["window"], expected), f"window to {end}"


# over all of a rank's layers at once: where a layer gives one side of a ratio only, see `by_rank`
OF_ONE_RANK = [
    n for n in NAMES if n not in (*RATIOS, "capacity", "utilization_rate") and "_p" not in n
]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_ranks_own_numbers(said: Said, seed: int) -> None:
    given = plan(seed, len(said))
    last = at(said, seed, STEPS - 1)
    for rank, events in enumerate(given.between(0, STEPS)):
        alone = evaluate(events)
        expected = {(n, None): get(alone, n) for n in OF_ONE_RANK}
        assert not differences(last["run", rank], expected), f"rank {rank}"
    for name, (by_rank, greatest, skew) in last["run", "ranks"].items():
        alone_values = {r: get(evaluate(e), name) for r, e in enumerate(given.between(0, STEPS))}
        known = {r: v for r, v in alone_values.items() if not math.isnan(v)}
        assert by_rank == pytest.approx(known, rel=1e-9)
        if known:
            assert greatest[0] == pytest.approx(max(known.values()), rel=1e-9)
            assert by_rank[greatest[1]] == greatest[0]
            median = float(np.median(list(known.values())))
            wanted = max(known.values()) / median if median > 0 else math.nan
            assert skew == pytest.approx(wanted, rel=1e-9, nan_ok=True)
        else:
            assert greatest[1] is None


@pytest.mark.parametrize("seed", SEEDS)
def test_every_event_is_counted(said: Said, seed: int) -> None:
    given = plan(seed, len(said))
    count = sum(len(events) for events in given.between(0, STEPS))
    assert at(said, seed, STEPS - 1)["events"] == count


def test_the_plans_hold_what_they_are_for() -> None:
    plans = [plan(seed, 4) for seed in SEEDS]
    assert any(p.late(end) for p in plans for end in p.ends)
    assert any(len(set(map(tuple, p.arrives))) > 1 for p in plans)
