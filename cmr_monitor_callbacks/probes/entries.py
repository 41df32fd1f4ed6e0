"""Reading the entries of a memory: by attribute alone, so that no buffer takes it for a read."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cmr_monitor_callbacks.entries import Array, LayerEntries
from cmr_monitor_callbacks.probes.reading import STATE_NAME, fields_of, held_layer, state_of
from cmr_monitor_callbacks.probes.survey import Part, attributes, survey
from cmr_monitor_callbacks.probes.watches.base import Watch
from cmr_monitor_callbacks.probes.watches.buffer import BufferWatch, buffer
from cmr_monitor_callbacks.probes.watches.fast_weights import fast_weights
from cmr_monitor_callbacks.probes.watches.fifo import FifoWatch, fifo
from cmr_monitor_callbacks.probes.watches.indexed import indexed

_FIELDS: Final = {
    "relevance": re.compile(r"(relevance|importance|priority)(_scores?)?$|scores?$"),
    "stored_at": re.compile(
        r"(stored|created|inserted|added|written|insertion|creation)(_(at|time|step))?$"
        r"|timestamps?$|birth(_step)?$"
    ),
    "read_at": re.compile(
        r"(read|accessed|used)_(at|time|step)$|last_(access(ed)?|used?|read)(_(at|time|step))?$"
        r"|access_time$"
    ),
    "accesses": re.compile(r"(access|read|usage|use|retrieval|hit)_counts?$|num_(reads|accesses)$"),
}
_COUNTS: Final = ("size", "count", "entries", "n_entries", "num_entries", "filled", "length")
_CAPACITIES: Final = ("capacity", "max_entries", "max_size")
Named = Callable[[str], Hashable | None]


def read_entries(
    model: Any,
    sample: int = 256,
    watched: Iterable[Watch] = (),
    named: Named = lambda path: None,
) -> tuple[list[LayerEntries], list[str]]:
    """Entries of every memory of a model.

    Nothing of the model is called or written, no random number is drawn. Tensors on a device are
    copied from it, which waits for the device.

    Args:
        model: looked through.
        sample: most entries of a layer that are looked at, spread evenly over all.
        watched: watches of what the model does not hold itself, such as arguments of a forward.
        named: gives a layer by the path of what holds it; None: it has no name of its own.

    Returns:
        entries by layer, and why others could not be read, each a short sentence.
    """
    found: list[LayerEntries] = []
    unknown: list[str] = []
    parts = list(survey(model))
    held = {id(part.value) for part in parts}
    tables = {id(part.value): layer for part in parts if (layer := _table(part, sample, named))}
    known = {id(w._owner()): w for w in watched if isinstance(w, (BufferWatch, FifoWatch))}
    for part in parts:
        watch = known.get(id(part.value)) or _recognised(part, unknown)
        if id(part.value) in tables:
            found.append(tables[id(part.value)])
        elif isinstance(watch, BufferWatch):
            found += _of_buffer(watch, sample, tables, named(part.path))
        elif isinstance(watch, FifoWatch):
            found += _of_fifo(watch, sample)
    for key, watch in known.items():
        if key not in held and isinstance(watch, BufferWatch) and watch.alive:
            found += _of_buffer(watch, sample, tables, None)
    return found, unknown


def _recognised(part: Part, unknown: list[str]) -> Watch | None:
    if indexed(part) is not None:
        unknown.append(f"entries of {part.path}: they lie in an index")
        return None
    if fast_weights(part) is not None:
        unknown.append(f"entries of {part.path}: weights have none")
        return None
    return buffer(part) or fifo(part)


def forget_entries(model: Any) -> int:
    """Empty every memory of a model, without its own methods; meant for a copy of the model.

    Answers that caches remember are forgotten too.

    Returns:
        entries that were dropped.
    """
    dropped = 0
    parts = list(survey(model))
    tables = {id(part.value) for part in parts if _table(part, 0, lambda path: None)}
    for part in parts:
        own = attributes(part.value)
        watch = None if id(part.value) in tables else buffer(part)
        if id(part.value) in tables:
            dropped += _set_count(part.value, own)
        elif watch is not None:
            held = watch.shelf.entries()
            if not any(id(entry) in tables for entries in held.values() for entry in entries):
                dropped += sum(len(entries) for entries in held.values())
                watch.shelf.empty()
        for name, value in own.items():
            if "cache" in name and isinstance(value, dict):
                value.clear()
    return dropped


# -- a table: a column for each thing that is known of an entry, and a count of rows in use --------


def _table(part: Part, sample: int, named: Named) -> LayerEntries | None:
    own = _own(part)
    state = next((v for k, v in own.items() if STATE_NAME.match(k) and _is_matrix(v)), None)
    count = _count(own)
    if state is None or count is None:
        return None
    limit = next((own[n] for n in _CAPACITIES if type(own.get(n)) is int), len(state))
    if not 0 <= count <= len(state):
        return None
    rows = _spread(count, sample)
    columns = {
        kind: _column(values[0], rows)
        for kind, pattern in _FIELDS.items()
        if (values := [v for k, v in own.items() if pattern.match(k) and _is_column(v, state)])
    }
    layer = named(part.path)
    return LayerEntries(
        _layer_of(part) if layer is None else layer,
        part.path,
        count,
        limit,
        _floats(state[torch.from_numpy(rows).to(state.device)]) if len(rows) else None,
        **columns,
    )


def _own(part: Part) -> dict[str, Any]:
    own = attributes(part.value)
    return {**own, **(own.get("_buffers") or {})} if part.is_module else own


def _count(own: Mapping[str, Any]) -> int | None:
    for name in _COUNTS:
        value = own.get(name)
        if type(value) is int:
            return value
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return None if value.is_floating_point() else int(value)
    return None


def _set_count(value: Any, own: Mapping[str, Any]) -> int:
    """Say that no row is in use; how many were."""
    holders = [own, own.get("_buffers") or {}]
    for name in _COUNTS:
        for holder in holders:
            count = holder.get(name)
            if type(count) is int:
                setattr(value, name, 0)
                return int(count)
            if isinstance(count, torch.Tensor) and count.numel() == 1:
                before = int(count)
                count.zero_()
                return before
    return 0


def _is_matrix(value: Any) -> bool:
    plain = isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
    return plain and value.ndim == 2 and value.is_floating_point()


def _is_column(value: Any, state: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) == len(state)


def _column(values: torch.Tensor, rows: NDArray[np.int64]) -> Array:
    return _floats(values[torch.from_numpy(rows).to(values.device)])


def _layer_of(part: Part) -> Hashable:
    held = held_layer(part.value)
    if isinstance(held, (int, str)):
        return held
    key = part.links[-1][1] if part.links else None
    return key if type(key) is int else part.path


# -- entries one by one, in a container ------------------------------------------------------------


def _of_buffer(
    watch: BufferWatch, sample: int, tables: Mapping[int, Any], name: Hashable | None
) -> Iterator[LayerEntries]:
    each, total = watch.shelf.capacities()
    for layer, entries in watch.shelf.entries().items():
        if any(id(entry) in tables for entry in entries):
            continue  # its entries are the tables
        limit = each.get(layer) if isinstance(each, dict) else each
        if limit is None and not watch.layered:
            limit = total
        picked = [entries[i] for i in _spread(len(entries), sample)]
        fields = [fields_of(entry) for entry in picked]
        of_one = watch.layer if layer is None else layer
        yield LayerEntries(
            name if name is not None and not watch.layered else of_one,
            watch.path,
            len(entries),
            limit,
            _states([state_of(one) for one in fields]),
            **{kind: _numbers(fields, pattern) for kind, pattern in _FIELDS.items()},
        )


def _of_fifo(watch: FifoWatch, sample: int) -> Iterator[LayerEntries]:
    own = attributes(watch._owner())
    held = own.get(watch._name, (own.get("_buffers") or {}).get(watch._name))
    for layer, holding in watch.holdings().items():
        states = None
        if isinstance(held, torch.Tensor) and held.ndim == 2 and holding.entries:
            states = _floats(held[_spread(holding.entries, sample).tolist()])
        yield LayerEntries(layer, watch.path, holding.entries, holding.capacity, states)


def _states(found: Sequence[torch.Tensor | None]) -> Array | None:
    shapes = {None if state is None else state.numel() for state in found}
    if len(shapes) != 1 or None in shapes:
        return None
    return np.stack([_floats(state).reshape(-1) for state in found if state is not None])


def _numbers(fields: Sequence[Mapping[str, Any]], pattern: re.Pattern[str]) -> Array | None:
    if not fields:
        return None
    names = [name for name in fields[0] if pattern.match(name)]
    for name in names:
        values = [_number(one.get(name)) for one in fields]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(values):
            return np.array(numbers)
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.detach())
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain else None


def _floats(values: torch.Tensor) -> Array:
    # int64 steps stay exact to 2**53
    out: Array = values.detach().to("cpu", torch.float64).numpy()
    return out


def _spread(count: int, sample: int) -> NDArray[np.int64]:
    """Indices of so many of ``count`` things, spread evenly.

    >>> _spread(10, 4).tolist(), _spread(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if count <= sample:
        return np.arange(count)
    return np.linspace(0, count - 1, sample).round().astype(np.int64)
