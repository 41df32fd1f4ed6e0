"""Names of the sections: what the profiler is told, and what is read back from a trace."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final

import torch

from cmr_monitor_callbacks.layers import layer_id

PREFIX: Final = "cmr/"
_LAYER: Final = "layer_"
_RECOMPUTE: Final = "recompute"


@dataclass(frozen=True)
class Section:
    """What a section's name says.

    Attributes:
        component: ``forward``, ``block``, ``capture``, ``store``, ``retrieval``,
            ``reconstruction``, or what was given to `CMRProbe.timer`.
        layer: the layer as text; None: the model as a whole.
        recompute: whether activation checkpointing runs it a second time, in the backward.
    """

    component: str
    layer: str | None = None
    recompute: bool = False


def section_name(component: str, layer: Hashable | None, recompute: bool = False) -> str:
    """The name that is shown in a trace.

    >>> section_name("capture", 4), section_name("forward", None)
    ('cmr/capture/layer_4', 'cmr/forward')
    """
    shown = _shown(layer)
    name = PREFIX + component if shown is None else f"{PREFIX}{component}/{_LAYER}{shown}"
    return f"{name}/{_RECOMPUTE}" if recompute else name


def _shown(layer: Any) -> str | None:
    if layer is None:
        return None
    if isinstance(layer, torch.Tensor):  # one on a device would have to be waited for
        return str(int(layer)) if layer.device.type == "cpu" and layer.numel() == 1 else None
    return str(layer_id(layer))


def section_of(name: str) -> Section | None:
    """What a name says; None: it is no section of this package.

    >>> section_of("cmr/capture/layer_4")
    Section(component='capture', layer='4', recompute=False)
    >>> section_of("aten::mm") is None
    True
    """
    if not name.startswith(PREFIX):
        return None
    rest = name.removeprefix(PREFIX)
    recompute = rest.endswith(f"/{_RECOMPUTE}")
    rest = rest.removesuffix(f"/{_RECOMPUTE}") if recompute else rest
    component, mark, layer = rest.partition(f"/{_LAYER}")
    return Section(component, layer if mark else None, recompute)
