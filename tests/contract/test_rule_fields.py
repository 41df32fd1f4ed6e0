"""What each field of a rule does: it is there where it is set, and not where it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cmr_monitor_callbacks import ConfigError
from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.health import AlertEngine, AlertState, GivenNumbers, compile_rules
from tests.contract.fields import REFUSED, Loop, shows

NAN = math.nan


def ruled(rule: Any, **more: Any) -> Loop:
    return Loop(alerts={"rules": {"it": rule}, **more}).listen()


def fires(loop: Loop, *stored: int | None) -> list[int]:
    """Windows at whose end the rule fires."""
    return [i for i, count in enumerate(stored) if loop.steps(count) is not None and loop.firing]


def judged(rule: Any, values: dict[Any, float], ranks: int = 2) -> list[AlertState]:
    """Open alerts after a window with these numbers, by metric, layer and rank."""
    config = parse(AlertConfig, {"rules": {"it": rule}}, "alerts")
    engine = AlertEngine(compile_rules(config))
    engine.evaluate(GivenNumbers(values, ranks=ranks), step=9, now=1000.0, window=1)
    return engine.open()


@shows("alerts.rules.enabled")
@pytest.mark.parametrize(("on", "firing"), [(True, ["it"]), (False, [])])
def test_enabled(on: bool, firing: list[str]) -> None:
    loop = ruled(REFUSED | {"enabled": on})
    loop.steps(1)
    assert loop.firing == firing


@shows("alerts.rules.metric")
@pytest.mark.parametrize(
    ("metric", "at"), [("storage_efficiency", [0]), ("capture_efficiency", [])]
)
def test_metric(metric: str, at: list[int]) -> None:
    assert fires(ruled(REFUSED | {"metric": metric}), 1, 8) == at


@shows("alerts.rules.select.layer")
@pytest.mark.parametrize(("layer", "found"), [(None, [None]), ("*", [4, 6]), ("6|9", [6])])
def test_select_layer(layer: Any, found: list[Any]) -> None:
    loop = ruled(REFUSED | {"select": {"layer": layer}})
    loop.steps(1)
    assert [state.layer for state in loop.monitor.health.firing] == found


SLOW = {"metric": "step_time", "condition": ">", "thresholds": {"warning": 1.0}}
TIMES = {("step_time", None, None): 2.0, ("step_time", None, 0): 0.5, ("step_time", None, 1): 3.5}


@shows("alerts.rules.select.rank")
@pytest.mark.parametrize(("rank", "found"), [(None, [None]), ("*", [1]), ("0", [])])
def test_select_rank(rank: Any, found: list[Any]) -> None:
    rule = SLOW | {"select": {"rank": rank}}
    assert [state.rank for state in judged(rule, TIMES)] == found


@shows("alerts.rules.select.component")
@pytest.mark.parametrize(("component", "count"), [("timing", 0), ("capture", 2)])
def test_select_component(component: str, count: int) -> None:
    """Of all ratios of a step, those of one component."""
    rule = {"metric": "*_efficiency|step_time", "select": {"component": component}}
    loop = ruled(REFUSED | rule | {"condition": "<", "thresholds": {"warning": 1.5}})
    loop.steps(8)
    found = {state.metric for state in loop.monitor.health.firing}
    assert found == ({"capture_efficiency", "storage_efficiency"} if count else set())


@shows("alerts.rules.over")
@pytest.mark.parametrize(("over", "at"), [("window", [1]), ("run", [1, 2])])
def test_over(over: str, at: list[int]) -> None:
    """0.8, 0.1, 0.5 of the windows are 0.8, 0.45, 0.47 of the run."""
    assert fires(ruled(REFUSED | {"over": over}), 8, 1, 5) == at


@shows("alerts.rules.reduce.layer")
@pytest.mark.parametrize(("fold", "found"), [("none", {4: 0.1}), ("min", {None: 0.1}), ("max", {})])
def test_reduce_layer(fold: str, found: dict[Any, float]) -> None:
    rule = REFUSED | {"select": {"layer": "*"}, "reduce": {"layer": fold}}
    loop = ruled(rule)
    loop.probes[0].capture(10, 10, 1)
    loop.probes[1].capture(10, 10, 8)
    loop.steps(None)
    firing = loop.monitor.health.firing
    assert {state.layer if fold == "none" else None: state.value for state in firing} == found


@shows("alerts.rules.reduce.rank")
@pytest.mark.parametrize(("fold", "values"), [("none", [3.5]), ("mean", [2.0]), ("min", [])])
def test_reduce_rank(fold: str, values: list[float]) -> None:
    rule = SLOW | {"select": {"rank": "*"}, "reduce": {"rank": fold}}
    assert [state.value for state in judged(rule, TIMES)] == values


@shows("alerts.rules.compare.vs")
@pytest.mark.parametrize(("versus", "value"), [("ranks.median", 3.5 / 2), ("ranks.best", 7.0)])
def test_compare_with_ranks(versus: str, value: float) -> None:
    rule = SLOW | {"select": {"rank": "*"}, "compare": {"vs": versus}}
    assert [state.value for state in judged(rule, TIMES)] == [pytest.approx(value)]
    assert [state.value for state in judged(SLOW | {"select": {"rank": "*"}}, TIMES)] == [3.5]


@pytest.mark.parametrize(
    ("versus", "at"), [(None, []), ("self.best", [1, 2, 3, 4, 5, 6]), ("self.ewma", [6])]
)
def test_compare_with_itself(versus: Any, at: list[int]) -> None:
    """Under 0.8 of the best, which was 1.0, or of the average of at least five windows, 0.74."""
    compare = None if versus is None else {"vs": versus}
    rule = REFUSED | {"thresholds": {"warning": 0.8 if compare else 0.45}, "compare": compare}
    assert fires(ruled(rule), 10, 7, 7, 7, 7, 7, 5) == at


@shows("alerts.rules.compare.as")
@pytest.mark.parametrize(("how", "value"), [("ratio", 7.0), ("difference", 3.0)])
def test_compare_as(how: str, value: float) -> None:
    rule = SLOW | {"select": {"rank": "*"}, "compare": {"vs": "ranks.best", "as": how}}
    assert [state.value for state in judged(rule, TIMES)] == [value]


@shows("alerts.rules.condition")
@pytest.mark.parametrize(
    ("condition", "at"),
    [(">", [2]), (">=", [1, 2]), ("<", [0]), ("<=", [0, 1]), ("==", [1]), ("!=", [0, 2])],
)
def test_condition(condition: str, at: list[int]) -> None:
    assert fires(ruled(REFUSED | {"condition": condition}), 1, 5, 8) == at


@pytest.mark.parametrize(("condition", "at"), [("frozen", [1]), ("absent", [3])])
def test_condition_without_a_number(condition: str, at: list[int]) -> None:
    rule = REFUSED | {"condition": condition, "thresholds": {"warning": {}}}
    assert fires(ruled(rule), 1, 1, 8, None)[:1] == at


def test_condition_outside() -> None:
    rule = REFUSED | {"condition": "outside", "thresholds": {"warning": [0.3, 0.6]}}
    assert fires(ruled(rule), 1, 5, 8) == [0, 2]


def test_condition_nonfinite() -> None:
    rule = {"metric": "reconstruction_quality", "condition": "nonfinite"}
    loop = ruled(rule | {"thresholds": {"warning": {}}})
    for quality in (0.5, NAN):
        loop.probes[0].reconstruction(1, quality)
        loop.steps(None)
    assert [t.step for t in loop.monitor.alerts.transitions if t.name == "firing"] == [1]


@shows("alerts.rules.when")
@pytest.mark.parametrize(
    ("when", "at"),
    [(None, [0, 1]), ("states_stored > 15", [0]), ("states_stored > 15 and capture_calls > 9", [])],
)
def test_when(when: Any, at: list[int]) -> None:
    limit = {"thresholds": {"warning": 0.9}}
    assert fires(ruled(REFUSED | limit | {"when": when}), 8, 7) == at


@shows("alerts.rules.thresholds.fire")
@pytest.mark.parametrize(("fire", "at"), [(0.5, [1, 2]), (0.15, [2])])
def test_fire(fire: float, at: list[int]) -> None:
    assert fires(ruled(REFUSED | {"thresholds": {"warning": {"fire": fire}}}), 8, 3, 1) == at


@shows("alerts.rules.thresholds.recover")
@pytest.mark.parametrize(("recover", "at"), [(None, [0]), (0.7, [0, 1])])
def test_recover(recover: Any, at: list[int]) -> None:
    limit = {"warning": {"fire": 0.5, "recover": recover}}
    assert fires(ruled(REFUSED | {"thresholds": limit}), 1, 6, 8) == at


@shows("alerts.rules.for")
@pytest.mark.parametrize(("span", "first"), [(0, 0), ("2 windows", 2), ("1 steps", 1), ("60s", 3)])
def test_for(span: Any, first: int) -> None:
    assert fires(ruled(REFUSED | {"for": span}), 1, 1, 1, 1)[0] == first


@shows("alerts.rules.m_of_n")
@pytest.mark.parametrize(("share", "at"), [(None, [0, 2]), ([2, 3], [2, 3])])
def test_m_of_n(share: Any, at: list[int]) -> None:
    assert fires(ruled(REFUSED | {"m_of_n": share}), 1, 8, 1, 8 if share is None else 1)[:2] == at


@shows("alerts.rules.keep_firing_for")
@pytest.mark.parametrize(("span", "at"), [(0, [0]), ("40s", [0, 1, 2])])
def test_keep_firing_for(span: Any, at: list[int]) -> None:
    assert fires(ruled(REFUSED | {"keep_firing_for": span}), 1, 8, 8, 8) == at


@shows("alerts.rules.no_data.mode")
@pytest.mark.parametrize(
    ("mode", "states"),
    [
        ("keep", ["firing warning"]),
        ("ok", []),
        ("alert", ["nodata warning"]),
        ("error", ["error error"]),
    ],
)
def test_no_data_mode(mode: str, states: list[str]) -> None:
    loop = ruled(REFUSED | {"no_data": {"mode": mode}})
    loop.steps(1, None)
    firing = loop.monitor.health.firing
    assert [f"{s.phase.value} {s.severity.value if s.severity else ''}" for s in firing] == states


@shows("alerts.rules.no_data.for")
@pytest.mark.parametrize(("span", "at"), [(0, 1), ("40s", 3)])
def test_no_data_for(span: Any, at: int) -> None:
    rule = REFUSED | {"no_data": {"mode": "alert", "for": span}}
    assert fires(ruled(rule), 8, None, None, None, None)[0] == at


@shows("alerts.rules.labels")
def test_labels() -> None:
    loop = ruled(REFUSED | {"labels": {"team": "memory", "component": "buffer"}})
    loop.steps(1)
    labels = loop.ear.notices[0].alerts[0].labels
    assert (labels["team"], labels["component"]) == ("memory", "buffer")
    components = loop.monitor.health.components
    assert components["buffer"].score < components["capture"].score == 100.0
    plain = ruled(REFUSED)
    plain.steps(1)
    assert "team" not in plain.ear.notices[0].alerts[0].labels


@shows("alerts.rules.summary")
def test_summary() -> None:
    loop = ruled(REFUSED | {"summary": "{severity}: only {value:.0%} of {metric} at {step}"})
    loop.steps(1)
    assert loop.ear.notices[0].alerts[0].message == "warning: only 10% of storage_efficiency at 0"
    plain = ruled(REFUSED)
    plain.steps(1)
    assert plain.ear.notices[0].alerts[0].message == "storage_efficiency is 0.1 (< 0.5)"


@shows("alerts.rules.runbook")
@pytest.mark.parametrize("runbook", ["", "https://example.org/refused"])
def test_runbook(runbook: str) -> None:
    loop = ruled(REFUSED | {"runbook": runbook})
    loop.steps(1)
    assert loop.ear.notices[0].alerts[0].runbook == runbook


@shows("alerts.rules.actions")
def test_actions() -> None:
    for actions in ([], ["stop", "checkpoint"]):
        loop, done = ruled(REFUSED | {"actions": actions}), []
        loop.monitor.on_decision = lambda kind, why, done=done: done.append(kind)  # type: ignore[misc]
        loop.steps(1, 1, 1)
        assert sorted(done) == sorted(actions)


@shows("alerts.rules.min_ranks")
@pytest.mark.parametrize(("fewest", "count"), [(1, 1), (2, 1), (3, 0)])
def test_min_ranks(fewest: int, count: int) -> None:
    assert len(judged(SLOW | {"min_ranks": fewest}, TIMES)) == count


@shows("alerts.rules.warmup")
@pytest.mark.parametrize(("waits", "at"), [(True, [2]), (False, [0, 1, 2])])
def test_warmup(waits: bool, at: list[int]) -> None:
    assert fires(ruled(REFUSED | {"warmup": waits}, warmup={"steps": 3}), 1, 1, 1) == at


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match="storage_efficiency"):
        ruled(REFUSED | {"metric": "storage_eficiency"})
