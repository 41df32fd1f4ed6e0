"""Rules that will do nothing with a model, or with these settings, and why."""

from __future__ import annotations

from collections.abc import Sequence

from cmr_monitor_callbacks.checking.report import (
    FIRES,
    MATCHES_NOTHING,
    QUIET,
    UNSURE,
    RuleNote,
)
from cmr_monitor_callbacks.checking.sources import STRAGGLERS, Sources
from cmr_monitor_callbacks.health import AlertRule
from cmr_monitor_callbacks.health.rules import literal_layers
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.packed import METRIC_ROW


def check_rules(rules: Sequence[AlertRule], sources: Sources) -> tuple[RuleNote, ...]:
    """Rules of which something is to be said, in their order."""
    notes = (_check(rule, sources) for rule in rules)
    return tuple(note for note in notes if note is not None)


def _check(rule: AlertRule, sources: Sources) -> RuleNote | None:
    for look in (_by_rank, _by_metric, _by_layer, _by_companion):
        found = look(rule, sources)
        if found is not None:
            return RuleNote(rule.name, *found)
    if rule.condition not in ("absent", "nonfinite") and all(map(sources.was_quiet, rule.metrics)):
        what = rule.metrics[0] if len(rule.metrics) == 1 else "what it looks at"
        return RuleNote(rule.name, QUIET, f"{what} may have a source, but had no data yet")
    return None


Found = tuple[str, str] | None


def _by_rank(rule: AlertRule, sources: Sources) -> Found:
    ranks = sources.ranks
    if ranks is None:
        needed = max(rule.min_ranks, 2 if set(rule.metrics) <= STRAGGLERS else 1)
        if needed > 1:
            return UNSURE, f"it needs {needed} processes (--ranks says how many there will be)"
        if rule.rank is not None and not matches(rule.rank, 0):
            return UNSURE, f"select.rank {rule.rank!r} leaves out rank 0 (see --ranks)"
        return None
    if ranks < rule.min_ranks:
        given = "is one" if ranks == 1 else f"are {ranks}"
        return MATCHES_NOTHING, f"it needs {rule.min_ranks} processes, and there {given}"
    if rule.rank is not None and not any(matches(rule.rank, rank) for rank in range(ranks)):
        there = "rank 0 alone is there" if ranks == 1 else f"there are ranks 0 to {ranks - 1}"
        return MATCHES_NOTHING, f"select.rank {rule.rank!r} matches no rank: {there}"
    return None


def _by_metric(rule: AlertRule, sources: Sources) -> Found:
    by_layer = rule.layer is not None
    obstacles = [sources.obstacle(name, by_layer=by_layer) for name in rule.metrics]
    if not all(obstacles):
        return None
    reason = obstacles[0] if obstacles else "its glob means no metric"
    if len(obstacles) > 1:
        reason = f"none of its {len(obstacles)} metrics has data; {reason}"
    return _without_data(rule, reason)


def _without_data(rule: AlertRule, reason: str) -> Found:
    """A rule that never has data matches nothing, unless that is what it fires for."""
    if rule.condition == "absent" or (rule.no_data in ("alert", "error") and not rule.when):
        return FIRES, f"{reason}, and for want of data it fires"
    return MATCHES_NOTHING, reason


def _by_layer(rule: AlertRule, sources: Sources) -> Found:
    if rule.layer is None:
        return None
    layers, watched = sources.layers, sources.config.layers
    literal = literal_layers(rule.layer)
    only_literal = len(literal) == len(rule.layer.split("|"))
    if layers is None:
        plain = [x for glob in watched for x in literal_layers(glob)]
        named = len(plain) == sum(len(glob.split("|")) for glob in watched)
        none_watched = only_literal and not any(map(sources.config.watches_layer, literal))
        none_meant = named and not any(matches(rule.layer, x) for x in plain)
        if none_watched or none_meant:
            return _without_layer(
                rule,
                f"select.layer {rule.layer!r} matches no layer that monitoring.layers "
                f"({', '.join(watched)}) lets through",
            )
        return None
    if any(matches(rule.layer, layer) for layer in layers):
        return None
    through = "" if watched == ("*",) else f" that monitoring.layers ({', '.join(watched)}) allows"
    if layers:
        shown = ", ".join(map(str, layers))
        reason = f"select.layer {rule.layer!r} matches no layer found{through} ({shown})"
    else:
        reason = f"select.layer {rule.layer!r} matches nothing: no layer was found{through}"
    if not sources.certain and not layers:
        return UNSURE, f"{reason}; layers show in a forward pass (--input)"
    return _without_layer(rule, reason)


def _without_layer(rule: AlertRule, reason: str) -> Found:
    if rule.condition == "absent" and literal_layers(rule.layer or ""):
        return FIRES, f"{reason}, and for want of data it fires"
    return MATCHES_NOTHING, reason


def _by_companion(rule: AlertRule, sources: Sources) -> Found:
    """``when`` holds only where all comparisons of an alternative have data."""
    reason = ""
    for parts in rule.when:
        obstacles = []
        for part in parts:
            prefix, _, name = part.name.rpartition(".")
            by_layer = rule.layer is not None and not prefix
            obstacles.append(sources.obstacle(name, by_layer=by_layer and _in_tables(name)))
        lacking = [obstacle for obstacle in obstacles if obstacle]
        if not lacking:
            return None
        reason = reason or lacking[0]
    return (MATCHES_NOTHING, f"its when can never hold: {reason}") if reason else None


def _in_tables(name: str) -> bool:
    """Whether a companion is looked up by layer; the monitor's own numbers are of the whole."""
    return name in METRIC_ROW
