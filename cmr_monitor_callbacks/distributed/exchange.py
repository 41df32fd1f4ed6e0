"""The protocol between ranks: one exchange per window, of what all agreed on.

What is never left to one rank's clock or luck: when a window is sent and when everybody's numbers
are used. Both follow from step numbers that all ranks share, so that every rank acts on the same
numbers at the same step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np

from cmr_monitor_callbacks.custom import MOST, Table, as_table
from cmr_monitor_callbacks.distributed.group import ExchangeError, Pending, RankGroup
from cmr_monitor_callbacks.distributed.merge import Exchanged, with_new_layers
from cmr_monitor_callbacks.distributed.payload import Header, encode, layout_hash, payload_length
from cmr_monitor_callbacks.distributed.routes import Route
from cmr_monitor_callbacks.errors import LayerError
from cmr_monitor_callbacks.layer_histograms import LayerHistograms
from cmr_monitor_callbacks.layers import LayerId, Layout
from cmr_monitor_callbacks.packed import Packed


class Custom(Protocol):
    """What is tracked on this rank."""

    @property
    def names(self) -> Sequence[str]:
        """Its names."""
        ...

    def send(self, names: Sequence[str]) -> Table:
        """Take out the numbers of the agreed names; those of others wait."""
        ...


class _NothingTracked:
    """A rank, or a stage, in which nothing is tracked."""

    names = ()

    def send(self, names: Sequence[str]) -> Table:
        """No samples of any name."""
        return as_table({}, names)


NOTHING_TRACKED: Final[Custom] = _NothingTracked()


class Exchange:
    """Puts the ranks' windows together.

    Args:
        group: the ranks.
        route: how their numbers reach each other.
        layers: those that this rank holds now; all ranks make their `Exchange` at once.
        names: what a user tracks on this rank now.
        by_layer: whether this rank keeps histograms of layers.

    Attributes:
        by_layer: whether all ranks keep them; else none sends them.

    Raises:
        ExchangeError: the ranks did not come to an agreement.
    """

    def __init__(
        self,
        group: RankGroup,
        route: Route,
        layers: Iterable[LayerId],
        names: Iterable[str] = (),
        *,
        by_layer: bool = False,
    ) -> None:
        self.group = group
        self.by_layer = by_layer
        self._route = route
        self.windows = 0
        self.layout = Layout()
        """The layers of all ranks: the columns of what is exchanged."""
        self.names: tuple[str, ...] = ()
        """What users track on any rank, `custom.MOST` names at most."""
        self._pending: Pending[Exchanged] | None = None
        self.withheld: Packed | None = None
        """This rank's numbers of layers that were not agreed on when its last window was sent."""
        self.agree(layers, names)

    def agree(self, layers: Iterable[LayerId], names: Iterable[str] = ()) -> None:
        """Take in the layers and names of all ranks, in the same order on each; waits for them.

        Raises:
            ExchangeError: a rank did not take part in time, or two layers would look alike.
        """
        new = [layer for layer in layers if layer not in self.layout.layers]
        mine = json.dumps([new, self._new(names), self.by_layer]).encode()
        for text in self.group.submit(lambda: self.group.gather_bytes(mine)).take():
            their_layers, their_names, they_keep = json.loads(text)
            self.by_layer = self.by_layer and they_keep
            for layer in their_layers:
                try:
                    self.layout.column(layer)
                except LayerError as error:
                    raise ExchangeError(str(error)) from error
            self.names = tuple(dict.fromkeys((*self.names, *their_names)))[:MOST]
        self._hash = layout_hash(self.layout.layers, self.names)

    def _new(self, names: Iterable[str]) -> list[str]:
        """Names to agree on; where there is no room for any more, none."""
        if len(self.names) >= MOST:
            return []
        return [name for name in names if name not in self.names]

    def first_text(self, text: str) -> str:
        """Rank 0's text, on every rank; waits for the others.

        Raises:
            ExchangeError: a rank did not take part in time.
        """
        mine = text.encode() if self.group.rank == 0 else b""
        everybody = self.group.submit(lambda: self.group.gather_bytes(mine)).take()
        return everybody[0].decode()

    @property
    def payload_length(self) -> int:
        """Float64 numbers that a rank sends for a window."""
        return payload_length(self.layout.width, len(self.names), by_layer=self.by_layer)

    @property
    def under_way(self) -> bool:
        """Whether a window was launched and not taken yet."""
        return self._pending is not None

    def arrives(self, seconds: float) -> bool:
        """Whether the window under way arrives within so many seconds."""
        return self._pending is not None and self._pending.done(seconds)

    def launch(
        self,
        header: Header,
        reason: str,
        window: Packed,
        layers: Sequence[LayerId],
        custom: Custom = NOTHING_TRACKED,
    ) -> Packed:
        """Send this rank's window; its numbers of layers not agreed on yet wait for the next one.

        Args:
            header: what else to say; its layout, window and new layers are filled in here.
            reason: of a vote.
            window: this rank's statistics, one column for the whole and one for each of ``layers``;
                not to be changed any more.
            layers: this rank's, in its own order.
            custom: what is tracked on this rank, of which the agreed names are sent.

        Returns:
            the window, with what waited for it.

        Raises:
            ExchangeError: the last window was not taken yet.
        """
        if self._pending is not None:
            raise ExchangeError("a window is under way already")
        if self.withheld is not None:
            self.withheld.add(window)  # in this order: what holds now is what was said last
            window = self.withheld
        known = self.layout.layers
        new = [1 + i for i, layer in enumerate(layers) if layer not in known]
        self.withheld = _only(window, new) if new else None
        header = header._replace(
            rank=float(self.group.rank),
            layout=self._hash,
            window=float(self.windows),
            new_layers=float(len(new) + len(self._new(custom.names))),
        )
        agreed, tracked = moved(window, layers, known), custom.send(self.names)
        if self.by_layer != (agreed.by_layer is not None):
            layers_of_all = LayerHistograms.empty(agreed.width) if self.by_layer else None
            agreed = replace(agreed, by_layer=layers_of_all)
        self._pending = self.group.submit(
            lambda: self._route(encode(header, reason, agreed, tracked), agreed.width)
        )
        self.windows += 1
        return window

    def take(self) -> Exchanged:
        """The window under way, of all ranks; waits for them, but not forever.

        Raises:
            ExchangeError: a rank did not take part in time, is gone, or is at another window.
        """
        assert self._pending is not None
        pending, self._pending = self._pending, None
        try:
            return pending.take()
        except ExchangeError:
            self.withheld = None  # whoever sent the window has all of it
            raise

    def take_all(
        self, header: Header, layers: Sequence[LayerId], custom: Custom = NOTHING_TRACKED
    ) -> Exchanged:
        """As `take`, with the numbers of new layers: no window follows that could have them.

        Args:
            header: as it was sent.
            layers: this rank's, as they were sent.
            custom: what is tracked on this rank.

        Raises:
            ExchangeError: as `take`, or two layers would look alike.
        """
        first = self.take()
        if not any(other.new_layers for other in first.headers):
            return first
        self.agree(layers, custom.names)
        self.launch(header, "", Packed.empty(1 + len(layers)), layers, custom)
        return with_new_layers(first, self.take())


def moved(window: Packed, layers: Sequence[LayerId], known: Sequence[LayerId]) -> Packed:
    """A window's statistics with the columns of other layers, those that it lacks empty."""
    window.widen(1 + len(layers))
    if tuple(layers) == tuple(known):
        return window
    places = {layer: 1 + i for i, layer in enumerate(layers)}
    here = [0, *(places[layer] for layer in known if layer in places)]
    there = [0, *(1 + i for i, layer in enumerate(known) if layer in places)]
    out = Packed.empty(1 + len(known))
    out.values[:, there] = window.values[:, here]
    out.samples[:, there] = window.samples[:, here]
    out.histograms, out.extremes = window.histograms, window.extremes
    if window.by_layer is not None:
        out.by_layer = window.by_layer.moved(there, out.width, here)
    return out


def _only(window: Packed, columns: Sequence[int]) -> Packed:
    """These columns alone, without the components' durations, which belong to no layer."""
    out = Packed.empty(window.width)
    out.values[:, columns] = window.values[:, columns]
    out.samples[:, columns] = window.samples[:, columns]
    if window.by_layer is not None:
        out.by_layer = window.by_layer.moved(columns, out.width, columns)
    return out


def steps_between(seconds_left: float, seconds_per_step: float) -> int:
    """Steps that fit in some seconds, at least one.

    >>> steps_between(10.0, 0.3), steps_between(1.0, 5.0)
    (33, 1)
    """
    if not np.isfinite(seconds_per_step) or seconds_per_step <= 0:
        return 1
    return max(1, round(seconds_left / seconds_per_step))
