"""Finding the explicit probes that a model's modules hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
            for path, probe in _walk(value, attribute, set()):
                full = f"{name}.{path}" if name else path
                found.setdefault(id(probe), FoundProbe(probe, full))
    return list(found.values())


_TORCH_OWN = frozenset(vars(nn.Module()))


def _walk(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, CMRProbe]]:
    if isinstance(value, CMRProbe):
        yield path, value
        return
    if not isinstance(value, (list, tuple, Mapping)) or id(value) in seen:
        return
    seen.add(id(value))
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in items:
        yield from _walk(item, f"{path}[{key!r}]", seen)
