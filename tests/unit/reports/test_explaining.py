"""Why a number has no data and why a rule is silent, on histories made for one answer."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cmr_monitor_callbacks import HistoryConfig, RunHistory
from cmr_monitor_callbacks.health import Phase
from cmr_monitor_callbacks.history import HistoryStore, RunInfo
from cmr_monitor_callbacks.reports.explaining import explain
from tests.histories import START, snapshot, store, transition

RULE = {
    "metric": "storage_efficiency",
    "condition": "<",
    "thresholds": {"error": 0.5},
    "select": {"layer": "*"},
}


def run(sources: dict[str, str] | None = None, **config: Any) -> HistoryStore:
    """A run of ten windows with captures at layer 4."""
    opened = HistoryStore(None, HistoryConfig(), RunInfo(config=config), now=START)
    opened.describe(sources or {}, "blocks.4.memory: buffer")
    for step in range(10):
        values = {("storage_efficiency", 4): 0.75, "storage_efficiency": 0.75, "states_stored": 8.0}
        values |= {"cache_hit_rate": math.nan if step > 6 else 0.5}
        opened.window(snapshot(step, values, layers=(4,)))
    return opened


def test_a_number_with_its_facts_and_newest_values() -> None:
    found = explain(RunHistory(run({"capture": "explicit:probe"})), "storage_efficiency")
    assert found.kind == "metric" and found.verdict == ""
    assert found.facts["source"] == "explicit:probe" and found.facts["unit"] == "1"
    assert found.facts["formula"] == "states_stored / states_captured"
    assert found.series == {
        "storage_efficiency": "75 % at step 9",
        "storage_efficiency/layer_04": "75 % at step 9",
    }


@pytest.mark.parametrize("name", ["total_captures", "states_captured"])
def test_any_name_of_a_number_is_taken(name: str) -> None:
    assert explain(RunHistory(run()), name).name == "states_captured"


def test_an_unknown_name_names_the_nearest() -> None:
    history = RunHistory(run(alerts={"rules": {"dead": RULE}}))
    with pytest.raises(KeyError, match=r"did you mean 'storage_efficiency'"):
        explain(history, "storage_eficiency")
    with pytest.raises(KeyError, match=r"'daed' is no number and no rule of this run; did you m"):
        explain(history, "daed")


def test_why_there_is_no_data() -> None:
    known = {"retrieval": "wrapped:buffer.get"}

    def why(name: str, sources: dict[str, str] | None = None, **config: Any) -> str:
        return explain(RunHistory(run(sources, **config)), name).verdict

    assert explain(RunHistory(store(None)), "step_time").verdict.startswith("No window of training")
    assert "monitoring.components is ['capture']" in why(
        "retrieval_quality", monitoring={"components": ["capture"]}
    )
    nobody = why("retrieval_quality")
    assert "Nothing in the model tells of retrieval" in nobody and "blocks.4.memory" in nobody
    assert "does not tell retrieval_quality_sum" in why("retrieval_quality", known)
    assert "does not tell operations" in why("error_rate", {"errors": "probe"})
    assert "compares ranks" in why("straggler_ratio")
    ended = why("cache_hit_rate", known)
    assert ended.startswith("It had data last at step 6, and has none since then.")


@pytest.mark.parametrize("rule", [RULE, RULE | {"enabled": False}])
def test_a_rule_and_what_it_looks_at(rule: dict[str, Any]) -> None:
    found = explain(RunHistory(run(alerts={"rules": {"dead": rule}})), "dead")
    assert found.kind == "rule" and found.facts["selects"] == "layer *"
    assert found.facts["fires"] == "error where < 0.5"
    assert found.series == {"storage_efficiency/layer_04": "75 % at step 9"}
    silent = "It does not fire: its condition does not hold: "
    expected = silent if rule.get("enabled", True) else "It is switched off: its enabled is false."
    assert found.verdict.startswith(expected)


def test_why_a_rule_is_silent() -> None:
    def why(rule: dict[str, Any], **alerts: Any) -> str:
        history = RunHistory(run(alerts={"rules": {"dead": rule}} | alerts))
        return explain(history, "dead").verdict

    assert "alerts.enable_alerts is false" in why(RULE, enable_alerts=False)
    assert "several, up to history.ranks_up_to" in why(RULE | {"select": {"rank": "*"}})
    nothing = why(RULE | {"metric": "retrieval_quality", "select": {}})
    assert nothing.startswith("It matches no number of this run: Nothing in the model tells")
    assert "matches no number of this run: no layer is selected" in why(
        RULE | {"select": {"layer": "7"}}
    )


def test_a_rule_that_is_open_or_was() -> None:
    opened = run(alerts={"rules": {"dead": RULE}})
    opened.alerts([transition("dead", 3, Phase.FIRING, layer=4)], [])
    assert explain(RunHistory(opened), "dead").verdict.startswith(
        "It is open: firing (warning) since step 3: dead <is> 25%"
    )
    opened.alerts([transition("dead", 5, Phase.INACTIVE, Phase.FIRING, layer=4)], [])
    assert "Last: resolved at step 5" in explain(RunHistory(opened), "dead").verdict


def test_a_rule_with_a_detector_and_one_beside_a_recorded_run() -> None:
    watched = {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "detector": {"channels": ["drift", "regression"], "min_windows": 10},
        "thresholds": {"error": 1.0},
    }
    beside = {**RULE, "compare": {"vs": "baseline"}}
    alerts = {"rules": {"falls": watched, "worse": beside}, "baseline": "runs/good"}
    history = RunHistory(run(alerts=alerts))
    found = explain(history, "falls")
    assert found.facts["fires"] == (
        "error where > 1.0 (the score of the detector telemetry for drift, regression, after 10 "
        "windows with data)"
    )
    assert found.verdict.startswith(
        "It does not fire: its detector has learned from 10 windows with data at most, and says "
        "nothing until 10 are over."
    )
    longer = run(alerts=alerts)
    longer.window(snapshot(10, {("storage_efficiency", 4): 0.75}, layers=(4,)))
    said = explain(RunHistory(longer), "falls").verdict
    assert said.startswith("It does not fire: its condition does not hold.")
    found = explain(history, "worse")
    assert found.facts["fires"] == "error where < 0.5 (as ratio to baseline runs/good)"
    assert found.verdict.startswith("It does not fire: its condition does not hold.")
