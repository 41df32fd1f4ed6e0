"""Finding the explicit probes that a model's modules hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from cmr_monitor_callbacks.probes.explicit import CMRProbe


@dataclass(frozen=True)
class FoundProbe:
    """A probe and where it is.

    Attributes:
        probe: the probe.
        path: attribute path within the model, for people.
    """

    probe: CMRProbe
    path: str


def find_probes(model: nn.Module) -> list[FoundProbe]:
    """Every `CMRProbe` that a module of the model holds: an attribute, or in a list, tuple or dict.

    Containers may be nested; each probe comes once, in the order of the modules.
    """
    found: dict[int, FoundProbe] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") and attribute in _TORCH_OWN:
                continue
            for path, probe in _walk(value, attribute):
                full = f"{name}.{path}" if name else path
                found.setdefault(id(probe), FoundProbe(probe, full))
    return list(found.values())


_TORCH_OWN = frozenset(vars(nn.Module()))


def _walk(value: Any, path: str) -> Iterator[tuple[str, CMRProbe]]:
    """Probes in nested containers; types alone are asked, for a proxy may do anything."""
    waiting, seen = [(path, value)], set()
    while waiting:
        path, value = waiting.pop()
        kind = type(value)
        if issubclass(kind, CMRProbe):
            yield path, value
        elif issubclass(kind, (list, tuple, dict)) and id(value) not in seen:
            seen.add(id(value))
            items = list(value.items() if issubclass(kind, dict) else enumerate(value))
            waiting += [(f"{path}[{key!r}]", item) for key, item in reversed(items)]
