"""The alert engine: a pure function of rules, states, snapshot, step and now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from cmr_monitor_callbacks.health.rules import AlertRule, Threshold
from cmr_monitor_callbacks.health.states import AlertState, Phase, Severity, Transition
from cmr_monitor_callbacks.layers import LayerId, layer_order, matches
from cmr_monitor_callbacks.packed import METRIC_ROW
from cmr_monitor_callbacks.snapshot import Snapshot

Key = tuple[str, LayerId | None]
States = Mapping[Key, AlertState]


def evaluate(
    rules: Iterable[AlertRule],
    states: States,
    snapshot: Snapshot,
    *,
    step: int,
    now: float,
    window: int,
) -> tuple[dict[Key, AlertState], list[Transition]]:
    """Judge every rule on a snapshot.

    Args:
        rules: the rules.
        states: alerts as they stood after the last evaluation; those of rules that are gone drop.
        snapshot: the numbers.
        step: the window's last step.
        now: seconds since the Unix epoch.
        window: number of the window.

    Returns:
        the alerts that are pending or firing now, by rule and layer, and what changed. Without data
        an alert stays as it was.
    """
    new: dict[Key, AlertState] = {}
    transitions: list[Transition] = []
    for rule in rules:
        for layer, value in _candidates(rule, states, snapshot):
            old = states.get((rule.name, layer), AlertState(rule.name, layer))
            state = old if math.isnan(value) else _advance(rule, old, value, step, now, window)
            if state.phase is not Phase.INACTIVE:
                new[state.key] = state
            if (state.phase, state.severity) != (old.phase, old.severity):
                transitions.append(_transition(rule, old, state, step, now))
    return new, transitions


def _candidates(
    rule: AlertRule, states: States, snapshot: Snapshot
) -> list[tuple[LayerId | None, float]]:
    """Series whose condition holds now or whose alert is open, with their values: mostly none."""
    if rule.metric not in METRIC_ROW:
        value = snapshot.value(rule.metric)
        return [(None, value)] if rule.layer is None else []
    values = snapshot.row(rule.metric, rule.over).tolist()
    if rule.layer is None:
        return [(None, values[0])]
    # plain floats: a dozen comparisons cost less than one whole-array test
    found = {
        layer: value
        for layer, value in zip(snapshot.layer_ids, values[1:], strict=True)
        if rule.suspects(value) or (rule.name, layer) in states
    }
    return [
        (layer, found[layer])
        for layer in sorted(found, key=layer_order)
        if matches(rule.layer, layer)
    ]


def _advance(
    rule: AlertRule, old: AlertState, value: float, step: int, now: float, window: int
) -> AlertState:
    threshold = _highest_met(rule, old, value)
    if threshold is None:
        return AlertState(rule.name, old.layer, value=value)
    if old.phase is Phase.INACTIVE:
        old = replace(old, since_step=step, since_time=now, since_window=window)
    state = replace(
        old, severity=threshold.severity, value=value, threshold=threshold.fire, phase=Phase.PENDING
    )
    elapsed = {
        "steps": step - state.since_step,
        "windows": window - state.since_window,
        "seconds": now - state.since_time,
    }[rule.hold_unit]
    if old.phase is Phase.FIRING or elapsed >= rule.hold:
        fired = now if old.fired_time is None else old.fired_time
        state = replace(state, phase=Phase.FIRING, fired_time=fired)
    return state


def _highest_met(rule: AlertRule, old: AlertState, value: float) -> Threshold | None:
    """The highest threshold met; one that is firing holds until its recovery point is passed."""
    for threshold in rule.thresholds:
        holds = old.phase is Phase.FIRING and _at_least(old.severity, threshold.severity)
        if rule.met(value, threshold.recover if holds else threshold.fire):
            return threshold
    return None


def _at_least(severity: Severity | None, other: Severity) -> bool:
    return severity is not None and severity.rank >= other.rank


def _transition(
    rule: AlertRule, old: AlertState, state: AlertState, step: int, now: float
) -> Transition:
    threshold = next(
        (t for t in rule.thresholds if t.severity is (state.severity or old.severity)),
        rule.thresholds[0],
    )
    if state.phase is Phase.INACTIVE:
        message = f"{rule.metric} is {state.value:.3g} again"
        if state.layer is not None:
            message = f"layer {state.layer}: {message}"
    else:
        message = rule.message(state.layer, state.value, threshold, step)
    return Transition(state, old.phase, step, now, message)
