"""The windows of several ranks: sent at a window's end, taken some steps later by all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cmr_monitor_callbacks.distributed import Exchange, Exchanged, ExchangeError, Header, reasons
from cmr_monitor_callbacks.errors import LayerError
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.recording.stage import ClosedWindow
from cmr_monitor_callbacks.windows.decisions import Decisions
from cmr_monitor_callbacks.windows.numbers import Numbers
from cmr_monitor_callbacks.windows.parts import Parts

_LAST_WAIT = 1.0
"""Seconds that a window under way is waited for when this process leaves the others."""


class Together:
    """This process among the others; where they fail it, it goes on with its own numbers.

    Args:
        parts: of the monitor.
        numbers: what this process counted.
        decisions: what it asks for.

    Attributes:
        rank: of this process, also once it has left.
        sent: this process's part of the window under way.
        next_end: last step of the window in hand, where windows are in seconds.
        edits: changes of the rules that rank 0 sends with its window.
    """

    def __init__(self, parts: Parts, numbers: Numbers, decisions: Decisions) -> None:
        self._parts = parts
        self._ranks = parts.ranks
        self._numbers = numbers
        self._decisions = decisions
        self.rank = 0
        self.next_end = 0
        self.forget()

    def forget(self) -> None:
        """Nothing is under way."""
        self.sent: Packed | None = None
        self.undecided: Exchanged | None = None
        self.edits = ""

    @property
    def exchange(self) -> Exchange | None:
        """The exchange with the others; None: numbers are this process's own."""
        return self._ranks.exchange

    @contextmanager
    def _or_alone(self) -> Iterator[None]:
        """Where the others fail this rank, it goes on with its own numbers."""
        try:
            yield
        except (ExchangeError, LayerError) as error:
            waiting = self._ranks.lose()
            if waiting is not None:
                self._parts.ledger.train.fold(waiting, [])
            text = f"{error}; from now on the numbers of this rank are its own"
            self._parts.failures.note("reduction", ExchangeError(text))

    # -- finding each other -----------------------------------------------------------------

    def join(self) -> None:
        """Find the other ranks; all of them call it at once."""
        with self._or_alone():
            self._ranks.join()
        self.rank = self._ranks.rank
        if not self._ranks.first:
            self._parts.alerts.tells = False

    def agree(self) -> None:
        """Agree on the layers of all ranks; all of them call it at once."""
        with self._or_alone():
            ledger = self._parts.ledger
            layers = [*ledger.shared.layers, *ledger.layout.layers]
            layout = self._ranks.begin(layers, self._parts.tracking.names)
            if layout is not None:
                ledger.share(layout)
                self.next_end = self._parts.position.under_way()

    def arrives(self) -> bool:
        """Whether the window under way comes yet, before this process leaves."""
        exchange = self.exchange
        return exchange is not None and exchange.arrives(_LAST_WAIT)

    # -- a window ---------------------------------------------------------------------------

    def send(self, closed: ClosedWindow, next_end: int, lag: int) -> None:
        """Send a window that has ended.

        Args:
            closed: the window.
            next_end: the step that ends the next one, if this is rank 0.
            lag: steps after which it is taken, by all.
        """
        ledger = self._parts.ledger
        self.sent = ledger.settle(closed, ledger.train, wait=False)
        self.next_end = sys.maxsize  # until rank 0's word is here
        votes = self._decisions.votes.send()
        with self._or_alone():
            self.sent = self._ranks.send(
                self._header(closed, next_end, votes),
                reasons(votes),
                self.sent,
                ledger.layout.layers,
                lag,
                self._parts.tracking,
            )

    def _header(
        self, closed: ClosedWindow, next_end: int, votes: Mapping[str, str] | None = None
    ) -> Header:
        own = self._numbers.own
        return Header(
            step=float(closed.step),
            next_step=float(next_end),
            time=closed.time,
            stop=float("stop" in (votes or {})),
            checkpoint=float("checkpoint" in (votes or {})),
            **self._numbers.counts(),
            processing_time=own.processing_time,
            **own.measured,
            resources=own.resources,
            **self._parts.examiner.send_compared(),
            edits=float(len(self.edits)),
        )

    def take(self, *, last: bool) -> Exchanged | None:
        """The window under way, of all ranks; None: they are lost.

        Args:
            last: whether no window follows that could have the numbers of new layers.
        """
        exchanged = None
        with self._or_alone():
            exchanged = self._ranks.take(last=last)
            if last and self._ranks.exchange is not None:
                self._parts.ledger.share(self._ranks.exchange.layout)
        return exchanged

    def heard(self, exchanged: Exchanged) -> None:
        """A window of all ranks is finished; what they ask for with it is still to be done."""
        self._decisions.votes.heard()
        self.undecided = exchanged
        self.next_end = int(exchanged.first.next_step)

    def rules_changed(self, exchanged: Exchanged) -> str:
        """Changes of the rules that rank 0 sent with a window; empty: none."""
        exchange, found = self.exchange, ""
        if exchange is not None and exchanged.first.edits:
            with self._or_alone():
                found = exchange.first_text(self.edits)
        return found

    def meet_new_layers(self, exchanged: Exchanged) -> bool:
        """Agree on layers that are new on some rank; whether there were any."""
        exchange = self.exchange
        if exchange is None or not any(header.new_layers for header in exchanged.headers):
            return False
        with self._or_alone():
            exchange.agree(self._parts.ledger.layout.layers, self._parts.tracking.names)
            self._parts.ledger.share(exchange.layout)
        return self.exchange is not None

    def take_stage(self, closed: ClosedWindow, window: Packed) -> Exchanged | None:
        """All numbers of a stage other than training, of all ranks; waits for them."""
        ledger, exchanged = self._parts.ledger, None
        if self.exchange is not None:
            with self._or_alone():
                header = self._header(closed, self.next_end)
                exchanged = self._ranks.exchange_stage(header, window, ledger.layout.layers)
                ledger.share(self.exchange.layout)
        return exchanged
