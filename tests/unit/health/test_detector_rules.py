"""Rules that judge a detector's score: the engine, what is said, resuming, settings."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import AlertEngine, GivenNumbers, Transition, compile_rules

QUALITY = "reconstruction_quality"
RULE: dict[str, Any] = {
    "metric": QUALITY,
    "select": {"layer": "*"},
    "detector": {"name": "telemetry", "channels": ["shift", "drift", "regression"]},
    "thresholds": {"error": {"fire": 1.0, "recover": 0.7}},
}


def engine_of(**changes: Any) -> AlertEngine:
    config = parse(AlertConfig, {"rules": {"fell": {**RULE, **changes}}}, "alerts")
    return AlertEngine(compile_rules(config))


def judge(engine: AlertEngine, window: int, values: dict[Any, float], **how: Any) -> list[Any]:
    numbers = GivenNumbers({(QUALITY, layer, None): value for layer, value in values.items()})
    return engine.evaluate(numbers, step=10 * window + 9, now=float(window), window=window, **how)


def restless(window: int) -> float:
    return 0.8 + 0.02 * ((7 * window) % 5 - 2) / 2


def told(changes: list[Transition]) -> list[tuple[str, Any]]:
    return [(change.name, change.state.layer) for change in changes]


def test_what_fell_is_told_with_its_channel_and_levels() -> None:
    engine = engine_of()
    for window in range(100):
        assert not judge(engine, window, {4: restless(window), 6: restless(window + 1)})
    changes: list[Transition] = []
    for window in range(100, 110):
        now = {4: restless(window) - 0.3, 6: restless(window + 1)}
        changes += judge(engine, window, now)
    assert told(changes) == [("firing", 4)]
    [change] = changes
    assert change.step <= 10 * 104 + 9
    assert change.message.startswith(f"layer 4: {QUALITY} shows a shift: from 0.")
    assert "from 0.7" in change.message and "to 0." in change.message
    assert change.state.value > 1.0 and change.state.threshold == 1.0
    assert "(score " in change.message and "> 1)" in change.message


def test_a_regression_says_which_level_was_held() -> None:
    engine = engine_of(
        detector={"channels": ["regression"]},
        summary="{channel}: {before:.1f} -> {now:.1f}, {value:.0f}",
    )
    changes: list[Transition] = []
    for window in range(200):
        changes += judge(engine, window, {4: restless(window) - (0.3 if window >= 100 else 0.0)})
    assert [change.name for change in changes] == ["firing"], "it stays while it is worse"
    assert changes[0].message.startswith("regression: 0.8 -> 0.")
    for window in range(200, 260):
        changes += judge(engine, window, {4: restless(window)})
    assert changes[-1].name == "resolved"
    assert changes[-1].message.startswith(f"layer 4: {QUALITY} score is ")


@pytest.mark.parametrize("cut", [5, 40, 99, 102, 104, 130])
def test_it_goes_on_from_a_checkpoint_as_if_nothing_was(cut: int) -> None:
    random = np.random.default_rng(4)
    values = 0.8 + 0.02 * random.normal(size=(160, 2))
    values[100:, 0] -= 0.1
    values[20:23] = math.nan
    straight, resumed = engine_of(), engine_of()
    for window, (four, six) in enumerate(values):
        if window == cut:
            state = json.loads(json.dumps(resumed.state()))
            resumed = engine_of()
            resumed.load(state)
            assert [a.message for a in resumed.open()] == [a.message for a in straight.open()]
        now = {4: four, 6: six}
        assert judge(resumed, window, now) == judge(straight, window, now)
    assert json.dumps(resumed.state()) == json.dumps(straight.state())
    assert straight.open() or cut, "something happened"


def test_a_layer_that_comes_late_takes_nothing_from_the_others() -> None:
    alone, joined = engine_of(), engine_of()
    for window in range(120):
        value = restless(window) - (0.3 if window >= 100 else 0.0)
        more = {2: restless(window)} if window >= 50 else {}
        one, both = judge(alone, window, {4: value}), judge(joined, window, {**more, 4: value})
        assert told(one) == told(both)
    [alert] = joined.open()
    assert alert.layer == 4


def test_the_detectors_of_rules_that_stay_go_on_when_others_are_edited() -> None:
    engine = engine_of()
    for window in range(100):
        judge(engine, window, {4: restless(window)})
    slow = {"metric": "avg_latency", "thresholds": {"error": 1}}
    config = parse(AlertConfig, {"rules": {"slow": slow, "fell": RULE}}, "alerts")
    engine.replace_rules(compile_rules(config))
    changes: list[Transition] = []
    for window in range(100, 110):
        changes += judge(engine, window, {4: restless(window) - 0.3})
    assert told(changes) == [("firing", 4)]


def test_windows_that_are_not_judged_are_not_learned_from() -> None:
    engine = engine_of()
    for window in range(60):
        judge(engine, window, {4: 0.1}, warming_up=True)
    for window in range(60, 120):
        assert not judge(engine, window, {4: restless(window)})
    assert engine.state()["instances"][0]["detector"][0] == 60


def test_no_data_is_no_data_and_learning_is_none() -> None:
    engine = engine_of(no_data={"mode": "alert", "for": "2 windows"})
    for window in range(10):
        assert not judge(engine, window, {4: 0.8}), "it only learns, which is no gap"
    changes: list[Transition] = []
    for window in range(10, 14):
        changes += judge(engine, window, {4: math.nan})
    assert told(changes) == [("nodata", 4)]


def test_a_companion_and_m_of_n_go_with_it() -> None:
    engine = engine_of(when="total_entries > 0", m_of_n=[2, 3])
    for window in range(100):
        judge(engine, window, {4: restless(window)})
    for window in range(100, 110):
        numbers = GivenNumbers({(QUALITY, 4, None): 0.2, ("total_entries", 4, None): 0.0})
        engine.evaluate(numbers, step=window, now=float(window), window=window)
    assert not engine.open()
    numbers = GivenNumbers({(QUALITY, 4, None): 0.2, ("total_entries", 4, None): 5.0})
    for window, expected in ((110, 0), (111, 1)):
        engine.evaluate(numbers, step=window, now=float(window), window=window)
        assert len(engine.open()) == expected


def test_a_glob_has_no_regression_of_what_has_no_good_direction() -> None:
    config = {"metric": "*", "detector": {"channels": ["regression"]}, "thresholds": {"error": 1}}
    [rule] = compile_rules(parse(AlertConfig, {"rules": {"all": config}}, "alerts"))
    assert QUALITY in rule.metrics and "total_entries" not in rule.metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": {"name": "telemetri"}}, r"detector.name: got 'telemetri'; did you mean 'tel"),
        ({"detector": {"channels": ["drfit"]}}, r"channels: got 'drfit'; did you mean 'drift'"),
        ({"detector": {"channels": []}}, r"detector.channels"),
        ({"detector": {"min_windows": 3}}, r"min_windows must be at least 10, got 3"),
        (
            {"detector": {"chanels": ["shift"]}},
            r"chanels is not a setting; did you mean 'channels'",
        ),
        ({"condition": "<"}, r"condition must be '>' or '>=' with a detector.*got '<'"),
        ({"compare": {"vs": "self.best"}}, r"'self.best' and detector both.*ranks.median"),
        ({"compare": {"vs": "baseline"}}, r"'baseline' and detector both compare"),
        ({"over": "run"}, r"over must be 'window' with a detector, got 'run'"),
        ({"metric": "total_entries"}, r"'regression' needs a direction that is bad, and total_e"),
    ],
)
def test_what_does_not_go_with_a_detector(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_of(**changes)


def test_beside_the_ranks_first() -> None:
    rule = {
        "metric": "step_time",
        "select": {"rank": "*"},
        "compare": {"vs": "ranks.median"},
        "detector": {"channels": ["regression"]},
        "thresholds": {"error": 1},
    }
    config = parse(AlertConfig, {"rules": {"slow": rule}}, "alerts")
    engine = AlertEngine(compile_rules(config))
    for window in range(150):
        usual = 1.0 + 0.5 * (window >= 100)  # all are slower: nobody is beside the others
        times = {
            ("step_time", None, r): usual * (1 + 0.01 * ((3 * window + r) % 4)) for r in range(4)
        }
        times["step_time", None, 2] *= 1.5 if window >= 120 else 1.0
        engine.evaluate(GivenNumbers(times, ranks=4), step=window, now=float(window), window=window)
        if window < 120:
            assert not engine.open()
    assert [alert.rank for alert in engine.open()] == [2]
