"""The alert engine by hand-worked timelines: time and step are passed in."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cmr_monitor_callbacks.config import AlertConfig, AlertThresholds, MonitoringConfig, parse
from cmr_monitor_callbacks.config.conditions import parse_expression
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import (
    AlertEngine,
    AlertRule,
    AlertState,
    GivenNumbers,
    Phase,
    Severity,
    Threshold,
    compile_rules,
)

NAN = math.nan
WARN = (Threshold(Severity.WARNING, 10.0, 8.0),)
BOTH = (Threshold(Severity.CRITICAL, 20.0, 15.0), *WARN)
AT_ONCE = (0.0, "seconds")
INACTIVE, PENDING, FIRING = Phase.INACTIVE, Phase.PENDING, Phase.FIRING


def given(metric: str, *values: float, layers: tuple[Any, ...] = ()) -> GivenNumbers:
    """One metric of the window: the whole, then the layers."""
    places = (None, *layers)
    return GivenNumbers(
        {(metric, layer, None): value for layer, value in zip(places, values, strict=True)},
        layers=layers,
    )


def rule(thresholds: tuple[Threshold, ...] = WARN, **more: Any) -> AlertRule:
    return AlertRule("slow", ("step_time",), more.pop("condition", ">"), thresholds, **more)


def timeline(
    one: AlertRule, values: list[float], every: int = 10, seconds: float = 5.0
) -> list[tuple[Phase, str | None]]:
    """Phase and severity after each window; windows of so many steps and seconds."""
    engine = AlertEngine([one])
    out = []
    for i, value in enumerate(values):
        engine.evaluate(
            given("step_time", value), step=i * every, now=1000 + i * seconds, window=i + 1
        )
        [state] = engine.open() or [AlertState("slow")]
        out.append((state.phase, None if state.severity is None else state.severity.value))
    return out


def phases(one: AlertRule, values: list[float], **how: Any) -> str:
    """One letter a window: - inactive, p pending, F firing."""
    letters = {INACTIVE: "-", PENDING: "p", FIRING: "F"}
    return "".join(letters[phase] for phase, _ in timeline(one, values, **how))


@pytest.mark.parametrize(
    ("hold", "unit", "expected"),
    [
        (0, "seconds", "-FFFFFF-"),
        (20, "steps", "-ppFFFF-"),  # met at step 10; 20 steps on is step 30
        (21, "steps", "-pppFFF-"),
        (3, "windows", "-pppFFF-"),
        (10.0, "seconds", "-ppFFFF-"),  # 5 s a window
        (10.1, "seconds", "-pppFFF-"),
    ],
)
def test_for(hold: float, unit: str, expected: str) -> None:
    one = rule(hold=(hold, unit))
    assert phases(one, [1, 11, 11, 11, 11, 11, 11, 1]) == expected


def test_pending_begins_anew_after_a_good_window() -> None:
    one = rule(hold=(2, "windows"))
    assert phases(one, [11, 11, 9, 11, 11, 11, 9]) == "pp-ppFF"  # 9 is over recover: still firing
    assert phases(one, [11, 11, 9, 11, 11, 11, 8]) == "pp-ppF-"


def test_hysteresis() -> None:
    assert phases(rule(), [9, 10, 10.1, 10, 9, 8.1, 8, 9, 10, 11]) == "--FFFF---F"
    below = rule((Threshold(Severity.WARNING, 0.5, 0.6),), condition="<")
    assert phases(below, [0.55, 0.5, 0.49, 0.5, 0.59, 0.6, 0.55]) == "--FFF--"


def test_no_data_keeps_everything_as_it_is_and_stops_the_clock() -> None:
    one = rule(hold=(20, "steps"))
    assert phases(one, [NAN, 11, NAN, NAN, 11, NAN, 11, NAN, 1]) == "-pppppFF-"
    assert phases(rule(condition="!="), [NAN, NAN]) == "--"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        (">", [11.0]),
        (">=", [10.0, 11.0]),
        ("<", [9.0]),
        ("<=", [9.0, 10.0]),
        ("==", [10.0]),
        ("!=", [9.0, 11.0]),
    ],
)
def test_conditions(condition: str, holds: list[float]) -> None:
    one = rule((Threshold(Severity.ERROR, 10.0, 10.0),), condition=condition)
    assert [v for v in (9.0, 10.0, 11.0, NAN) if phases(one, [v]) == "F"] == holds


def test_the_highest_severity_met_wins_and_falls_by_its_own_recovery() -> None:
    got = timeline(rule(BOTH), [11, 21, 16, 15, 9, 8])
    assert got == [
        (FIRING, "warning"),
        (FIRING, "critical"),
        (FIRING, "critical"),
        (FIRING, "warning"),
        (FIRING, "warning"),
        (INACTIVE, None),
    ]


def test_a_rise_is_one_and_the_same_alert() -> None:
    engine, changes = AlertEngine([rule(BOTH)]), []
    for i, value in enumerate([11, 12, 21, 1]):
        found = engine.evaluate(given("step_time", value), step=i, now=100.0 + i, window=i)
        changes += [(t.name, t.step, t.time, t.state.value) for t in found]
        for state in engine.open():
            assert (state.since_step, state.since_time, state.fired_time) == (0, 100.0, 100.0)
    assert changes == [
        ("firing", 0, 100.0, 11),
        ("changed", 2, 102.0, 21),
        ("resolved", 3, 103.0, 1),
    ]


def test_a_pending_alert_that_ends_was_never_resolved() -> None:
    engine = AlertEngine([rule(hold=(5, "windows"))])
    first = engine.evaluate(given("step_time", 11), step=0, now=0, window=1)
    second = engine.evaluate(given("step_time", 1), step=1, now=1, window=2)
    assert [t.name for t in (*first, *second)] == ["pending", "inactive"]


def test_one_alert_for_each_layer() -> None:
    half = (Threshold(Severity.ERROR, 0.5, 0.5),)
    one = AlertRule("refused", ("storage_efficiency",), "<", half, layer="4|1*")
    layers = (12, 4, 6, "1x", 10)
    engine = AlertEngine([one])
    first = given("storage_efficiency", 0.0, 0.1, 0.2, 0.0, 0.3, 0.9, layers=layers)
    changed = engine.evaluate(first, step=7, now=0, window=1)
    assert [state.layer for state in engine.open()] == [4, 12, "1x"]
    assert [t.message for t in changed] == [
        "layer 4: storage_efficiency is 0.2 (< 0.5)",
        "layer 12: storage_efficiency is 0.1 (< 0.5)",
        "layer 1x: storage_efficiency is 0.3 (< 0.5)",
    ]
    later = given("storage_efficiency", 1, 0.6, NAN, 0.6, NAN, 0.9, layers=layers)
    ended = engine.evaluate(later, step=8, now=1, window=2)
    assert [state.layer for state in engine.open()] == [4, "1x"]
    assert [(t.name, t.message) for t in ended] == [
        ("resolved", "layer 12: storage_efficiency is 0.6 again")
    ]


def test_alerts_of_rules_that_are_gone_drop_and_the_others_stay() -> None:
    other = AlertRule("other", ("data_wait",), ">", WARN)
    engine = AlertEngine([rule(), other])
    both = GivenNumbers({("step_time", None, None): 11.0, ("data_wait", None, None): 11.0})
    engine.evaluate(both, step=1, now=1, window=1)
    engine.replace_rules([other])
    assert [state.rule for state in engine.open()] == ["other"]
    [ended] = engine.evaluate(both, step=2, now=2, window=2)
    assert (ended.name, ended.message) == ("resolved", "step_time is not watched any more")
    assert engine.evaluate(both, step=3, now=3, window=3) == []


def test_an_alert_of_a_rank_that_is_lost_ends() -> None:
    by_rank = AlertRule("slow", ("step_time",), ">", WARN, rank="*", min_ranks=2)
    engine = AlertEngine([by_rank])
    two = GivenNumbers({("step_time", None, 0): 1.0, ("step_time", None, 1): 11.0}, ranks=2)
    engine.evaluate(two, step=1, now=1, window=1)
    [ended] = engine.evaluate(given("step_time", 11), step=2, now=2, window=2)
    assert (ended.name, ended.state.rank) == ("resolved", 1)
    assert ended.message == "rank 1: step_time is not watched any more"
    assert engine.open() == ()


def test_a_companion_condition() -> None:
    high = (Threshold(Severity.ERROR, 0.5, 0.5),)
    when = parse_expression("states_rejected > 0 and whole.total_entries > 5")
    one = AlertRule("full", ("utilization_rate",), ">", high, layer="*", when=when)
    engine = AlertEngine([one])

    def phase(rejected: float, entries: float) -> str:
        values = {
            ("utilization_rate", 4, None): 0.9,
            ("states_rejected", 4, None): rejected,
            ("total_entries", None, None): entries,
        }
        engine.evaluate(GivenNumbers(values), step=1, now=1, window=1)
        return "".join(state.phase.value for state in engine.open())

    assert phase(0, 9) == ""
    assert phase(NAN, 9) == "", "nobody knows"
    assert phase(1, 5) == ""
    assert phase(1, 9) == "firing"
    assert phase(NAN, 9) == "firing", "a gap is no recovery"
    assert phase(NAN, 1) == "", "one part that fails is enough"
    assert phase(1, NAN) == ""


def test_an_alert_goes_on_after_a_round_trip() -> None:
    one = rule(BOTH, hold=(3, "windows"))
    engine = AlertEngine([one])
    engine.evaluate(given("step_time", 21), step=10, now=5, window=1)
    loaded = AlertEngine([one])
    loaded.load(json.loads(json.dumps(engine.state())))
    assert [state.key for state in loaded.open()] == [state.key for state in engine.open()]
    for window, phase in ((3, PENDING), (4, FIRING)):
        now = given("step_time", 21)
        loaded.evaluate(now, step=10 * window, now=5 * window, window=window)
        assert [state.phase for state in loaded.open()] == [phase]


# The short form.


def short(rules: dict[str, Any] | None = None, levels: Any = None, **limits: float) -> Any:
    alerts = parse(
        AlertConfig,
        {"rules": rules or {}, **({"severity_levels": levels} if levels else {})},
        "alerts",
    )
    thresholds = parse(MonitoringConfig, {"alert_thresholds": limits}, "monitoring")
    assert isinstance(thresholds.alert_thresholds, AlertThresholds)
    return compile_rules(alerts, thresholds.alert_thresholds)


def test_short_form() -> None:
    got = short(high_latency=0.1, low_efficiency=0.7, high_error_rate=0.05)
    assert {(r.metrics, r.condition, r.thresholds, r.hold, r.layer, r.over) for r in got} == {
        ((metric,), condition, (Threshold(Severity.ERROR, limit, limit),), AT_ONCE, None, "window")
        for metric, condition, limit in (
            ("avg_latency", ">", 0.1),
            ("capture_efficiency", "<", 0.7),
            ("storage_efficiency", "<", 0.7),
            ("error_rate", ">", 0.05),
        )
    }
    assert short() == ()


@pytest.mark.parametrize(
    ("levels", "severity"),
    [(["warning"], "warning"), (["warning", "critical"], "warning"), (["critical"], "critical")],
)
def test_short_form_is_of_the_highest_severity_up_to_error(levels: Any, severity: str) -> None:
    (one,) = short(levels=levels, high_latency=0.1)
    assert [t.severity.value for t in one.thresholds] == [severity]


STALL = {"metric": "step_time", "condition": ">", "thresholds": {"warning": 1.0}}


def test_a_rules_name_sets_its_threshold() -> None:
    (one,) = short({"stall": STALL}, stall=2.5)
    assert one.thresholds == (Threshold(Severity.WARNING, 2.5, 2.5),)


def test_an_unknown_key_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"high_latncy.*did you mean 'high_latency'"):
        short(high_latncy=0.1)
    with pytest.raises(ConfigError, match=r"stal .*did you mean 'stall'"):
        short({"stall": STALL}, stal=0.1)


def test_the_same_key_twice() -> None:
    for key in ("high_latency", "low_efficiency"):
        with pytest.raises(ConfigError, match=f"{key} is set in .* and as alerts.rules.{key}"):
            short({key: STALL}, **{key: 0.1})
    two = {**STALL, "thresholds": {"warning": 1.0, "error": 2.0}}
    with pytest.raises(ConfigError, match=r"'stall' has 2 thresholds; set alerts\.rules\.stall"):
        short({"stall": two}, stall=0.1)
