"""This process's part in a job of several: the group, the exchange, and what becomes of both."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from cmr_monitor_callbacks.distributed.exchange import NOTHING_TRACKED, Custom, Exchange
from cmr_monitor_callbacks.distributed.group import RankGroup
from cmr_monitor_callbacks.distributed.merge import Exchanged
from cmr_monitor_callbacks.distributed.payload import Header
from cmr_monitor_callbacks.distributed.routes import flat, tree
from cmr_monitor_callbacks.layers import LayerId, Layout
from cmr_monitor_callbacks.packed import Packed

LAG = 5
"""Steps after a window's end at which its numbers are taken: by then they have mostly arrived."""


class RankSession:
    """Alone until it has joined; on its own again once the others are lost.

    Args:
        reduction: ``auto``, ``flat``, ``hierarchical`` or ``none``.
        flat_up_to: most ranks that ``auto`` lets gather all at once.
        timeout: longest wait for the others, in seconds.
        node: name of this process's node; its host name by default.
        by_layer: whether this process keeps histograms of layers.
    """

    def __init__(
        self,
        reduction: str,
        flat_up_to: int,
        timeout: float,
        node: str = "",
        *,
        by_layer: bool = False,
    ) -> None:
        self._by_layer = by_layer
        self._reduction = reduction
        self._flat_up_to = flat_up_to
        self._timeout = timeout
        self._node = node or socket.gethostname()
        self._group: RankGroup | None = None
        self._exchange: Exchange | None = None
        self._sent: tuple[Header, Sequence[LayerId], Custom] = (Header(), (), NOTHING_TRACKED)
        self.lost = False
        """Whether the others could not be reached, so that numbers are this process's own."""
        self.take_at = -1
        """Step at which the window under way is taken, on every rank."""

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self._group is None and not self.lost

    @property
    def first(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Of this process; 0 where it is alone."""
        return 0 if self._group is None else self._group.rank

    @property
    def exchange(self) -> Exchange | None:
        """The exchange with the others; None: numbers are this process's own."""
        return self._exchange

    def join(self) -> None:
        """Find the other ranks, on all of them at once.

        Raises:
            ExchangeError: some rank has no monitor, or did not come in time.
        """
        if self._group is None and not self.lost and self._reduction != "none":
            self._group = RankGroup.create(self._timeout)

    def begin(self, layers: Iterable[LayerId], names: Iterable[str] = ()) -> Layout | None:
        """Agree on the layers of all ranks, on all of them at once; None: nothing to agree on.

        Args:
            layers: of this rank.
            names: of what is tracked on this rank.

        Raises:
            ExchangeError: a rank did not take part in time.
        """
        if self._group is None or self._exchange is not None or self.lost:
            return None
        group = self._group
        by_tree = self._reduction == "hierarchical" or (
            self._reduction == "auto" and group.size > self._flat_up_to
        )
        route = tree(group, self._node) if by_tree else flat(group)
        self._exchange = Exchange(group, route, layers, names, by_layer=self._by_layer)
        return self._exchange.layout

    def send(
        self,
        header: Header,
        reason: str,
        window: Packed,
        layers: Sequence[LayerId],
        lag: int,
        custom: Custom = NOTHING_TRACKED,
    ) -> Packed:
        """Send this rank's window; it is to be taken ``lag`` steps later.

        Returns:
            the window, with numbers of new layers that waited for it; not to be changed.
        """
        assert self._exchange is not None
        self.take_at = int(header.step) + lag
        self._sent = header, layers, custom
        return self._exchange.launch(header, reason, window, layers, custom)

    def take(self, *, last: bool = False) -> Exchanged | None:
        """The window under way, of all ranks; None: none is.

        Args:
            last: whether no window follows that could have the numbers of new layers.

        Raises:
            ExchangeError: the others did not come in time, are gone, or are at another window.
        """
        exchange = self._exchange
        if exchange is None or not exchange.under_way:
            return None
        return exchange.take_all(*self._sent) if last else exchange.take()

    def exchange_stage(
        self, header: Header, window: Packed, layers: Sequence[LayerId]
    ) -> Exchanged:
        """All numbers of a stage other than training, of all ranks; waits for them.

        Raises:
            ExchangeError: as `take`.
        """
        exchange = self._exchange
        assert exchange is not None
        waiting, exchange.withheld = exchange.withheld, None  # this is training's
        try:
            exchange.launch(header, "", window, layers)
            return exchange.take_all(header, layers)
        finally:
            exchange.withheld = waiting

    def settle(self) -> None:
        """Wait until nothing is under way; nothing is taken."""
        if self._group is not None:
            self._group.submit(lambda: None).take()

    def lose(self) -> Packed | None:
        """Go on without the others.

        Returns:
            numbers that waited for an agreement.
        """
        waiting = None if self._exchange is None else self._exchange.withheld
        self._exchange = None
        self.lost = True
        return waiting

    def leave(self) -> None:
        """Let the group go, wait for nobody, and be alone again."""
        group, self._group = self._group, None
        self._exchange = None
        self.lost = False
        if group is not None:
            group.close()
