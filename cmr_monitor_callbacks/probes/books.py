"""The books of all buffers: what they hold, and that nothing enters or leaves them uncounted.

Per layer, over all stages and buffers together: entries at the start + stored + loaded - evicted -
overwritten - merged - cleared = entries held. What the watches count is one side; what the buffers
hold is the other. A difference is what came or went past the buffers' methods, by whoever: it was
loaded, or cleared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Protocol

from cmr_monitor_callbacks.layers import LayerId, layer_id
from cmr_monitor_callbacks.probes.holding import Holding
from cmr_monitor_callbacks.probes.report import Report
from cmr_monitor_callbacks.probes.watches.base import BYTES, CAPACITY, CLEARED, ENTRIES, LOADED

Layer = LayerId | None


class Account(Protocol):
    """A buffer that is watched."""

    @property
    def counts_moves(self) -> bool:
        """Whether what is stored is seen; else only what holds now is known."""
        ...

    def holds(self) -> dict[Any, int]:
        """Entries held now, by layer."""
        ...

    def holdings(self) -> dict[Any, Holding]:
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
        self._shown: set[Hashable | None] = set()
        self._ever: set[Hashable | None] = set()
        self._begun = False
        self._counts = False
        """Whether there was a buffer whose moves are counted."""
        self._resumed: tuple[dict[Layer, int], Callable[[Layer], float]] | None = None
        """Entries by layer where the run was left, and what had come then; None: it is known what
        became of them."""

    def open(self, account: Account) -> None:
        """Take in a buffer; its layer may be known only when a forward is given it."""
        if account.counts_moves:
            self._counts = True
            self._new.append((account, sum(account.holds().values()), self._report.came()))

    def begin(self) -> None:
        """Entries held until now are nobody's doing; those of what comes later were loaded."""
        for account, held_then, came in self._new:
            held = _held([account])
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
        held = _held(accounts)
        for layer in {*held, *self._offsets}:
            if self._report.place(layer) is not None:
                self._offsets[layer] = held.get(layer, 0) - came(layer)

    def resume(self, entries: Mapping[Layer, int] | None) -> None:
        """Go on with a run that was left with so many entries.

        What the buffers hold more or less than that is loaded or cleared when they are looked at
        next; a buffer that was restored holds what it held.

        Args:
            entries: what `entries` gave; None: nobody knows, and what is held now is the start.
        """
        self._resumed = None if entries is None else (dict(entries), self._report.came())
        self._begun = self._counts
        self._ever.clear()

    @property
    def resuming(self) -> bool:
        """Whether buffers are there that were not compared with the run that goes on."""
        return self._counts and self._resumed is not None

    def _take_up(self, held: Mapping[Layer, int]) -> None:
        assert self._resumed is not None
        (entries, came), self._resumed = self._resumed, None
        if entries and (set(held) == {None}) is not (set(entries) == {None}):
            return  # known by layer now and not then, or the other way round
        for layer in {*held, *entries}:
            if self._report.place(layer) is not None:
                self._offsets[layer] = entries.get(layer, 0) - came(layer)

    def entries(self) -> dict[Layer, int] | None:
        """Entries held by layer, as the counts have it; None: nothing counts them."""
        if self._resumed is not None:
            return self._resumed[0]
        if not self._counts:
            return None
        came = self._report.came()
        found = {layer: round(offset + came(layer)) for layer, offset in self._offsets.items()}
        return {layer: count for layer, count in found.items() if count}

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
        if not self._counts:  # nobody knows what is held
            return
        self._begun = True
        held = _held(accounts)
        if self._resumed is not None:
            self._take_up(held)
        for layer in {*held, *self._offsets, *map(_id, report.places)}:
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
        found: dict[Any, list[Holding]] = {layer: [] for layer in self._shown}
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


def _id(layer: Hashable | None) -> Layer:
    """The id by which a checkpoint knows the layer, too."""
    return None if layer is None else layer_id(layer)


def _held(accounts: Iterable[Account]) -> dict[Layer, int]:
    """Entries by layer in all buffers whose moves are counted."""
    held: dict[Layer, int] = {}
    for account in accounts:
        if account.counts_moves:
            for layer, count in account.holds().items():
                held[_id(layer)] = held.get(_id(layer), 0) + count
    return held
