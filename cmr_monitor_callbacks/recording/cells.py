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

from cmr_monitor_callbacks.catalogue import Store
from cmr_monitor_callbacks.events import STATISTICS_OF, Number
from cmr_monitor_callbacks.folding import FIRST_ROW, STORES
from cmr_monitor_callbacks.packed import ROW, Packed

KINDS: Final = ("capture", "reconstruction", "buffer", "retrieval")
"""Components whose numbers may be tensors."""
WIDTH: Final = max(len(STORES[kind]) for kind in KINDS)
_NONFINITE: Final = ROW["nonfinite_count"]


def _mask(kind: str, device: torch.device, *stores: Store) -> Tensor:
    """Which statistics of a kind are kept in one of these ways; shape ``(WIDTH,)``, bool."""
    flags = [store in stores for store in STORES[kind]]
    flags += [False] * (WIDTH - len(flags))
    return torch.tensor(flags, device=device)


class CellRow:
    """The device statistics of one kind of event at one layer.

    Attributes:
        cells: shape ``(3, WIDTH)``, float64, a view of the packed tensor: values, number of
            samples, number of values that were not finite.
    """

    __slots__ = ("adding", "cells", "gate", "kind", "order", "used")

    def __init__(self, kind: str, cells: Tensor, gate: Tensor, used: Flag) -> None:
        self.kind = kind
        self.used = used
        self.cells = cells
        self.gate = gate
        self.order = STORES[kind]
        self.adding = _mask(kind, cells.device, Store.COUNT, Store.SUM)

    def add(self, fields: Sequence[Number]) -> None:
        """Add the tensors among an event's fields, outside of compiled code.

        The host keeps the sample with a 0 in the tensor's place, so only values come here. Whole
        numbers cost one small kernel each and no synchronisation; reals three.
        """
        self.used.up = True
        with torch.no_grad():
            for row, value in enumerate(STATISTICS_OF[self.kind](*fields)):
                if isinstance(value, Tensor):
                    self._add_one(row, value.detach(), self.order[row])

    def _add_one(self, row: int, value: Tensor, store: Store) -> None:
        if value.is_floating_point():
            finite = torch.isfinite(value)
            self.cells[2, row].add_(~finite)
            if store is not Store.GAUGE:
                self.cells[1, row].sub_((~finite).to(torch.float64))
            value = torch.where(finite, value.double(), self._neutral(row, store))
        if store is Store.GAUGE:
            self.cells[0, row].copy_(value)
        else:
            self.cells[0, row].add_(value)

    def _neutral(self, row: int, store: Store) -> Any:
        return self.cells[0, row] if store is Store.GAUGE else 0.0

    def add_compiled(self, fields: Sequence[Number]) -> None:
        """Add a whole event inside compiled code: one fused in-place write, no graph break."""
        old, count, bad = self.cells
        live = self.gate > 0
        statistics = STATISTICS_OF[self.kind](*fields)
        padded = (*statistics, *[None] * (WIDTH - len(statistics)))
        new = torch.stack([self._scalar(value) for value in padded])
        finite = torch.isfinite(new)
        ok = finite & live
        merged = torch.where(self.adding, old + new, new)
        # -inf stands for "not given", which is neither a sample nor a bad one
        rejected = live & ~finite & (new != -math.inf)
        self.cells.copy_(torch.stack((torch.where(ok, merged, old), count + ok, bad + rejected)))

    def _scalar(self, value: Number) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(device=self.cells.device, dtype=torch.float64)
        fill = -math.inf if value is None else value
        return torch.full((), fill, dtype=torch.float64, device=self.cells.device)


def host_fields(fields: Sequence[Any], gauges: frozenset[str], names: Sequence[str]) -> list[Any]:
    """An event's fields for the host's list: tensors become 0, so that the sample is counted once.

    A gauge's tensor becomes None: the device holds the last value.
    """
    return [
        (None if name in gauges else 0) if isinstance(value, Tensor) else value
        for name, value in zip(names, fields, strict=True)
    ]


@dataclass(frozen=True)
class CellRead:
    """A window's device statistics on their way to the host.

    Attributes:
        rows: (kind, slot) of each row.
        host: shape ``(rows, 3, WIDTH)``, float64.
    """

    rows: tuple[tuple[str, int], ...]
    host: Tensor
    event: Any = None

    @property
    def ready(self) -> bool:
        """Whether the copy has ended; never waits."""
        return self.event is None or bool(self.event.query())

    def add_to(self, packed: Packed) -> None:
        """Add the statistics to a window's; waits for the copy if it is still under way."""
        if self.event is not None:
            self.event.synchronize()
        for (kind, slot), cells in zip(self.rows, self.host.numpy(), strict=True):
            for row, store in enumerate(STORES[kind]):
                value, at = cells[0, row], FIRST_ROW[kind] + row
                packed.samples[at, slot] += cells[1, row]
                if store is not Store.GAUGE:
                    packed.values[at, slot] += value
                elif not math.isnan(value):
                    packed.values[at, slot] = value
            rejected = cells[2].sum()
            packed.values[_NONFINITE, slot] += rejected
            packed.samples[_NONFINITE, slot] += rejected > 0


class Flag:
    """Whether the host wrote to a block since its last read."""

    __slots__ = ("up",)

    def __init__(self) -> None:
        self.up = False


class _Block:
    """Rows of one device, packed."""

    def __init__(self, device: torch.device, rows: list[tuple[str, int]]) -> None:
        self.rows = rows
        self.used = Flag()
        self.packed = torch.zeros(len(rows), 3, WIDTH, dtype=torch.float64, device=device)
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
