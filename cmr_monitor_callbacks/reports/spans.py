"""From transitions to stretches: when each alert was firing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AlertSpan:
    """A stretch in which an alert was firing with one severity.

    Attributes:
        label: rule, and layer and rank where it has them.
        severity: of the alert.
        begin: first step.
        end: last step.
        message: a sentence for people.
        open: whether it was firing still at the end.
    """

    label: str
    severity: str
    begin: int
    end: int
    message: str
    open: bool = False


def alert_spans(transitions: Iterable[Mapping[str, Any]], end: int) -> list[AlertSpan]:
    """Stretches of firing alerts, in the order in which they began.

    Args:
        transitions: as `RunHistory.alerts` gives them.
        end: step at which those end that fire still.

    >>> fired = {"rule": "slow", "metric": "m", "layer": 4, "rank": None, "step": 10,
    ...     "after": "firing", "severity": "error", "message": "0.3 s"}
    >>> alert_spans([fired], end=30)[0].label
    'slow, layer 4'
    """
    spans: list[AlertSpan] = []
    begun: dict[tuple[Any, ...], tuple[int, AlertSpan]] = {}
    for row in transitions:
        key = row["rule"], row["metric"], row["layer"], row["rank"]
        fires = row["after"] not in ("inactive", "pending")
        if key in begun and (not fires or row["severity"] != begun[key][1].severity):
            at, span = begun.pop(key)
            spans[at] = AlertSpan(span.label, span.severity, span.begin, row["step"], span.message)
        if fires and key not in begun:
            span = AlertSpan(
                alert_label(row), row["severity"] or "", row["step"], end, row["message"], True
            )
            begun[key] = len(spans), span
            spans.append(span)
    return spans


def alert_label(row: Mapping[str, Any]) -> str:
    """Rule of an alert, and layer and rank where it has them.

    >>> alert_label({"rule": "slow", "layer": None, "rank": 3})
    'slow, rank 3'
    """
    parts = [row["rule"]]
    if row["layer"] is not None:
        parts.append(f"layer {row['layer']}")
    if row["rank"] is not None:
        parts.append(f"rank {row['rank']}")
    return ", ".join(parts)
