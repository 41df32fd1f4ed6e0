"""Why a number has no data, and why a rule does not fire."""

from __future__ import annotations

import re
from typing import Final

from cmr_monitor_callbacks.catalogue import CUSTOM, canonical, known_names
from cmr_monitor_callbacks.errors import closest
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.reports.explained_numbers import Explanation, explain_number
from cmr_monitor_callbacks.reports.explained_rules import explain_rule, explain_rule_from_code

_TAG: Final = re.compile(r"^cmr(_[a-z]+)+/")


def explain(history: RunHistory, name: str) -> Explanation:
    """What a number of a run is, where it comes from and why it has no data; or the same of a rule.

    Args:
        history: of the run.
        name: any name of a metric, of one layer or rank (``states_stored/layer_04``), its tag in
            TensorBoard; or a rule's.

    Raises:
        KeyError: it is neither; the message names the nearest.
        HistoryError: the store cannot be read.
    """
    rules = history.config.get("alerts", {}).get("rules", {})
    if name in rules:
        return explain_rule(history, name, rules[name])
    if name not in known_names() and any(row["rule"] == name for row in history.alerts()):
        return explain_rule_from_code(history, name)
    plain, _, part = _TAG.sub("", name).partition("/")
    own = CUSTOM + _TAG.sub("", name).removeprefix(CUSTOM)
    if plain not in known_names() and any(key.name == own for key in history.list_series()):
        return explain_number(history, own)
    if plain not in known_names():
        hint = closest(plain, (*rules, *known_names()))
        if not hint:
            hint = f"; docs/metrics.md lists the numbers; rules: {', '.join(rules) or 'none'}"
        raise KeyError(f"{name!r} is no number and no rule of this run{hint}")
    return explain_number(history, canonical(plain), part)


__all__ = ["Explanation", "explain"]
