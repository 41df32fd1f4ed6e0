"""The alert engine: all rules on all their series, as arrays.

A pure function of rules, state, numbers, step and time: nothing here reads a clock or a file. The
state of every instance (a rule on one series) stands in arrays, so that judging thousands of
instances that are well costs a few dozen array operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.health.baseline import Baseline, BaselineKey, BesideRun
from cmr_monitor_callbacks.health.detecting import Detectors
from cmr_monitor_callbacks.health.limits import Limits
from cmr_monitor_callbacks.health.memory import Memory
from cmr_monitor_callbacks.health.numbers import Array, Numbers
from cmr_monitor_callbacks.health.rules import AlertRule
from cmr_monitor_callbacks.health.series import Series, beside
from cmr_monitor_callbacks.health.states import AlertState, Key, Phase, Severity, Transition
from cmr_monitor_callbacks.layers import LayerId

Mask = NDArray[np.bool_]
PHASES: Final = tuple(Phase)
INACTIVE, PENDING, FIRING, RECOVERING, NODATA, ERROR = range(len(PHASES))
SEVERITY: Final = (None, *Severity)
"""By level: 0 is none."""
_KEY: Final = ("rule", "metric", "layer", "rank")
_EARLY: Final = np.array([0.0, 0.0, 1e-6])[:, None]
"""Clocks are floats: a second that ends a millionth early has ended."""
_ENDS: Final = {
    "nonfinite": "is finite again",
    "frozen": "changes again",
    "absent": "has data again",
}
EWMA_WINDOWS: Final = 20
"""Windows over which the average of ``self.ewma`` mostly reaches."""
_EWMA_NEEDS: Final = 5
_ALPHA: Final = 2 / (EWMA_WINDOWS + 1)


class AlertEngine:
    """Judges rules, window by window.

    Args:
        rules: the rules.
        baseline: the recorded run that rules with ``vs: baseline`` compare with.

    Attributes:
        errors: conditions that failed in the last evaluation: the rule's name and what was raised.
        unknown: series of the last evaluation that have data, and that the baseline never had.

    >>> from cmr_monitor_callbacks.config import AlertConfig
    >>> from cmr_monitor_callbacks.health import GivenNumbers, compile_rules
    >>> rule = {"metric": "avg_latency", "condition": ">", "thresholds": {"error": 0.1}}
    >>> engine = AlertEngine(compile_rules(AlertConfig(rules={"slow": rule})))
    >>> changes = engine.evaluate(
    ...     GivenNumbers({("avg_latency", None, None): 0.2}), step=49, now=60.0, window=1
    ... )
    >>> [(change.name, change.message) for change in changes]
    [('firing', 'avg_latency is 0.2 (> 0.1)')]
    """

    def __init__(self, rules: Sequence[AlertRule], baseline: Baseline | None = None) -> None:
        self.rules = tuple(rules)
        self._baseline = baseline
        self._layout: tuple[tuple[LayerId, ...], int] = ((), 1)
        self.clear()

    def clear(self) -> None:
        """No alert is open, nothing was ever judged."""
        self.errors: list[tuple[str, Exception]] = []
        self.unknown: list[BaselineKey] = []
        self._at = np.zeros((3, 1))
        self._gone: list[AlertState] = []
        self._plan(Memory(0))

    def _plan(self, memory: Memory) -> None:
        self._series = Series(self.rules, *self._layout)
        self._limits = Limits(self._series)
        self._detectors = Detectors(self._series)
        self._beside_run = BesideRun(self._series, self._baseline)
        self._memory = memory
        self._values = np.full(len(self._series), math.nan)
        self._idle = self._nothing = np.zeros(len(self._series), dtype=bool)
        if len(memory) != len(self._series):
            self._memory = Memory(len(self._series))

    def replace_rules(self, rules: Sequence[AlertRule], baseline: Baseline | None = None) -> None:
        """Go on with other rules; alerts of rules that are still there stay as they are.

        Those of rules that are gone end with the next evaluation. Without a ``baseline`` it is the
        one that there was.
        """
        before = self.open()
        self._baseline = baseline or self._baseline
        self.rules = tuple(rules)
        self._carry_over(self._layout, before)

    def _carry_over(
        self, layout: tuple[tuple[LayerId, ...], int], before: tuple[AlertState, ...]
    ) -> None:
        old, memory, detectors = self._series, self._memory, self._detectors
        kept = {old.key(i): i for i in self._noteworthy()}
        self._layout = layout
        self._plan(Memory(0))
        if kept:
            places = self._matched(kept)
            self._memory.take(memory, places)
            self._detectors.take(detectors, places)
        if before:
            still = {self._series.key(i) for i in np.flatnonzero(self._memory.phase).tolist()}
            self._gone += [state for state in before if state.key not in still]

    def _ended(self, step: int, now: float) -> list[Transition]:
        """Alerts whose rule or series is no more."""
        gone, self._gone = self._gone, []
        out = []
        for state in gone:
            where = ", ".join(f"{name} {text}" for name, text in state.labels.items())
            message = f"{where}: " if where else ""
            message += f"{state.metric} is not watched any more"
            ended = replace(state, phase=Phase.INACTIVE, severity=None, message=message)
            out.append(Transition(ended, state.phase, step, now, message, state.severity))
        return out

    def _matched(self, kept: Mapping[Key, int]) -> dict[int, int]:
        """Where instances are now, by where they were."""
        names = {key[0] for key in kept}
        rules = [i for i, rule in enumerate(self.rules) if rule.name in names]
        places = np.flatnonzero(np.isin(self._series.rule, rules)).tolist()
        keys = ((i, self._series.key(i)) for i in places)
        return {kept[key]: i for i, key in keys if key in kept}

    def pass_over(self, seconds: float) -> None:
        """The run did not go on for so long: a gap, in which nothing that is waited for passes."""
        self._memory.set_clocks(max(0.0, seconds), ("since", "quiet", "gap"))

    def evaluate(
        self,
        numbers: Numbers,
        *,
        step: int,
        now: float,
        window: int,
        muted: bool = False,
        warming_up: bool = False,
        steps: float = math.nan,
    ) -> list[Transition]:
        """Judge every rule.

        Args:
            numbers: of the window.
            step: the window's last step.
            now: seconds since the Unix epoch.
            window: number of the window.
            muted: whether times and rates of this window are no data.
            warming_up: whether rules that wait for the end of the warm-up are not judged.
            steps: in the window; NaN: not known, and counters beside a baseline are no data.

        Returns:
            what changed.
        """
        layout = numbers.layer_ids, numbers.world_size
        if layout != self._layout:
            self._carry_over(layout, self.open())
        self.errors = []
        at = np.array([[step], [window], [now]], dtype=np.float64)
        if now < self._at[2, 0]:  # the clock was set back: what is remembered is as long ago
            self._memory.set_clocks(now - float(self._at[2, 0]))
            self._at[2] = now
        limits, memory = self._limits, self._memory
        raw, companions = self._series.read(numbers)
        held = (limits.mutable & muted) | (limits.waits & warming_up)
        raw[held] = math.nan
        self._values = self._compared(raw, step, steps)
        level, data, broken = self._levels(self._values, held, companions)
        self._idle = self._nothing if companions is None else companions[0] | companions[1]
        phase, severity = memory.phase.copy(), memory.severity.copy()
        if phase.any() or level.any() or broken.any() or self._gap_matters(data):
            self._advance(level, data, broken, held, at)
        self._at = at
        self._learn(raw, level)
        changed = np.flatnonzero((phase != memory.phase) | (severity != memory.severity))
        return self._ended(step, now) + [
            self._transition(i, int(phase[i]), int(severity[i]), step, now)
            for i in changed.tolist()
        ]

    # -- what holds now -----------------------------------------------------------------------

    def _compared(self, raw: Array, step: int, steps: float) -> Array:
        """Values, beside what their own series was or a run has where a rule asks for it.

        Where a rule has a detector, its score.
        """
        limits, memory, run = self._limits, self._memory, self._beside_run
        values = raw
        if len(limits.by_best) or len(limits.by_ewma) or len(run):
            values = raw.copy()
            young = memory.learned[limits.by_ewma] < _EWMA_NEEDS
            known = np.where(young, math.nan, memory.ewma[limits.by_ewma])
            for at, other in (
                (limits.by_best, memory.best[limits.by_best]),
                (limits.by_ewma, known),
                (run.at, run.others(step, steps)),
            ):
                divided = beside(raw[at], other, ratio=True)
                values[at] = np.where(limits.as_ratio[at], divided, raw[at] - other)
            self.unknown = run.unknown(raw)
        if len(self._detectors):
            values = raw.copy() if values is raw else values
            self._detectors.judge(values)
        return values

    def _levels(
        self, values: Array, held: Mask, companions: tuple[Mask, Mask] | None
    ) -> tuple[NDArray[np.int8], Mask, Mask]:
        """Severity met by each instance (0: none), which have data, whose condition failed."""
        limits, memory = self._limits, self._memory
        holds = np.where(memory.phase >= FIRING, memory.severity, 0)
        met = limits.met(values, memory.before, holds)
        data = ~np.isnan(values)
        memory.value[data] = values[data]
        data[limits.absent] = True
        if held.any():
            met[:, held] = False
            data[held] = False
        broken = np.zeros(len(values), dtype=bool)
        for i, rule in limits.tests:
            if not data[i] or rule.test is None:
                continue
            try:
                met[rule.thresholds[0].severity.rank - 1, i] = bool(rule.test(float(values[i])))
            except Exception as error:
                broken[i] = True
                self.errors.append((rule.name, error))
        if companions is not None:
            fails, unknown = companions
            met[:, fails | unknown] = False
            data[unknown] = False
        if len(limits.several):
            at = limits.several
            met[:, at] = memory.count(met[:, at], data[at], at, limits.m, limits.n)
        level = np.zeros(len(values), dtype=np.int8)
        for i, row in enumerate(met):
            level[row] = i + 1
        return level, data, broken

    def _gap_matters(self, data: Mask) -> bool:
        at = self._limits.acting
        return bool(len(at)) and not (data[at].all() and np.isnan(self._memory.gap[0, at]).all())

    # -- states -------------------------------------------------------------------------------

    def _advance(
        self, level: NDArray[np.int8], data: Mask, broken: Mask, held: Mask, at: Array
    ) -> None:
        memory, limits = self._memory, self._limits
        gap = self._gaps(data | broken, held, at) & ~self._idle
        data = (data | (gap & limits.gap_is_well)) & ~broken
        met, ended = data & (level > 0), data & (level == 0)
        phase = memory.phase
        begun = met & (phase == INACTIVE)
        memory.since[:, begun] = memory.begun[:, begun] = at
        phase[begun] = PENDING
        memory.quiet[:, met] = math.nan
        phase[met & (phase > FIRING)] = FIRING
        ripe = _elapsed(memory.since, at, limits.hold, limits.hold_unit)
        fired = met & (phase == PENDING) & ripe
        phase[fired] = FIRING
        self._end(ended, at)
        fired |= self._lose(gap & limits.gap_fires, NODATA, at)
        fired |= self._lose((gap & limits.gap_is_error) | broken, ERROR, at)
        memory.fired[:, fired] = at
        self._settle_severity(level, met)

    def _lose(self, lost: Mask, name: int, at: Array) -> Mask:
        """Alerts that fire for want of data; those that did not fire before."""
        memory = self._memory
        fresh: Mask = lost & (memory.phase < FIRING)
        new = lost & (memory.phase == INACTIVE)
        memory.since[:, new] = memory.begun[:, new] = at
        memory.phase[lost] = name
        return fresh

    def _settle_severity(self, level: NDArray[np.int8], met: Mask) -> None:
        memory, limits = self._memory, self._limits
        nodata, error = memory.phase == NODATA, memory.phase == ERROR
        level = np.where(nodata, np.maximum(memory.severity, limits.lowest), level)
        level = np.where(error, limits.error_level, level)
        known = (memory.phase != INACTIVE) & (met | nodata | error)
        memory.level[known] = level[known]
        memory.severity[known] = np.maximum(level, memory.floor)[known]
        well = memory.phase == INACTIVE
        memory.severity[well] = 0
        memory.floor[well] = 0

    def _gaps(self, data: Mask, held: Mask, at: Array) -> Mask:
        """Instances that are without data for long enough.

        A gap is no recovery and no proof either: the other clocks of an instance without data stand
        still. Where it was not looked at (``held``), so does that of the gap.
        """
        memory, limits = self._memory, self._limits
        missing = ~data
        memory.gap[:, data] = math.nan
        if not missing.any():
            return missing
        passed = at - self._at
        memory.gap[:, held] += passed
        memory.gap[:, missing & ~held & np.isnan(memory.gap[0])] = at
        long = _elapsed(memory.gap, at, limits.gap_for, limits.gap_unit)
        long = missing & ~held & long & limits.acts_without_data
        still = missing & ~(long & limits.gap_is_well)
        memory.since[:, still] += passed
        memory.quiet[:, still] += passed
        return long

    def _end(self, ended: Mask, at: Array) -> None:
        """Conditions that hold no more."""
        memory, limits = self._memory, self._limits
        phase = memory.phase
        phase[ended & (phase == PENDING)] = INACTIVE
        firing = ended & (phase >= FIRING)
        new = firing & np.isnan(memory.quiet[0])
        memory.quiet[:, new] = at
        over = _elapsed(memory.quiet, at, limits.keep, limits.keep_unit)
        phase[firing & over] = INACTIVE
        phase[firing & ~over] = RECOVERING
        memory.quiet[:, phase == INACTIVE] = math.nan

    def _learn(self, raw: Array, level: NDArray[np.int8]) -> None:
        """What later windows are compared with."""
        memory, limits = self._memory, self._limits
        at = limits.frozen
        memory.before[at] = np.where(np.isnan(raw[at]), memory.before[at], raw[at])
        at = limits.by_best
        if len(at):
            best = memory.best[at]
            low = limits.least_is_best[at]
            memory.best[at] = np.where(low, np.fmin(best, raw[at]), np.fmax(best, raw[at]))
        at = limits.by_ewma
        if len(at):
            at = at[~np.isnan(raw[at]) & (level[at] == 0)]  # what is wrong is no measure
            average = np.where(memory.learned[at] > 0, memory.ewma[at], raw[at])
            weight = np.maximum(_ALPHA, 1 / (memory.learned[at] + 1))
            memory.ewma[at] = average + weight * (raw[at] - average)
            memory.learned[at] += 1

    # -- what people see ----------------------------------------------------------------------

    def open(self) -> tuple[AlertState, ...]:
        """Alerts that are pending or fire, in the order of the rules."""
        return tuple(self._state(i) for i in np.flatnonzero(self._memory.phase).tolist())

    def raise_to(self, key: Key, severity: Severity) -> None:
        """Let an open alert be at least so severe until it ends."""
        for i in np.flatnonzero(self._memory.phase).tolist():
            if self._series.key(i) == key:
                memory = self._memory
                memory.floor[i] = max(int(memory.floor[i]), severity.rank)
                memory.severity[i] = max(int(memory.severity[i]), severity.rank)

    def state_of(self, key: Key) -> AlertState:
        """An open alert.

        Raises:
            KeyError: it is not open.
        """
        for state in self.open():
            if state.key == key:
                return state
        raise KeyError(key)

    def _state(self, i: int) -> AlertState:
        series, memory = self._series, self._memory
        rule = self.rules[series.rule[i]]
        metric = series.metric[i]
        severity = SEVERITY[memory.severity[i]]
        phase = PHASES[memory.phase[i]]
        met = SEVERITY[memory.level[i]]
        limit = rule.threshold(met).fire
        value = float(self._values[i])
        if phase in (Phase.PENDING, Phase.FIRING) and math.isnan(value):
            value = float(memory.value[i])  # a gap: it stands as it stood
        state = AlertState(
            rule=rule.name,
            metric=metric,
            layer=series.layer[i],
            rank=series.rank[i],
            component=rule.component(metric),
            phase=phase,
            severity=severity,
            since_step=int(memory.begun[0, i]),
            since_time=float(memory.begun[2, i]),
            fired_time=float(memory.fired[2, i]),
            fired_step=_whole(memory.fired[0, i]),
            fired_window=_whole(memory.fired[1, i]),
            value=value,
            threshold=math.nan if isinstance(limit, tuple) else limit,
            message=self._message(i, rule, value, met, phase),
            names_metric=rule.several,
        )
        return state

    def _message(
        self, i: int, rule: AlertRule, value: float, severity: Severity | None, phase: Phase
    ) -> str:
        series = self._series
        layer, rank = self.found_of(i)
        metric = series.metric[i]
        where = [f"layer {layer}"] * (layer is not None) + [f"rank {rank}"] * (rank is not None)
        prefix = f"{', '.join(where)}: " if where else ""
        if phase is Phase.NODATA or (phase is Phase.ERROR and math.isnan(value)):
            return f"{prefix}{metric} has no data"
        if phase is Phase.ERROR:
            return f"{prefix}the condition of {rule.name} failed on {metric} {value:.3g}"
        if phase in (Phase.INACTIVE, Phase.RECOVERING):
            scored = "score " if rule.channels else ""
            return f"{prefix}{metric} {scored}{_well(rule.condition, value)}"
        raised = int(self._memory.floor[i]) > int(self._memory.level[i])
        why = (
            f" (raised from {severity.value}: nobody deals with it)" if raised and severity else ""
        )
        channel, before, now = self._detectors.found(i)
        text = rule.message(
            {
                "channel": channel,
                "before": before,
                "now": now,
                "alert": rule.name,
                "layer": "" if layer is None else layer,
                "rank": "" if rank is None else rank,
                "where": ", ".join(where),
                "metric": metric,
                "value": value,
                "threshold": rule.threshold(severity).fire,
                "severity": "" if severity is None else severity.value,
                "condition": rule.condition,
                "step": int(self._at[0, 0]),
                "component": rule.component(metric),
            }
        )
        return text + why

    def found_of(self, i: int) -> tuple[LayerId | None, int | None]:
        """Layer and rank of an instance; of several made one, those whose value was taken."""
        layer, rank = self._series.found.get(i, (None, None))
        own_layer, own_rank = self._series.layer[i], self._series.rank[i]
        return (layer if own_layer is None else own_layer), (rank if own_rank is None else own_rank)

    def _transition(self, i: int, before: int, severity: int, step: int, now: float) -> Transition:
        state = self._state(i)
        worst = SEVERITY[max(severity, int(self._memory.severity[i]))]
        now_or_then = state.severity or worst
        return Transition(state, PHASES[before], step, now, state.message, now_or_then)

    # -- checkpoints --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain data: the open alerts, and what later windows are compared with."""
        return {
            "at": self._at[:, 0].tolist(),
            "instances": [
                {
                    **dict(zip(_KEY, self._series.key(i), strict=True)),
                    **self._memory.of(i),
                    "detector": self._detectors.of(i),
                }
                for i in self._noteworthy()
            ],
            "layers": list(self._layout[0]),
            "ranks": self._layout[1],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; alerts of rules that are gone are left out."""
        self._layout = tuple(state["layers"]), state["ranks"]
        self._at = np.array(state["at"], dtype=np.float64)[:, None]
        self._plan(Memory(0))
        items: Iterable[Mapping[str, Any]] = state["instances"]
        kept = {(x["rule"], x["metric"], x["layer"], x["rank"]): n for n, x in enumerate(items)}
        places = self._matched(kept)
        for n, item in enumerate(items):
            if n in places:
                self._memory.put(places[n], item)
                self._detectors.put(places[n], item.get("detector", ()))

    def _noteworthy(self) -> list[int]:
        """Instances that differ from new ones."""
        known = np.union1d(self._memory.noteworthy(), self._detectors.noteworthy())
        found: list[int] = known.astype(np.intp).tolist()
        return found


def _elapsed(since: Array, at: Array, amount: Array, unit: NDArray[np.intp]) -> Mask:
    """Whether a length of time has passed, of each instance in its own unit."""
    passed = at - since + _EARLY
    long: Mask = passed[unit, np.arange(passed.shape[1])] >= amount
    return long


def _whole(number: float) -> int:
    return -1 if number != number else int(number)


def _well(condition: str, value: float) -> str:
    """What is said of a condition that ended."""
    if condition in _ENDS:
        return _ENDS[condition]
    return "is well again" if math.isnan(value) else f"is {value:.3g} again"
