"""The engine beside a reference that knows one alert at a time; notices; resuming anywhere."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr_monitor_callbacks.alerts import AlertManager, Notice
from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.config.spans import parse_span
from cmr_monitor_callbacks.health import AlertEngine, GivenNumbers, Transition, compile_rules
from tests.reference_alerts import OneAlert

METRIC = "avg_latency"
LAYERS = (4, 6, "enc")
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
SPANS = ("0", "1 steps", "10 steps", "25 steps", "1 windows", "2 windows", "5s", "12s", "20s")
ORDER = {">": 1, ">=": 1, "<": -1, "<=": -1}


@st.composite
def rules(draw: Any) -> dict[str, Any]:
    condition = draw(st.sampled_from([">", ">=", "<", "<=", "==", "!=", "outside"]))
    severities = [s for s in ("warning", "error", "critical") if draw(st.booleans())] or ["error"]
    limits = sorted(draw(st.lists(st.sampled_from(LEVELS), min_size=3, max_size=3)))
    if ORDER.get(condition, 1) < 0:
        limits.reverse()
    thresholds: dict[str, Any] = {}
    for severity, limit in zip(severities, limits, strict=False):
        if condition == "outside":
            wide = severities.index(severity) * 0.1
            thresholds[severity] = {
                "fire": [0.4 - wide, 0.6 + wide],
                "recover": [0.4, 0.6] if draw(st.booleans()) else [0.45, 0.55],
            }
        elif condition in ORDER:
            distance = draw(st.sampled_from([0.0, 0.25, 0.5])) * ORDER[condition]
            thresholds[severity] = {"fire": limit, "recover": limit - distance}
        else:
            thresholds[severity] = {"fire": limit}
    m = draw(st.integers(1, 3))
    return {
        "metric": METRIC,
        "select": {"layer": draw(st.sampled_from(["*", "4|enc", "6"]))},
        "condition": condition,
        "thresholds": thresholds,
        "for": draw(st.sampled_from(SPANS)),
        "keep_firing_for": draw(st.sampled_from(SPANS)),
        "no_data": {
            "mode": draw(st.sampled_from(["keep", "ok", "alert", "error"])),
            "for": draw(st.sampled_from(SPANS)),
        },
        "m_of_n": [m, draw(st.integers(m, 4))],
    }


VALUE = st.sampled_from([*LEVELS, 0.3, 0.45, 0.6, math.nan, math.nan])
WINDOW = st.tuples(
    st.dictionaries(st.sampled_from(LAYERS), VALUE, max_size=3),
    st.integers(1, 30),
    st.sampled_from([0.0, 1.0, 5.0, 7.5, 60.0]),
)
WINDOWS = st.lists(WINDOW, min_size=1, max_size=25)
RULES = st.lists(rules(), min_size=1, max_size=4)


def reference(rule: dict[str, Any]) -> OneAlert:
    def limits(given: Any) -> tuple[Any, Any]:
        return given["fire"], given.get("recover", given["fire"])

    return OneAlert(
        rule["condition"],
        {severity: limits(limit) for severity, limit in rule["thresholds"].items()},
        parse_span(rule["for"]),
        parse_span(rule["keep_firing_for"]),
        rule["no_data"]["mode"],
        parse_span(rule["no_data"]["for"]),
        *rule["m_of_n"],
    )


def config_of(rules: list[dict[str, Any]], **more: Any) -> AlertConfig:
    named = {f"rule_{i}": rule for i, rule in enumerate(rules)}
    return parse(AlertConfig, {"rules": named, **more}, "alerts")


def times(windows: list[Any]) -> list[tuple[int, float]]:
    """Last step and time of each window."""
    out, step, now = [], -1, 1.7e9
    for _, steps, seconds in windows:
        step, now = step + steps, now + seconds
        out.append((step, now))
    return out


def selected(rule: dict[str, Any]) -> list[Any]:
    texts = rule["select"]["layer"].split("|")
    return [layer for layer in LAYERS if texts == ["*"] or str(layer) in texts]


@settings(deadline=None, max_examples=100)
@given(RULES, WINDOWS)
def test_the_engine_says_what_the_reference_says(
    some: list[dict[str, Any]], windows: list[Any]
) -> None:
    engine = AlertEngine(compile_rules(config_of(some)))
    alone = {
        (f"rule_{i}", layer): reference(rule)
        for i, rule in enumerate(some)
        for layer in selected(rule)
    }
    before: dict[Any, str] = {}
    for number, ((values, _, _), (step, now)) in enumerate(
        zip(windows, times(windows), strict=True), start=1
    ):
        numbers = GivenNumbers(
            {(METRIC, layer, None): value for layer, value in values.items()}, layers=LAYERS
        )
        changes = engine.evaluate(numbers, step=step, now=now, window=number)
        expected = {}
        for key, one in alone.items():
            state = one.look(values.get(key[1], math.nan), (step, number, now))
            if state[0] != "inactive":
                expected[key] = state
        got = {}
        for alert in engine.open():
            assert (alert.rule, alert.layer) not in got, "one alert for one set of labels"
            severity = None if alert.severity is None else alert.severity.value
            got[alert.rule, alert.layer] = (alert.phase.value, severity)
        assert got == expected
        for change in changes:
            key = change.state.rule, change.state.layer
            assert change.before.value == before.get(key, "inactive")
        before = {key: phase for key, (phase, _) in got.items()}


def saved(state: Any, how: str) -> Any:
    if how == "json":
        return json.loads(json.dumps(state))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def play(
    some: list[dict[str, Any]],
    windows: list[Any],
    route: dict[str, Any],
    resume: set[int],
    how: str,
) -> tuple[list[Any], list[Notice]]:
    """What happened and what was told, with a restart from a checkpoint before some windows."""
    config = config_of(some, **route)
    compiled = compile_rules(config)
    by_name = {rule.name: rule for rule in compiled}
    engine, manager = AlertEngine(compiled), AlertManager(config)
    happened: list[Any] = []
    told: list[Notice] = []
    for number, ((values, _, _), (step, now)) in enumerate(
        zip(windows, times(windows), strict=True), start=1
    ):
        if number in resume:
            states = saved(engine.state(), how), saved(manager.state(), how)
            engine, manager = AlertEngine(compiled), AlertManager(config)
            engine.load(states[0])
            manager.load(states[1], by_name)
        numbers = GivenNumbers(
            {(METRIC, layer, None): value for layer, value in values.items()}, layers=LAYERS
        )
        changes: list[Transition] = engine.evaluate(numbers, step=step, now=now, window=number)
        happened += [(t.name, t.state.key, t.step, str(t.severity), t.message) for t in changes]
        told += manager.update(engine.open(), changes, by_name, step=step, now=now)
    return happened, told


ROUTES = st.fixed_dictionaries(
    {
        "alert_cooldown": st.sampled_from([0.0, 10.0, 60.0]),
        "escalation_rules": st.sampled_from(
            [
                {},
                {"critical": {"immediate": True}, "error": {"delay": 7}, "warning": {"delay": 20}},
            ]
        ),
        "route": st.fixed_dictionaries(
            {
                "group_by": st.sampled_from([["alert"], ["layer"], []]),
                "group_wait": st.sampled_from([0, 8]),
                "group_interval": st.sampled_from([0, 30]),
                "max_per_window": st.sampled_from([{"n": 2, "window": 20}, {"n": 20}]),
            }
        ),
    }
)


@settings(deadline=None, max_examples=30)
@given(RULES, WINDOWS, ROUTES, st.sets(st.integers(2, 25)), st.sampled_from(["json", "torch"]))
def test_resuming_anywhere_changes_nothing(
    some: list[dict[str, Any]],
    windows: list[Any],
    route: dict[str, Any],
    resume: set[int],
    how: str,
) -> None:
    straight = play(some, windows, route, set(), how)
    again = play(some, windows, route, resume, how)
    assert again[0] == straight[0]
    assert [str(notice) for notice in again[1]] == [str(notice) for notice in straight[1]]


@settings(deadline=None, max_examples=60)
@given(RULES, WINDOWS, ROUTES)
def test_notices(some: list[dict[str, Any]], windows: list[Any], route: dict[str, Any]) -> None:
    """Who was told that an alert fires hears that it ended; nobody twice inside the cooldown."""
    route = route | {"route": route["route"] | {"max_per_window": {"n": 10_000}}}
    happened, told = play(some, windows, route, set(), "json")
    order = {"warning": 1, "error": 2, "critical": 3}
    immediate = route["escalation_rules"].get("critical", {}).get("immediate", False)
    open_: dict[Any, str] = {}
    last: dict[Any, float] = {}
    for notice in told:
        for alert in notice.alerts:
            key = alert.rule, alert.labels.get("layer")
            severity = alert.severity.value
            if alert.resolved:
                assert open_.pop(key) == severity, "it was told of before, at that severity"
                continue
            rose = key in open_ and order[severity] > order[open_[key]]
            assert key not in open_ or rose, "once for each episode"
            urgent = immediate and severity == "critical"
            if key in last and not rose and not urgent:
                assert notice.time - last[key] >= route["alert_cooldown"]
            last[key], open_[key] = notice.time, severity
    still = {
        (key[0], str(key[2]))
        for name, key, *_ in happened
        if name != "inactive"  # the last word on each
    }
    ended = {}
    for name, key, *_ in happened:
        ended[key[0], str(key[2])] = name in ("resolved", "inactive")
    assert set(open_) <= still
    assert not [key for key in open_ if ended[key]], "that it ended was not told"


@settings(deadline=None, max_examples=40)
@given(rules(), WINDOWS, st.data())
def test_a_gap_changes_no_state_under_keep(
    rule: dict[str, Any], windows: list[Any], data: Any
) -> None:
    rule = rule | {"no_data": {"mode": "keep"}}
    engine = AlertEngine(compile_rules(config_of([rule])))
    for number, ((values, _, _), (step, now)) in enumerate(
        zip(windows, times(windows), strict=True), start=1
    ):
        missing = data.draw(st.booleans())
        known = {} if missing else values
        before = {state.key: (state.phase, state.severity) for state in engine.open()}
        numbers = GivenNumbers({(METRIC, k, None): v for k, v in known.items()}, layers=LAYERS)
        engine.evaluate(numbers, step=step, now=now, window=number)
        after = {state.key: (state.phase, state.severity) for state in engine.open()}
        for layer in LAYERS:
            if math.isnan(known.get(layer, math.nan)):
                key = ("rule_0", METRIC, layer, None)
                assert after.get(key) == before.get(key)
