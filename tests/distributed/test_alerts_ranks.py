"""Alerts on several ranks: one verdict, told once; what is changed on rank 0 changes everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import CMRPerformanceMonitor, CriticalAlert
from cmr_monitor_callbacks.config import load_preset
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

STEPS = 40
ROUTE = {"group_interval": 0}
NOW = {name: {"immediate": True} for name in ("warning", "error", "critical")}
Settings = dict[str, Any]
Scene = Callable[[Rank, CMRPerformanceMonitor, int], None]


STRAGGLER = load_preset("default")["alerts"]["rules"]["straggler"] | {"for": "5 steps"}
BY_STEP = {
    "metric": "step_time",
    "select": {"rank": "*"},
    "compare": {"vs": "ranks.median", "as": "ratio"},
    "condition": ">",
    "thresholds": {"warning": {"fire": 1.1, "recover": 1.05}},
}


def refused(**more: Any) -> Settings:
    rule = {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "condition": "<",
        "thresholds": {"error": 0.5},
    }
    return {"refused": rule | more}


def _few_everywhere(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    """From step 10 to 24 the buffers of layers 4 and 6 refuse three quarters."""
    stored = 1 if 10 <= step < 25 else 4
    for layer in (4, 6, 8):
        kept = 4 if layer == 8 else stored
        monitor.record_capture(layer, kept, 0.001, states_captured=4, states_attempted=4)


def _one_rank_refuses(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    last = rank.rank == rank.world - 1
    for layer in (4, 6):
        kept = 0 if last and layer == 6 else 4
        monitor.record_capture(layer, kept, 0.001, states_captured=4, states_attempted=4)


def _silenced_on_rank_0(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if step == 3 and rank.rank == 0:
        monitor.silence({"match": {"layer": "4"}})
    _few_everywhere(rank, monitor, step)


def _edited(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if step == 12 and rank.rank == 0:
        text = (rank.folder / "rules.yaml").read_text()
        (rank.folder / "rules.yaml").write_text(text.replace("0.1", "0.55"))
    _few_everywhere(rank, monitor, step)
    if step < 10 or step >= 25:
        monitor.record_capture(9, 2, 0.001, states_captured=4, states_attempted=4)


def _one_rank_is_slow(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    """From step 10 to 24 the last rank needs three times as long for its forward."""
    slow = rank.rank == rank.world - 1 and 10 <= step < 25
    forward = 0.3 if slow else 0.1
    # the others wait in the backward: a step takes all of them equally long
    monitor.record_step(0.4, 0.0, forward, 0.4 - forward, 0.0, 0.0, 1)


SCENES: dict[str, tuple[Scene, Settings]] = {
    "few": (_few_everywhere, refused()),
    "cells": (_one_rank_refuses, refused(select={"layer": "*", "rank": "*"})),
    "reduced": (
        _one_rank_refuses,
        refused(select={"layer": "*", "rank": "*"}, reduce={"rank": "min"}),
    ),
    "stop": (_few_everywhere, refused(actions=["checkpoint", "stop"])),
    "silenced": (_silenced_on_rank_0, refused()),
    "edited": (_edited, {}),
    "slow": (_one_rank_is_slow, {"straggler": STRAGGLER, "by_step": BY_STEP}),
}


def _run(rank: Rank) -> dict[str, Any]:
    (rank.folder / "rules.yaml").write_text(
        "rules: {from_file: {metric: storage_efficiency, select: {layer: 9}, condition: '<', "
        "thresholds: {error: 0.1}}}"
    ) if rank.rank == 0 else None
    rank.say("ready")
    rank.wait_for("ready", 0)
    with rank.together():
        out = {name: _play(rank, name) for name in SCENES}
        out["raised"] = _raises(rank)
    return out


def _monitor(rules: Settings, file: Path | None = None) -> CMRPerformanceMonitor:
    settings = {"log_every_n_steps": 5, "on_monitor_error": "raise", "reduction_timeout": 10.0}
    alerts = {
        "rules": rules,
        "escalation_rules": NOW,
        "alert_cooldown": 0,
        "route": ROUTE,
        "rules_file": None if file is None else str(file),
    }
    monitor = CMRPerformanceMonitor(settings, alert_config=alerts)
    monitor.join_ranks()
    monitor.agree_on_layers()
    return monitor


class Ear:
    """A channel that keeps what it is sent."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def send(self, notice: Any) -> None:
        layers = [alert.labels.get("layer") for alert in notice.alerts]
        self.heard.append(f"{notice.title} {layers}")


def _play(rank: Rank, name: str) -> dict[str, Any]:
    scene, rules = SCENES[name]
    monitor = _monitor(rules, rank.folder / "rules.yaml" if name == "edited" else None)
    ear, decisions = Ear(), []
    monitor.alerts.channels = [ear]
    monitor.on_decision = lambda kind, why: decisions.append((monitor.current_step, kind, why))
    for step in range(STEPS):
        scene(rank, monitor, step)
        monitor.step()
    monitor.flush()
    said = [
        (t.step, t.state.rule, sorted(t.state.labels.items()), t.name)
        for t in monitor.alerts.transitions
    ]
    messages = [t.message for t in monitor.alerts.transitions]
    monitor.leave_ranks()
    return {"said": said, "told": ear.heard, "decisions": decisions, "messages": messages}


def _raises(rank: Rank) -> tuple[int, str, Any] | None:
    monitor = _monitor(refused(actions=["raise"]))
    try:
        for step in range(STEPS):
            _few_everywhere(rank, monitor, step)
            monitor.step()
    except CriticalAlert as error:
        stored = error.numbers["metrics"]["states_stored_per_layer"]
        return monitor.current_step, str(error), stored
    finally:
        monitor.leave_ranks()
    return None


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def said(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("alerts") / "job"
    return results(_run, request.param, folder)


@pytest.mark.parametrize("scene", SCENES)
def test_one_verdict_told_by_rank_0_alone(said: list[dict[str, Any]], scene: str) -> None:
    first = said[0][scene]
    assert first["said"]
    for other in said[1:]:
        assert (other[scene]["said"], other[scene]["told"]) == (first["said"], [])
        assert other[scene]["decisions"] == first["decisions"]


def test_layers_and_ranks_are_one_notice(said: list[dict[str, Any]]) -> None:
    assert said[0]["few"]["told"] == [
        "ERROR refused ['4', '6']",
        "RESOLVED refused ['4', '6']",
    ]
    assert [(step, what) for step, _, _, what in said[0]["few"]["said"]] == [
        (14, "firing"),
        (14, "firing"),
        (29, "resolved"),
        (29, "resolved"),
    ]


def test_a_layer_of_a_rank(said: list[dict[str, Any]]) -> None:
    """The layers are new in the first window: their numbers come with the second."""
    last = str(len(said) - 1)
    assert said[0]["cells"]["said"] == [(9, "refused", [("layer", "6"), ("rank", last)], "firing")]
    assert said[0]["reduced"]["said"] == [(9, "refused", [("layer", "6")], "firing")]
    expected = f"layer 6, rank {last}: storage_efficiency is 0 (< 0.5)"
    assert said[0]["reduced"]["messages"] == said[0]["cells"]["messages"] == [expected]


def test_actions_reach_all_at_one_step(said: list[dict[str, Any]]) -> None:
    """The window that ends at step 14 is judged at 18; the votes of the next are heard at 23."""
    [(step, stop, why), (same, checkpoint, _)] = said[0]["stop"]["decisions"]
    assert (step, stop, same, checkpoint) == (23, "stop", 23, "checkpoint")
    assert why.startswith("alert refused: layer ")


def test_what_is_silenced_on_rank_0_is_silent(said: list[dict[str, Any]]) -> None:
    assert said[0]["silenced"]["told"] == ["ERROR refused ['6']", "RESOLVED refused ['6']"]
    assert len(said[0]["silenced"]["said"]) == 4


def test_an_edited_file_counts_on_all_ranks_at_once(said: list[dict[str, Any]]) -> None:
    """Layer 9's buffer takes half: more than the file's limit, until the limit is edited."""
    changes = [(step, rule, what) for step, rule, _, what in said[0]["edited"]["said"]]
    assert changes == [(29, "from_file", "firing")]


def test_raise_ends_all_ranks_at_one_step_with_the_numbers(said: list[dict[str, Any]]) -> None:
    ends = [one["raised"] for one in said]
    assert ends == [ends[0]] * len(said)
    step, message, stored = ends[0]
    assert step == 18
    assert message.startswith("alert refused: layer ")
    assert stored == {4: 5 * len(said), 6: 5 * len(said), 8: 20 * len(said)}


def test_the_slow_rank_is_named_by_its_own_part_of_the_step(said: list[dict[str, Any]]) -> None:
    """A whole step takes all ranks equally long, which is why it names none."""
    last, scene = len(said) - 1, said[0]["slow"]
    where = [("rank", str(last))]
    assert {rule for _, rule, _, _ in scene["said"]} == {"straggler"}
    assert [(labels, what) for _, _, labels, what in scene["said"]] == [
        (where, "pending"),
        (where, "firing"),
        (where, "resolved"),
    ]
    times = "1.50" if len(said) == 2 else "3.00"  # beside the median of two, which is their mean
    text = f"rank {last}: its own part of a step takes {times} times the ranks' median"
    assert scene["messages"][1] == text
