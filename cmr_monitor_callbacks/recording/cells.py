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
from cmr_monitor_callbacks.events import FIELD_OF_ROW, STATISTICS_OF, Number
from cmr_monitor_callbacks.folding import FIRST_ROW, STORES
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


class CellRow:
    """The device statistics of one kind of event at one layer.

    Attributes:
        cells: shape ``(4, WIDTH)``, float64, a view of the packed tensor: by statistic values and
            number of samples, by field values rejected and those of them that were not finite.
    """

    __slots__ = ("_adding", "_highest", "_rows", "cells", "gate", "kind", "used")

    def __init__(self, kind: str, cells: Tensor, gate: Tensor, used: Flag) -> None:
        self.kind = kind
        self.used = used
        self.cells = cells
        self.gate = gate
        names = RECORDS[kind]
        largest = torch.finfo(torch.float64).max
        limits = [1.0 if name in UNIT_INTERVAL else largest for name in names]
        adding = [store is not Store.GAUGE for store in STORES[kind]]
        self._rows = range(len(adding))
        self._highest = torch.tensor(limits, dtype=torch.float64, device=cells.device)
        self._adding = torch.tensor(adding, device=cells.device)

    def add(self, fields: Sequence[Number]) -> None:
        """Add the tensors among an event's fields, outside of compiled code; never waits.

        The host keeps the sample, so only values come here; what is out of range takes its sample
        back. A dozen small kernels for a call, however many tensors it has.
        """
        self.used.up = True
        with torch.no_grad():
            self._merge([f if isinstance(f, Tensor) else None for f in fields], None)

    def add_compiled(self, fields: Sequence[Number]) -> None:
        """Add a whole event inside compiled code: one fused in-place write, no graph break."""
        self._merge(fields, self.gate > 0)

    def _merge(self, fields: Sequence[Number], live: Tensor | None) -> None:
        """Write an event into the cells.

        Args:
            fields: of the event; None is no data.
            live: whether it counts at all, 0-d bool; None: it does, and the host counts samples.
        """
        given = [i for i, value in enumerate(fields) if value is not None]
        raw = torch.stack([self._scalar(fields[i]) for i in given])
        ok = (raw >= 0) & (raw <= self._highest[given])
        clean = torch.where(ok, raw, 0.0)
        at = {field: place for place, field in enumerate(given)}
        settled: list[Number] = [clean[at[i]] if i in at else None for i in range(len(fields))]
        values = STATISTICS_OF[self.kind](*settled)
        counted = live is not None
        sources = FIELD_OF_ROW[self.kind]
        rows = [
            row
            for row in self._rows
            if values[row] is not None and (counted or sources[row] is not None)
        ]
        fine = torch.stack(
            [self._always if sources[row] is None else ok[at[_known(sources[row])]] for row in rows]
        )
        new = torch.stack([self._scalar(values[row]) for row in rows])
        old = self.cells[0, rows]
        merged = torch.where(self._adding[rows], old + new, new)
        samples = fine.to(torch.float64) if counted else fine.to(torch.float64) - 1.0
        rejected = torch.stack((~ok, ~torch.isfinite(raw))).to(torch.float64)
        if live is not None:
            fine = fine & live
            samples = samples * live
            rejected = rejected * live
        if not counted:
            # a gauge keeps its sample, for the host saw the look
            samples = torch.where(self._adding[rows], samples, 0.0)
        self.cells[0, rows] = torch.where(fine, merged, old)
        self.cells[1, rows] += samples
        self.cells[2:, given] += rejected

    @property
    def _always(self) -> Tensor:
        return torch.ones((), dtype=torch.bool, device=self.cells.device)

    def _scalar(self, value: Number) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(device=self.cells.device, dtype=torch.float64).reshape(())
        fill = math.nan if value is None else value
        return torch.full((), fill, dtype=torch.float64, device=self.cells.device)


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
            packed.values[_NONFINITE, slot] += cells[3].sum()

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
                CellRow(kind, block.packed[i], self._gates[device], block.used)
                for i, (kind, _) in enumerate(rows)
            ]

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


def anything_compiled() -> bool:
    """Whether ``torch.compile`` was used in this process."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and bool(dynamo.utils.counters["stats"])
