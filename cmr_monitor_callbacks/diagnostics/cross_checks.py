"""What others say: hooks, the model's own counters, its optimiser, the monitor itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import BY_NAME, Polarity
from cmr_monitor_callbacks.diagnostics.finding import Hit
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.entries import OwnCount

OFF = 0.01
"""Share by which a model's own count may be off; less may be a batch that is under way."""
SLOW = 0.2
"""Share of the time that was measured."""
MOVED = 20
"""Below, a counter may not have had the time to move."""
AROUND = 5
"""Windows before and after a change that are compared."""
CHANGED = 0.1
CLEARLY = 3.0
IMPACT: Final = {
    "threshold_adjustments": "storage_efficiency",
    "batch_optimizations": "step_time",
    "prefetch_hits": "avg_retrieval_time",
}
"""What a change of the model's optimiser is meant to improve."""


def hooks_capture_twice(m: Material) -> Iterator[Hit]:
    """Two hooks of one module capture states."""
    for one in m.conflicts:
        if one.kind == "capture_twice":
            names = ", ".join(one.functions)
            where = one.module or "the model"
            text = f"{len(one.functions)} hooks of {where} capture states ({names})"
            yield Hit(text, None, {"module": one.module, "functions": one.functions})


def hook_never_runs(m: Material) -> Iterator[Hit]:
    """A hook was registered after its module was compiled."""
    for one in m.conflicts:
        if one.kind == "after_compile":
            names = ", ".join(one.functions)
            text = f"hooks of {one.module or 'the model'} came after it was compiled ({names})"
            yield Hit(text, None, {"module": one.module, "functions": one.functions})


def hooks_slow(m: Material) -> Iterator[Hit]:
    """Hooks take much of the forward that they were measured in."""
    measured = m.measured
    if measured is None or not measured.wall_seconds:
        return
    ours = {(hook.module, hook.kind, hook.id) for hook in m.hooks if hook.ours}
    seconds = sum(s for key, s in measured.seconds.items() if key not in ours)
    share = seconds / measured.wall_seconds
    if share > SLOW:
        slowest = max(measured.seconds, key=lambda key: measured.seconds[key])
        text = (
            f"hooks take {share:.0%} of the time; the slowest is one of {slowest[0] or 'the model'}"
        )
        yield Hit(text, None, {"share": share, "seconds": seconds, "slowest": slowest[0]})


def model_counter_dead(m: Material) -> Iterator[Hit]:
    """A number that the model keeps never moves, while what it counts happens."""
    for own, ours in m.own_counts:
        if own.value == 0 and ours >= MOVED and BY_NAME[own.metric].name != "total_entries":
            text = f"{own.where} stayed as it was, while {ours:.0f} were counted"
            yield Hit(text, own.layer, _counts(own, ours))


def model_counter_differs(m: Material) -> Iterator[Hit]:
    """A number that the model keeps is not what was counted here."""
    for own, ours in m.own_counts:
        dead = own.value == 0 and own.metric != "total_entries"
        if not dead and abs(own.value - ours) > max(1.0, OFF * ours):
            text = f"{own.where} rose by {own.value:.0f}; {ours:.0f} were counted"
            yield Hit(text, own.layer, _counts(own, ours))


def _counts(own: OwnCount, ours: float) -> dict[str, Any]:
    return {"where": own.where, "metric": own.metric, "model": own.value, "counted": ours}


def optimisation_made_it_worse(m: Material) -> Iterator[Hit]:
    """What the model's optimiser did was followed by a worse value of what it is meant to help."""
    for counter, row in impact(m).items():
        before, after, spread = row["before"], row["after"], row["spread"]
        if before is None or after is None or spread is None:
            continue
        worse = after - before if row["lower_is_better"] else before - after
        if worse > CLEARLY * spread and worse > CHANGED * abs(before):
            text = (
                f"after the first {counter.replace('_', ' ')} {row['metric']} went from "
                f"{before:.3g} to {after:.3g}"
            )
            yield Hit(text, None, row)


def impact(m: Material) -> dict[str, dict[str, Any]]:
    """By counter of the model's optimiser: a metric in the windows before and after it first rose.

    ``spread`` is the standard error of the difference, from the windows' own scatter.
    """
    out: dict[str, dict[str, Any]] = {}
    for counter, metric in IMPACT.items():
        total = m.value(counter)
        if math.isnan(total):
            continue
        lower = BY_NAME[metric].polarity is Polarity.LOWER
        row: dict[str, Any] = {
            "count": total,
            "metric": metric,
            "lower_is_better": lower,
            **dict.fromkeys(("before", "after", "spread", "at_step")),
        }
        out[counter] = row | _around(m, counter, metric)
    return out


def _around(m: Material, counter: str, metric: str) -> dict[str, Any]:
    risen, values = m.series(counter), m.series(metric)
    if risen is None or values is None:
        return {}
    # a counter that never moved says nothing: it stands at 0 until it does
    rose = np.flatnonzero(np.diff(np.nan_to_num(risen.last), prepend=0.0) > 0)
    if not len(rose):
        return {}
    step = int(risen.step[rose[0]])
    fine = np.isfinite(values.value)
    before = values.value[fine & (values.step < step)][-AROUND:]
    after = values.value[fine & (values.step > step)][:AROUND]
    if min(len(before), len(after)) < AROUND:
        return {"at_step": step}
    spread = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / AROUND)
    return {
        "at_step": step,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "spread": spread,
    }


def monitor_failing(m: Material) -> Iterator[Hit]:
    """A part of the monitor failed."""
    failures = m.snapshot.own_value("failures", None, "run")
    if failures > 0:
        yield Hit(f"the monitor failed {failures:.0f} times", None, {"failures": failures})


def samples_rejected(m: Material) -> Iterator[Hit]:
    """The model told numbers that cannot be."""
    count = m.snapshot.own_value("invalid_samples", None, "run")
    if count > 0:
        text = f"{count:.0f} numbers were not taken: negative, not finite or out of range"
        yield Hit(text, None, {"invalid_samples": count})
