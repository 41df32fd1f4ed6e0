"""What every watch is: something of a model that is recognised, listened to and let go."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.probes.reading import (
    LayerOf,
    holds_no_layer,
    layer_of,
    layer_parameter,
    parameters,
)
from cmr_monitor_callbacks.probes.report import Report
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.wrapping import Make, Wraps
from cmr_monitor_callbacks.recording.tally import UNTIMED


@dataclass
class Ways:
    """How a watch may look, as the settings allow it, and what else is being watched.

    Attributes:
        report: where numbers go.
        wraps: what replaces methods.
        handles: of the hooks that are registered, to be removed.
        wrap: whether methods may be replaced.
        hooks: whether hooks may be registered.
        poll: whether attributes may be read at the end of a window.
        weakly: whether what is being recognised is held by nothing that is looked at.
        calls_by: who counts the calls of the capture: ``capture`` (a method of the model),
            ``monitor`` (the model's own performance monitor) or ``store``.
        reconstructs: whether a reconstructor is watched.
        forwards: modules whose forward is a section of a profile: where the module is, component,
            and how a call's layer is told.
    """

    report: Report
    wraps: Wraps
    handles: list[Any] = field(default_factory=list)
    wrap: bool = True
    hooks: bool = True
    poll: bool = True
    weakly: bool = False
    calls_by: str = "store"
    reconstructs: bool = False
    forwards: list[tuple[Callable[[], Any], str, LayerOf]] = field(default_factory=list)

    def replace(
        self, owner: Any, name: str, make: Make, section: tuple[str, LayerOf] | None = None
    ) -> bool:
        """Have a method of an object do more; says whether that could be done."""
        return self.wraps.replace(owner, name, make, weakly=self.weakly, section=section)


class Watch(Protocol):
    """One recognised part of a model.

    Attributes:
        path: where it is, for people.
        unknown: what it cannot know, each a short sentence.
    """

    path: str
    unknown: list[str]

    @property
    def sources(self) -> dict[str, str]:
        """By metric or component, where its numbers come from."""
        ...

    @property
    def alive(self) -> bool:
        """Whether what is watched is still there."""
        ...

    def install(self, ways: Ways) -> None:
        """Start to listen."""
        ...

    def poll(self) -> None:
        """Read what holds now; at the end of every window."""
        ...


class BaseWatch:
    """A watch of one object, which it does not keep alive."""

    def __init__(self, part: Part, layer: Hashable | None = None) -> None:
        self.path = part.path
        self.layer: Hashable | None = (part.path or None) if layer is None else layer
        """Of calls that name none."""
        self.said: dict[str, tuple[str, str]] = {}
        """By component or metric, the way its numbers are seen and of which attribute or method."""
        self.unknown: list[str] = []
        self.layered = any(
            layer_parameter(method(part.value, name)) is not None for name in part.offers
        )
        """Whether its methods name layers: a call of one that does not is of all of them."""
        self._owner = reference(part.value)

    def unnamed_layer(self) -> Hashable | None:
        """The layer of a call that names none, as it is known now."""
        return None if self.layered else self.layer

    def section(self, component: str, name: str) -> tuple[str, LayerOf]:
        """What a call of a method is in a profile."""
        return component, layer_of(method(self._owner(), name), self.unnamed_layer)

    def poll(self) -> None:
        """Nothing is read unless a watch says what."""

    @property
    def one_layer(self) -> bool:
        """Whether all that it tells is of ``layer``; else a call may be of any."""
        return False

    def names_no_layer(self, methods: Iterable[str]) -> bool:
        """Whether no call of these methods can name a layer, be it by what an argument holds."""
        return not self.layered and all(
            holds_no_layer(parameter)
            for name in methods
            for parameter in parameters(method(self._owner(), name))
        )

    @property
    def alive(self) -> bool:
        """See `Watch.alive`."""
        return self._owner() is not None

    @property
    def sources(self) -> dict[str, str]:
        """See `Watch.sources`; the path may have become known late."""
        return {
            name: f"{way}:{self.path}.{of}" if self.path else f"{way}:{of}"
            for name, (way, of) in self.said.items()
        }

    def source(self, kind: str, way: str, of: str, *names: str) -> None:
        """Say where numbers come from.

        Args:
            kind: the component, if no names are given.
            way: ``wrapped``, ``hook`` or ``polled``.
            of: method or attribute of this part.
            names: metrics.
        """
        for name in names or (kind,):
            self.said.setdefault(name, (way, of))


def reference(value: Any) -> Callable[[], Any]:
    """A weak reference where the object allows it, else a strong one."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def method(owner: Any, name: str) -> Any:
    """A method, bound, found without running anything of the object's."""
    found = inspect.getattr_static(owner, name, None)
    if isinstance(found, (types.FunctionType, classmethod, staticmethod)):
        of_instance = name not in getattr(owner, "__dict__", {})
        return found.__get__(owner, type(owner)) if of_instance else found
    return found


def resolved(layer: Any) -> Any:
    """A layer, or what tells it when it is asked."""
    return layer() if callable(layer) else layer


def timed_call(at: int, call: int, seconds: float | None) -> tuple[int, float]:
    """A call for the tally: its place and its duration; None: it was not timed."""
    return (at + UNTIMED[call], 0) if seconds is None else (at + call, seconds)


def report_error(
    report: Report, component: str, layer: Any, args: Any, kwargs: Any, exc: BaseException
) -> None:
    """Count an error that a watched call raises, at the layer that the call names."""
    try:
        at = resolved(layer(args, kwargs))
    except Exception:  # a call so wrong that it names no layer
        at = None
    report.error(component, at, exc)


def guarded(report: Report, where: str, action: Callable[..., None]) -> Callable[..., None]:
    """An action whose own failure must not reach the model: counted, and named once."""

    def safely(*args: Any) -> None:
        try:
            action(*args)
        except Exception as error:
            report.failed(where, error)

    return safely


ATTEMPTED, CAPTURED, STORED, CONSIDERED, CAPTURES = (
    ROW[name]
    for name in (
        "states_attempted",
        "states_captured",
        "states_stored",
        "states_considered",
        "capture_calls",
    )
)
EVICTED, CLEARED, LOADED, OVERWRITTEN, CLEARS = (
    ROW[name]
    for name in (
        "eviction_count",
        "states_cleared",
        "states_loaded",
        "states_overwritten",
        "clear_count",
    )
)
ENTRIES, CAPACITY, BYTES = (ROW[name] for name in ("total_entries", "capacity", "memory_bytes"))
RETRIEVALS, RETURNED, CACHE_HITS, CACHE_OPERATIONS = (
    ROW[name]
    for name in ("total_retrievals", "entries_retrieved", "cache_hits", "cache_operations")
)
FOUND, ASKED = ROW["retrieval_hits"], ROW["slots_asked"]
LIKENESS = ROW["retrieval_similarity_sum"]
RECONSTRUCTIONS, USING, QUALITY, SIMILARITY = (
    ROW[name]
    for name in (
        "reconstruction_calls",
        "total_reconstructions",
        "reconstruction_quality_sum",
        "reconstruction_similarity_sum",
    )
)
