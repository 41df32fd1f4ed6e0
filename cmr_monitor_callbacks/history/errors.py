"""Errors as data: what went wrong, where and when."""

from __future__ import annotations

from dataclasses import dataclass

from cmr_monitor_callbacks.layers import LayerId


@dataclass(frozen=True)
class ErrorRecord:
    """Errors of one kind in one window.

    Attributes:
        origin: ``model`` (an error that the model's memory met), ``sample`` (a value that was not
            taken), or ``monitor`` (the monitor's own failure).
        component: whose error it is.
        layer: where; None: the model as a whole.
        rank: the process.
        type: class of the exception, or why a value was not taken.
        message: its text.
        traceback: where it was raised; '' where that is not known.
        step: step at which the first of them was seen.
        time: the same, seconds since the Unix epoch.
        count: how many.
    """

    origin: str
    component: str
    layer: LayerId | None
    rank: int
    type: str
    message: str
    traceback: str
    step: int
    time: float
    count: int = 1
