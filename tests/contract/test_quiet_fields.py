"""What the fields of ``alerts`` do that say which alerts nobody is told of."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from tests.contract.fields import BY_LAYER, REFUSED, shows, story

BOTH = {"refused": REFUSED, "worse": REFUSED | {"thresholds": {"critical": 0.5}}}
INHIBIT = {"source": {"alert": "worse"}, "target": {"alert": "refused"}}


@shows("alerts.inhibit.source")
@pytest.mark.parametrize(("source", "told"), [("w*", 1), ("other", 2)])
def test_inhibit_source(source: str, told: int) -> None:
    loop = story(BOTH, inhibit=[INHIBIT | {"source": {"alert": source}}])
    assert len(loop.steps(1)) == told


@shows("alerts.inhibit.target")
@pytest.mark.parametrize(("target", "told"), [("refused", 1), ("other", 2)])
def test_inhibit_target(target: str, told: int) -> None:
    loop = story(BOTH, inhibit=[INHIBIT | {"target": {"alert": target}}])
    assert len(loop.steps(1)) == told


@shows("alerts.inhibit.equal")
@pytest.mark.parametrize(("equal", "told"), [([], []), (["layer"], ["6"])])
def test_inhibit_equal(equal: list[str], told: list[str]) -> None:
    """Layer 4's critical alert keeps quiet that of layer 4, or of all layers."""
    rules = {
        "refused": BY_LAYER,
        "worse": BOTH["worse"] | {"select": {"layer": "4"}},
    }
    loop = story(rules, inhibit=[INHIBIT | {"equal": equal}])
    loop.steps(1)
    alerts = [alert for notice in loop.ear.notices for alert in notice.alerts]
    assert [alert.labels["layer"] for alert in alerts if alert.rule == "refused"] == told


@shows("alerts.silences.match")
@pytest.mark.parametrize(("layer", "told"), [("4", ["6"]), ("*", []), ("9", ["4", "6"])])
def test_silence_match(layer: str, told: list[str]) -> None:
    loop = story({"refused": BY_LAYER}, silences=[{"match": {"layer": layer}}])
    loop.steps(1)
    alerts = [alert for notice in loop.ear.notices for alert in notice.alerts]
    assert sorted(alert.labels["layer"] for alert in alerts) == told


ALL = {"match": {"alert": "*"}}


@shows("alerts.silences.from_step")
@pytest.mark.parametrize(("first", "told"), [(0, 0), (3, 1)])
def test_silence_from_step(first: int, told: int) -> None:
    assert len(story(silences=[ALL | {"from_step": first}]).steps(1, 1)) == told


@shows("alerts.silences.until_step")
@pytest.mark.parametrize(("last", "told"), [(None, [0, 0, 0]), (1, [0, 0, 1])])
def test_silence_until_step(last: Any, told: list[int]) -> None:
    loop = story(silences=[ALL | {"until_step": last}])
    assert [len(loop.steps(1)) for _ in range(3)] == told


@shows("alerts.silences.until")
@pytest.mark.parametrize(("end", "told"), [(None, [0, 0, 0]), (1050.0, [0, 0, 1])])
def test_silence_until(end: float | None, told: list[int]) -> None:
    date = None if end is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    loop = story(silences=[ALL | {"until": date}])  # windows end at 1020, 1040, 1060 s
    assert [len(loop.steps(1)) for _ in range(3)] == told


@shows("alerts.silences.comment")
def test_silence_comment(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks.alerts"):
        story(silences=[ALL | {"comment": "small on purpose"}]).steps(1, 1)
        story(silences=[ALL]).steps(1)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "nobody is told of refused, for it is silenced: small on purpose",
        "nobody is told of refused, for it is silenced",
    ]
