"""The books of all buffers: what they hold, and that nothing enters or leaves them uncounted.

Per layer, over all stages and buffers together: entries at the start + stored + loaded - evicted -
overwritten - merged - cleared = entries held. What the watches count is one side; what the buffers
hold is the other. A difference is what came or went past the buffers' methods, by whoever: it was
loaded, or cleared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from cmr_monitor_callbacks.probes.holding import Holding
from cmr_monitor_callbacks.probes.report import Report
from cmr_monitor_callbacks.probes.watches.base import BYTES, CAPACITY, CLEARED, ENTRIES, LOADED

Layer = Hashable | None


class Account(Protocol):
    """A buffer that is watched."""

    @property
    def counts_moves(self) -> bool:
        """Whether what is stored is seen; else only what holds now is known."""
        ...

    def holds(self) -> dict[Layer, int]:
        """Entries held now, by layer."""
        ...

    def holdings(self) -> dict[Layer, Holding]:
        """What holds now, by layer; of the whole a limit alone."""
        ...


class Books:
    """Balances what buffers hold with what was counted.

    Args:
        report: where numbers go.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._offsets: dict[Layer, float] = {}
        """Entries that were there before anybody counted."""
        self._new: list[tuple[Account, int, Callable[[Layer], float]]] = []
        self._shown: set[Layer] = set()
        self._ever: set[Layer] = set()
        self._begun = False

    def open(self, account: Account) -> None:
        """Take in a buffer; its layer may be known only when a forward is given it."""
        if account.counts_moves:
            self._new.append((account, sum(account.holds().values()), self._report.came()))

    def begin(self) -> None:
        """Entries held until now are nobody's doing; those of what comes later were loaded."""
        for account, held_then, came in self._new:
            held = account.holds()
            share = dict.fromkeys(held, held_then) if len(held) == 1 else held
            for layer, count in share.items():
                if self._report.place(layer) is None:
                    continue
                if layer not in self._offsets:
                    self._offsets[layer] = -came(layer)
                if not self._begun:
                    self._offsets[layer] += count
        self._new.clear()

    def begin_anew(self, accounts: Iterable[Account]) -> None:
        """What is held now was there before anybody counted."""
        came = self._report.came()
        self.begin()
        for layer, count in _held(accounts).items():
            if self._report.place(layer) is not None:
                self._offsets[layer] = count - came(layer)

    def close(self, account: Account) -> None:
        """A buffer was dropped, and its entries with it: they were cleared."""
        if not account.counts_moves:
            return
        for layer, count in account.holds().items():
            at = self._report.place(layer)
            if at is not None:
                self._report.extend((at + CLEARED, count))

    def balance(self, accounts: Iterable[Account], *, blind: bool) -> None:
        """Account for what came and went unseen since the last time.

        Args:
            accounts: all buffers.
            blind: whether compiled code stores and drops, and cannot tell.
        """
        report, came = self._report, self._report.came()
        self.begin()
        self._begun = True
        held = _held(accounts)
        for layer in {*held, *self._offsets, *report.places}:
            at = report.place(layer)
            if at is None:
                continue
            if blind:
                self._offsets[layer] = held.get(layer, 0) - came(layer)
                continue
            expected = self._offsets.setdefault(layer, 0.0) + came(layer)
            gap = round(held.get(layer, 0) - expected)
            if gap:
                report.extend((at + (LOADED if gap > 0 else CLEARED), abs(gap)))

    def show(self, accounts: Iterable[Account]) -> None:
        """Gauges: the sum of all buffers; a layer that none of them has any more holds nothing."""
        found: dict[Layer, list[Holding]] = {layer: [] for layer in self._shown}
        for account in accounts:
            for layer, holding in account.holdings().items():
                found.setdefault(layer, []).append(holding)
        for layer, holdings in found.items():
            at = self._report.place(layer)
            if at is None:
                continue
            self._shown.add(layer)
            limits = [h.capacity for h in holdings if h.capacity is not None]
            if layer is not None or not any(other is not None for other in found):
                held = any(h.held for h in holdings) or self._report.entered(layer)
                if held and layer not in self._ever:  # a layer counts that has held any
                    self._ever.add(layer)
                    self._report.extend((at + ENTRIES, 1))
                sizes = [h.nbytes for h in holdings if h.nbytes is not None]
                self._report.extend((at + ENTRIES, sum(h.entries for h in holdings)))
                if sizes or not holdings:
                    self._report.extend((at + BYTES, sum(sizes)))
            if limits and len(limits) == len(holdings):
                self._report.extend((at + CAPACITY, sum(limits)))


def _held(accounts: Iterable[Account]) -> dict[Layer, int]:
    """Entries by layer in all buffers whose moves are counted."""
    held: dict[Layer, int] = {}
    for account in accounts:
        if account.counts_moves:
            for layer, count in account.holds().items():
                held[layer] = held.get(layer, 0) + count
    return held
