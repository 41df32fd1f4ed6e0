"""What a dry check found, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

MATCHES_NOTHING: Final = "matches nothing"
FIRES: Final = "fires for want of data"
UNSURE: Final = "not known"
QUIET: Final = "no data in the passes"
FINDINGS: Final = (MATCHES_NOTHING, FIRES)
"""What `CheckReport.findings` counts."""
_OPTIONAL: Final = ("optimization",)
"""Components that most models do not have."""


@dataclass(frozen=True)
class Channel:
    """A way to tell people.

    Attributes:
        name: its name.
        kind: what kind of channel it is.
        min_severity: least severity that is told of there.
        settings: what else is set; secrets are masked.
    """

    name: str
    kind: str
    min_severity: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SettingsPart:
    """What the settings say.

    Attributes:
        source: the file, or the name of the preset.
        rules: number of rules in force.
        channels: those that are told.
        notes: what may not be meant, a sentence each.
    """

    source: str
    rules: int
    channels: tuple[Channel, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModelPart:
    """What was found in the model.

    Attributes:
        target: what was asked for.
        type: class of the model.
        parameters: number of its parameters.
        probes: number of `CMRProbe` objects that are listened to.
        objects: number of other objects that are watched.
        layers: ids of the layers that are known.
        sources: where numbers come from, by component or metric.
        missing: by component that is watched, why nothing gives its numbers.
        unknown: what cannot be known, a sentence each.
        failures: what failed in the monitor itself.
    """

    target: str
    type: str
    parameters: int
    probes: int
    objects: int
    layers: tuple[int | str, ...]
    sources: dict[str, str]
    missing: dict[str, str]
    unknown: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class RuleNote:
    """What is to be said of a rule.

    Attributes:
        rule: its name.
        status: ``matches nothing``, ``fires for want of data``, ``not known`` or
            ``no data in the passes``; the first two are findings.
        reason: a sentence.
    """

    rule: str
    status: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What watching will cost, estimated from the catalogue and the settings.

    Attributes:
        layers: number of layers; None: no model says.
        series: numbers that are kept, at most: each metric of the whole and of each layer.
        series_per_layer: those that another layer adds.
        rule_series: series that the rules look at.
        scalars: of each window in TensorBoard, at most.
        scalars_per_layer: those that another layer adds.
        window_bytes: of the tables of one window in memory.
        payload_bytes: that each process sends to the others per window; None: there is one.
        window_steps: steps in a window; None: the Trainer says.
    """

    layers: int | None
    series: int
    series_per_layer: int
    rule_series: int
    scalars: int
    scalars_per_layer: int
    window_bytes: int
    payload_bytes: int | None
    window_steps: int | None


@dataclass(frozen=True)
class Counted:
    """What was counted in real forward passes.

    Attributes:
        passes: number of them.
        whole: of the model as a whole, by metric.
        layers: by metric, by the text of the layer's id.
    """

    passes: int
    whole: dict[str, float]
    layers: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Measured:
    """Forward passes with and without the monitor, alternated.

    Attributes:
        pairs: number of pairs.
        plain_seconds: median of a pass without it.
        watched_seconds: median of a pass with it.
        ratio: median over the pairs of with / without.
        ratio_low: first quartile of that ratio.
        ratio_high: third quartile of that ratio.
        window_seconds: median of the end of a window, all rules judged.
    """

    pairs: int
    plain_seconds: float
    watched_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    window_seconds: float


@dataclass(frozen=True)
class CheckReport:
    """All that a dry check found.

    Attributes:
        settings: what the settings say.
        model: what was found in the model; None: there is none.
        rules: rules of which something is to be said.
        cost: what watching will cost.
        counted: of real passes; None: there were none.
        measured: likewise.
    """

    settings: SettingsPart
    model: ModelPart | None
    rules: tuple[RuleNote, ...]
    cost: Cost
    counted: Counted | None = None
    measured: Measured | None = None
    findings: tuple[str, ...] = field(init=False)
    """What ``--strict`` fails for: components without a source, rules that match nothing or fire
    for want of data, failures of the monitor; a sentence each."""

    def __post_init__(self) -> None:
        model = self.model
        found = [] if model is None else list(model.failures)
        if model is not None:
            found += [text for name, text in model.missing.items() if name not in _OPTIONAL]
        found += [f"{note.rule}: {note.reason}" for note in self.rules if note.status in FINDINGS]
        object.__setattr__(self, "findings", tuple(found))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, for JSON."""
        return asdict(self)
