"""Reading what a call says: its layer, how many states it was given, how many entries came back."""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Mapping, Sized
from typing import Any, Final

import torch

from cmr_monitor_callbacks.probes.survey import attributes

LAYER_NAMES: Final = (
    "layer_idx",
    "layer_id",
    "layer_index",
    "layer",
    "layer_name",
    "layer_num",
    "layer_no",
)
_OF_CONTEXT: Final = ("current_layer_idx", *LAYER_NAMES)
MEMORY_NAME: Final = re.compile(r"mem|cache|buffer|bank|queue|retriev|past_state", re.IGNORECASE)
STATE_NAME: Final = re.compile(
    r"_*((hidden_)?states?|rows|vectors?|embeddings?|keys?|values?|memor(y|ies)|bank|data)$"
)
"""Names of the tensors that entries are made of."""
UNKNOWN: Final = object()
MOST_LOOKED_AT: Final = 256
"""Most positions of a tensor, and most entries, that are looked at."""
LayerOf = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def parameters(function: Any) -> list[inspect.Parameter]:
    """Parameters of a bound method; none where it does not say."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


_OF_STATES: Final = re.compile(
    r"(.*_)?(x|h|k|n|top_k|states?|hidden|hiddens|query|queries|keys?|values?|vectors?|embeddings?|"
    r"scores?|relevance|importance|threshold|mask|similarity|count|size|step|device)"
)
_NO_ENTRY: Final = (torch.Tensor, int, float, bool, str)
_NO_ENTRY_NAMES: Final = ("torch.Tensor", "Tensor", "int", "float", "bool", "str")


def holds_no_layer(parameter: inspect.Parameter) -> bool:
    """Whether what is handed over is states or a number, by its type or else by its name.

    >>> def store(hidden_state, relevance: float, entry): ...
    >>> [holds_no_layer(parameter) for parameter in parameters(store)]
    [True, True, False]
    """
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return False
    said = parameter.annotation
    if said is not inspect.Parameter.empty:
        return said in _NO_ENTRY or said in _NO_ENTRY_NAMES
    return _OF_STATES.fullmatch(parameter.name) is not None


def layer_parameter(function: Any) -> tuple[str, int, Any] | None:
    """Name, position and default of the parameter that names a layer."""
    for position, parameter in enumerate(parameters(function)):
        if parameter.name in LAYER_NAMES:
            empty = parameter.default is inspect.Parameter.empty
            return parameter.name, position, UNKNOWN if empty else parameter.default
    return None


def layer_of(function: Any, otherwise: Any) -> LayerOf:
    """How to tell a call's layer: its layer argument, what an argument holds, or ``otherwise``."""
    found = layer_parameter(function)
    if found is not None:
        name, position, default = found

        def by_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if name in kwargs:
                return kwargs[name]
            return args[position] if len(args) > position else default

        return by_argument

    def by_content(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for name in LAYER_NAMES:
            if name in kwargs:
                return kwargs[name]
        for value in (*args, *kwargs.values()):
            held = held_layer(value)
            if held is not UNKNOWN:
                return held
        return otherwise

    return by_content


def fast_layer(function: Any) -> tuple[str, int]:
    """Name and position of a call's layer argument, for a loop that must be quick.

    A method without one has no name here, and a position past all arguments.
    """
    found = layer_parameter(function)
    return ("", 1_000) if found is None else found[:2]


def held_layer(value: Any) -> Any:
    """The layer that an entry or a context names, `UNKNOWN` where it names none."""
    if isinstance(value, Mapping):
        own: Any = value
    else:
        own = getattr(value, "__dict__", None)
        if own is None:
            return _slotted_layer(value)
    for name in _OF_CONTEXT:
        if name in own:
            return own[name]
    return _slotted_layer(value)


def _slotted_layer(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, str, bytes, int, float, list, dict, type(None))):
        return UNKNOWN
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return UNKNOWN
    names = (*getattr(type(value), "__slots__", ()), *getattr(type(value), "_fields", ()))
    for name in _OF_CONTEXT:
        if name in names:
            return getattr(value, name, UNKNOWN)
    return UNKNOWN


_RETURNED_KEYS: Final = ("memories", "entries", "retrieved_memories", "retrieved", "states")


def returned_entries(out: Any) -> int | None:
    """How many entries a retrieval gave back; None where that cannot be told.

    >>> returned_entries([1, 2, 3]), returned_entries({4: [1], 6: [2, 3]}), returned_entries(None)
    (3, 3, 0)
    """
    if out is None:
        return 0
    if isinstance(out, torch.Tensor):
        return positions(out)
    if isinstance(out, tuple) and not hasattr(out, "_fields"):
        return returned_entries(out[0]) if out else 0
    if isinstance(out, (list, set, deque)):
        return len(out)
    if isinstance(out, Mapping):
        for key in _RETURNED_KEYS:
            if key in out:
                return returned_entries(out[key])
        if all(isinstance(item, (list, tuple, deque)) for item in out.values()):
            return sum(len(item) for item in out.values())
    return None


def entries_of(out: Any) -> Any:
    """What a retrieval gave back: a tensor, a list of entries, or None where it is neither.

    >>> entries_of(([1, 2], {"scores": 3})), entries_of({4: [1], 6: [2, 3]})
    ([1, 2], [1, 2, 3])
    """
    if isinstance(out, (torch.Tensor, list)):
        return out
    if isinstance(out, tuple) and not hasattr(out, "_fields"):
        return entries_of(out[0]) if out else None
    if isinstance(out, deque):
        return list(out)
    if isinstance(out, Mapping):
        for key in _RETURNED_KEYS:
            if key in out:
                return entries_of(out[key])
        if all(isinstance(item, (list, tuple, deque)) for item in out.values()):
            return [entry for item in out.values() for entry in item]
    return None


def fields_of(entry: Any) -> Mapping[str, Any]:
    """What an entry is made of, by name; nothing of it is run."""
    if isinstance(entry, torch.Tensor):
        return {"state": entry}
    if isinstance(entry, Mapping):
        return {str(key): value for key, value in entry.items()}
    if isinstance(entry, tuple):
        names = getattr(entry, "_fields", None) or [f"_{i}" for i in range(len(entry))]
        return dict(zip(names, entry, strict=True))
    return attributes(entry)


def state_of(fields: Mapping[str, Any]) -> torch.Tensor | None:
    """The state among an entry's fields, or its first tensor; None: it has none."""
    tensors = {k: v for k, v in fields.items() if isinstance(v, torch.Tensor) and v.ndim >= 1}
    named = next((v for k, v in tensors.items() if STATE_NAME.match(k)), None)
    return next(iter(tensors.values()), None) if named is None else named


def positions(states: torch.Tensor) -> int:
    """States in a tensor whose last dimension is a state: 1 for a single one.

    >>> positions(torch.zeros(8)), positions(torch.zeros(4, 8)), positions(torch.zeros(2, 3, 8))
    (1, 4, 6)
    """
    count = 1
    for size in states.shape[:-1]:
        count *= size
    return count


def spread(rows: torch.Tensor, most: int = MOST_LOOKED_AT) -> torch.Tensor:
    """At most so many rows, evenly spread over all of them.

    >>> len(spread(torch.zeros(256, 8))), len(spread(torch.zeros(257, 8)))
    (256, 129)
    """
    return rows[:: -(-len(rows) // most) or 1]


def offered_states(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """States handed to a store: by its name one, else by the shape of its first tensor or list."""
    if name.endswith(("_state", "_entry", "_memory", "_one")):
        return 1
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return positions(value)
        if isinstance(value, (list, tuple)):
            return len(value)
    return 1


def size_of(value: Any) -> int | None:
    """Bytes of an entry's tensors: of itself, or of what it holds directly."""
    if isinstance(value, torch.Tensor):
        return int(value.nelement() * value.element_size())
    nbytes = getattr(value, "nbytes", None) if type(value).__module__ == "numpy" else None
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(value, Mapping):
        items: Any = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        items = getattr(value, "__dict__", {}).values() or [
            getattr(value, name, None) for name in getattr(type(value), "__slots__", ())
        ]
    found = [
        int(item.nelement() * item.element_size())
        for item in items
        if isinstance(item, torch.Tensor)
    ]
    return sum(found) if found else None


_SAMPLED: Final = 16


def bytes_of(entries: Any) -> int | None:
    """Bytes of the tensors of many entries.

    A few spread over all of them are looked at; only where these differ are all added up.
    """
    count = len(entries)
    if not count:
        return 0
    try:
        picked = sorted({i * (count - 1) // (_SAMPLED - 1) for i in range(_SAMPLED)})
        sizes = {size_of(entries[i]) for i in picked}
    except (TypeError, KeyError, IndexError):  # a mapping or a set
        items = list(entries.values()) if isinstance(entries, Mapping) else list(entries)
        return bytes_of(items)
    if len(sizes) == 1:
        one = sizes.pop()
        return None if one is None else one * count
    return sum(size_of(entry) or 0 for entry in entries)


def length(value: Any) -> int | None:
    """How many items a container has; None: it is none."""
    return len(value) if isinstance(value, Sized) else None
