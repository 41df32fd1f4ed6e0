"""What a model says of itself: which layers have a memory, how many blocks, what it counted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.catalogue import STATISTICS
from cmr_monitor_callbacks.entries import Declared, OwnCount
from cmr_monitor_callbacks.probes.survey import Part, attributes, survey
from cmr_monitor_callbacks.probes.watches.counters import MEANT, dictionaries, numbers_of

_TARGETS: Final = re.compile(
    r"((target|memory|capture|intervention|reconstruction|retrieval)_)+layer(s|_indices|_ids)$"
)
_SWITCH: Final = re.compile(
    r"((enable|use)_(memory|reconstruction|retrieval)|(memory|reconstruction)_enabled)$"
)
_SHOWN: Final = ("performance_stats", "memory_stats")
"""Properties by which a model shows its counters; the specification names the first."""
_HOLDS: Final = {"total_entries": "total_entries", "entries_per_layer": "total_entries"}


def declared(model: Any) -> Declared:
    """Layers that a model's settings name, and how many blocks it has.

    >>> net = nn.Module()
    >>> net.blocks, net.memory_layers = nn.ModuleList([nn.Identity()] * 3), [1, 9]
    >>> declared(net)
    Declared(targets=(('memory_layers', (1, 9)),), blocks=3)
    """
    targets: dict[str, tuple[int, ...]] = {}
    blocks = 0
    for part in survey(model):
        if isinstance(part.value, nn.ModuleList):
            blocks = max(blocks, len(part.value))
        for name, value in attributes(part.value).items():
            plain = isinstance(value, (list, tuple)) and bool(value)
            if _TARGETS.match(name) and plain and all(type(item) is int for item in value):
                targets[f"{part.path}.{name}".lstrip(".")] = tuple(value)
    return Declared(tuple(targets.items()), blocks)


def own_counts(model: Any) -> list[OwnCount]:
    """Numbers that a model keeps itself, where it is known what they count.

    Beside dictionaries that objects hold, the properties ``performance_stats`` and ``memory_stats``
    of modules are read, which runs code of the model.
    """
    return [one for part in survey(model) for one in _counts_of(part)]


def _counts_of(part: Part) -> list[OwnCount]:
    found: dict[str, Mapping[Any, Any]] = dict(dictionaries(part.value))
    for name in _SHOWN:
        if part.is_module and isinstance(getattr(type(part.value), name, None), property):
            with torch.no_grad():
                shown = getattr(part.value, name)
            if isinstance(shown, Mapping):
                found[name] = shown
    return [
        OwnCount(f"{part.path}.{name}[{key!r}]".lstrip("."), metric, layer, number)
        for name, counters in found.items()
        for key, metric in _METRIC_OF.items()
        if key in counters
        for layer, number in numbers_of(counters[key])
    ]


_METRIC_OF: Final[dict[str, str]] = {
    **{key: STATISTICS[place].name for key, (_, place) in MEANT.items()},
    **_HOLDS,
}


def switch_off(model: Any) -> list[str]:
    """Turn off the memory switches that a model has; gives their paths. Meant for a copy."""
    found = []
    for part in survey(model):
        for name, value in attributes(part.value).items():
            if value is True and _SWITCH.match(name):
                setattr(part.value, name, False)
                found.append(f"{part.path}.{name}".lstrip("."))
    return found
