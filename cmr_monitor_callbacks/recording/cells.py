"""Numbers that live on a device: added in place where they are, read once per window.

All rows of a device are views of one packed tensor, so that a window's read is one copy. Rows are
in statistics, not in fields: what a Metric derives from an event (``memories_used > 0``) is derived
here with tensors.

Inside ``torch.compile`` the same rows are the only way out: an in-place add to a plain tensor is
traced, a Python list is not. There the calls themselves are counted on the device, and a *gate*
tensor (1 in the forward, 0 in the backward) keeps the recompute of activation checkpointing out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from cmr_monitor_callbacks.catalogue import RECORDS, UNIT_INTERVAL, Store
from cmr_monitor_callbacks.events import (
    FIELD_OF_ROW,
    FLAG_ROWS,
    NEEDED_BY_ROW,
    STATISTICS_OF,
    Number,
)
from cmr_monitor_callbacks.folding import FIRST_ROW, STORES
from cmr_monitor_callbacks.nonfinite import ROW_OF
from cmr_monitor_callbacks.packed import ROW, Packed

KINDS: Final = ("capture", "reconstruction", "buffer", "retrieval")
"""Components whose numbers may be tensors."""
WIDTH: Final = max(len(STORES[kind]) for kind in KINDS)
"""Statistics, and so fields, of the widest kind."""
_NONFINITE: Final = ROW["nonfinite_count"]


class Flag:
    """Whether the host wrote to a block since its last read."""

    __slots__ = ("up",)

    def __init__(self) -> None:
        self.up = False


class _Constants:
    """What belongs to a kind of event, on a device; made there, for copying it would wait."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self._device = device
        self._picks: dict[tuple[int, ...], Tensor] = {}
        names = RECORDS[kind]
        largest = torch.finfo(torch.float64).max
        limits = [1.0 if name in UNIT_INTERVAL else largest for name in names]
        adding = [store is not Store.GAUGE for store in STORES[kind]]
        # the statistic that comes from no field (calls) looks one place past the fields
        sources = [len(names) if field is None else field for field in FIELD_OF_ROW[kind]]
        needed = [NEEDED_BY_ROW.get(kind, {}).get(row, field) for row, field in enumerate(sources)]
        flags = [row in FLAG_ROWS.get(kind, ()) for row in range(len(sources))]
        self.sources = self._made(sources, torch.long)
        self.needed = self._made(needed, torch.long)
        self.flags = self._made(flags, torch.bool)
        self.one = self._made([1.0], torch.float64)
        self.highest = self._made(limits, torch.float64)
        self.adding = self._made(adding, torch.bool)

    def _made(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        if self._device.type == "cpu":
            return torch.tensor(values, dtype=dtype)
        return torch.stack(
            [torch.full((), value, dtype=dtype, device=self._device) for value in values]
        )

    def pick(self, places: Sequence[int]) -> Tensor:
        """An index that lies on the device: a list would be copied there, and waited for."""
        key = tuple(places)
        if key not in self._picks:
            with torch.inference_mode(False):
                self._picks[key] = self._made(key, torch.long)
        return self._picks[key]


class CellRow:
    """The device statistics of one kind of event at one layer.

    Attributes:
        cells: shape ``(4, WIDTH)``, float64, a view of the packed tensor: by statistic values and
            number of samples, by field values rejected and those of them that were not finite.
    """

    __slots__ = (
        "_adding",
        "_constants",
        "_flags",
        "_highest",
        "_needed",
        "_one",
        "_sources",
        "cells",
        "gate",
        "kind",
        "used",
    )

    def __init__(
        self, kind: str, cells: Tensor, gate: Tensor, used: Flag, constants: _Constants
    ) -> None:
        self.kind = kind
        self.used = used
        self.cells = cells
        self.gate = gate
        self._constants = constants
        self._sources, self._needed = constants.sources, constants.needed
        self._flags, self._one = constants.flags, constants.one
        self._highest, self._adding = constants.highest, constants.adding

    def add(self, fields: Sequence[Number]) -> None:
        """Add the tensors among an event's fields, outside of compiled code; never waits.

        The host keeps the sample, so only values come here; what is out of range takes its sample
        back. A dozen small kernels for a call, however many tensors it has.
        """
        self.used.up = True
        with torch.no_grad():
            self._merge(fields)

    def seed(self, field: int, value: float) -> None:
        """Let a gauge start from what the host knew last."""
        for row, source in enumerate(FIELD_OF_ROW[self.kind]):
            if source == field and STORES[self.kind][row] is Store.GAUGE:
                self.cells[0, row].fill_(value)

    def add_compiled(self, fields: Sequence[Number]) -> None:
        """Add a whole event inside compiled code: one fused in-place write, no graph break."""
        # few operations: each is traced and compiled for every probe call of the model
        live = self.gate > 0
        raw = torch.stack([self._scalar(value) for value in fields])
        ok = (raw >= 0) & (raw <= self._highest) & live
        known = torch.cat((ok, live[None]))
        fine = known[self._sources] & known[self._needed]
        new = torch.cat((torch.where(ok, raw, 0.0), self._one))[self._sources]
        new = torch.where(self._flags, (new > 0).to(torch.float64), new)
        values, samples = self.cells[0, : len(self._sources)], self.cells[1, : len(self._sources)]
        merged = torch.where(self._adding, values + new, new)
        # -inf stands for "not given", which is not rejected
        rejected = live & ~ok & (raw != -math.inf)
        values.copy_(torch.where(fine, merged, values))
        samples.add_(fine)
        self.cells[2, : len(fields)].add_(rejected)
        self.cells[3, : len(fields)].add_(rejected & ~torch.isfinite(raw))

    def _merge(self, fields: Sequence[Number]) -> None:
        """Write the tensors of an event into the cells."""
        given = [i for i, value in enumerate(fields) if isinstance(value, Tensor)]
        raw = torch.stack([self._scalar(fields[i]) for i in given])
        fields_at = self._constants.pick(given)
        ok = (raw >= 0) & (raw <= self._highest.index_select(0, fields_at))
        clean = torch.where(ok, raw, 0.0)
        at = {field: place for place, field in enumerate(given)}
        settled = [clean[at[i]] if i in at else value for i, value in enumerate(fields)]
        values = STATISTICS_OF[self.kind](*settled)
        sources = FIELD_OF_ROW[self.kind]
        rows = [r for r, value in enumerate(values) if value is not None and sources[r] in at]
        fine = torch.stack([ok[at[_known(sources[row])]] for row in rows])
        new = torch.stack([self._scalar(values[row]) for row in rows])
        rows_at, cells = self._constants.pick(rows), self.cells
        old, adding = cells[0].index_select(0, rows_at), self._adding.index_select(0, rows_at)
        merged = torch.where(adding, old + new, new)
        cells[0].index_copy_(0, rows_at, torch.where(fine, merged, old))
        # a gauge keeps its sample, for the host saw the look
        _add_at(cells[1], rows_at, -(~fine & adding).to(torch.float64))
        _add_at(cells[2], fields_at, (~ok).to(torch.float64))
        _add_at(cells[3], fields_at, (~torch.isfinite(raw)).to(torch.float64))

    def _scalar(self, value: Number) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(device=self.cells.device, dtype=torch.float64)
        fill = -math.inf if value is None else value
        return torch.full((), fill, dtype=torch.float64, device=self.cells.device)


def _add_at(row: Tensor, at: Tensor, amounts: Tensor) -> None:
    row.index_copy_(0, at, row.index_select(0, at) + amounts)


def _known(field: int | None) -> int:
    assert field is not None
    return field


def countable(value: Any) -> bool:
    """Whether a tensor can stand for one number: 0-d, real, with data."""
    return bool(value.ndim == 0 and not value.is_complex() and value.device.type != "meta")


@dataclass(frozen=True)
class CellRead:
    """A window's device statistics on their way to the host.

    Attributes:
        rows: (kind, slot) of each row.
        host: shape ``(rows, 4, WIDTH)``, float64.
    """

    rows: tuple[tuple[str, int], ...]
    host: Tensor
    event: Any = None

    @property
    def ready(self) -> bool:
        """Whether the copy has ended; never waits."""
        return self.event is None or bool(self.event.query())

    def add_to(self, packed: Packed) -> None:
        """Add the statistics to a window's; waits for the copy if it is still under way.

        A gauge that the host knows stands: it was looked at later.
        """
        if self.event is not None:
            self.event.synchronize()
        for (kind, slot), cells in zip(self.rows, self.host.numpy(), strict=True):
            for row, store in enumerate(STORES[kind]):
                value, at = cells[0, row], FIRST_ROW[kind] + row
                packed.samples[at, slot] += cells[1, row]
                if store is not Store.GAUGE:
                    packed.values[at, slot] += value
                elif math.isnan(packed.values[at, slot]):
                    packed.values[at, slot] = value
            if cells[3].any():
                packed.values[_NONFINITE, slot] += cells[3].sum()
                for name, count in zip(RECORDS[kind], cells[3], strict=False):
                    packed.values[ROW_OF[kind, name], slot] += count

    def rejected(self) -> list[tuple[str, int, str, int]]:
        """Component, column, field and number of the values that were not taken; after `add_to`."""
        return [
            (kind, slot, name, int(count))
            for (kind, slot), cells in zip(self.rows, self.host.numpy(), strict=True)
            for name, count in zip(RECORDS[kind], cells[2], strict=False)
            if count
        ]


class _Block:
    """Rows of one device, packed."""

    def __init__(self, device: torch.device, rows: list[tuple[str, int]]) -> None:
        self.rows = rows
        self.used = Flag()
        self.packed = torch.zeros(len(rows), 4, WIDTH, dtype=torch.float64, device=device)
        self.start = torch.zeros_like(self.packed)
        for i, (kind, _) in enumerate(rows):
            for k, store in enumerate(STORES[kind]):
                if store is Store.GAUGE:
                    self.start[i, 0, k] = math.nan
        self.packed.copy_(self.start)

    def read(self) -> CellRead:
        """Start the copy to the host and empty the cells, without waiting."""
        self.used.up = False
        rows = tuple(self.rows)
        if self.packed.device.type != "cuda":
            host = self.packed.cpu().clone()
            self.packed.copy_(self.start)
            return CellRead(rows, host)
        host = torch.empty(self.packed.shape, dtype=torch.float64, pin_memory=True)
        host.copy_(self.packed, non_blocking=True)
        self.packed.copy_(self.start)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.packed.device))
        return CellRead(rows, host, event)


class DeviceCells:
    """The packed tensors of all devices that numbers came from."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._gates: dict[torch.device, Tensor] = {}
        self._constants: dict[tuple[str, torch.device], _Constants] = {}

    def allocate(self, device: torch.device, rows: list[tuple[str, int]]) -> list[CellRow]:
        """Make rows of a device in one packed tensor.

        Args:
            device: where the numbers are.
            rows: (kind, slot) of each row.
        """
        # an inference tensor could not be written in training later
        with torch.inference_mode(False):
            block = _Block(device, rows)
            if device not in self._gates:
                self._gates[device] = torch.ones((), dtype=torch.float64, device=device)
            self._blocks.append(block)
            return [
                CellRow(
                    kind,
                    block.packed[i],
                    self._gates[device],
                    block.used,
                    self._constants_of(kind, device),
                )
                for i, (kind, _) in enumerate(rows)
            ]

    def _constants_of(self, kind: str, device: torch.device) -> _Constants:
        if (kind, device) not in self._constants:
            self._constants[kind, device] = _Constants(kind, device)
        return self._constants[kind, device]

    @property
    def in_use(self) -> bool:
        """Whether any number was counted on a device."""
        return any(block.used.up for block in self._blocks)

    def set_gate(self, is_open: bool) -> None:
        """Let compiled code count (forward) or not (backward: a recompute)."""
        for gate in self._gates.values():
            gate.fill_(1.0 if is_open else 0.0)

    def read(self) -> list[CellRead]:
        """Start reading every device that was written to since, and empty its cells.

        What compiled code wrote leaves no trace on the host: once anything was compiled, all are
        read.
        """
        compiled = anything_compiled()
        return [block.read() for block in self._blocks if compiled or block.used.up]


_counters: Any = None
"""What Dynamo has counted, once it is there; asked before each backward."""


def anything_compiled() -> bool:
    """Whether ``torch.compile`` was used in this process."""
    global _counters
    if _counters is None:
        utils = sys.modules.get("torch._dynamo.utils")
        _counters = getattr(utils, "counters", None)
    return _counters is not None and bool(_counters.get("stats"))


def was_compiled(function: object) -> bool:
    """Whether Dynamo holds compiled code of a function; on a torch that cannot say, of any."""
    dynamo = sys.modules.get("torch._dynamo")
    code = getattr(function, "__code__", None)
    if dynamo is None or code is None:
        return False
    entries = getattr(dynamo.eval_frame, "_debug_get_cache_entry_list", None)
    return anything_compiled() if entries is None else bool(entries(code))
