"""All ranks' numbers together: one asynchronous gather per window."""

from __future__ import annotations

from cmr_monitor_callbacks.distributed.exchange import Exchange, moved, steps_between
from cmr_monitor_callbacks.distributed.group import ExchangeError, RankGroup
from cmr_monitor_callbacks.distributed.merge import Exchanged
from cmr_monitor_callbacks.distributed.payload import Header, reasons
from cmr_monitor_callbacks.distributed.routes import flat, tree
from cmr_monitor_callbacks.distributed.session import LAG, RankSession
from cmr_monitor_callbacks.distributed.votes import Votes

__all__ = [
    "LAG",
    "Exchange",
    "ExchangeError",
    "Exchanged",
    "Header",
    "RankGroup",
    "RankSession",
    "Votes",
    "flat",
    "moved",
    "reasons",
    "steps_between",
    "tree",
]
