"""What rules and ranks ask for: to stop, to make a checkpoint, to raise."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cmr_monitor_callbacks.distributed import Exchanged, RankSession, Votes
from cmr_monitor_callbacks.errors import CriticalAlert
from cmr_monitor_callbacks.sinks.outlet import Guard
from cmr_monitor_callbacks.snapshot import Snapshot

logger = logging.getLogger(__name__)


class Decisions:
    """Asked for on any rank, carried out on all of them at the same step.

    Args:
        ranks: the other ranks; where they are lost nothing is decided without them.
        guard: what gets over a failure of who carries it out.

    Attributes:
        carry_out: told ``stop`` or ``checkpoint`` and the reason; None: nobody is.
    """

    def __init__(self, ranks: RankSession, guard: Guard) -> None:
        self._ranks = ranks
        self._guard = guard
        self.carry_out: Callable[[str, str], None] | None = None
        self.forget()

    def forget(self) -> None:
        """Nothing is asked for."""
        self.votes = Votes()
        self._fatal = ""

    def ask(self, action: str, reason: str) -> None:
        """What a rule asks for when it fires; on all ranks alike."""
        if action in ("stop", "checkpoint"):
            self.votes.ask(action, reason)
        elif action == "log":
            logger.warning("%s", reason)
        elif self._ranks.lost:
            logger.warning("not raised (%s): the other ranks cannot be asked", reason)
        else:
            self._fatal = reason

    def alone(self) -> None:
        """There is nobody to ask."""
        for kind, reason in self.votes.take().items():
            if self._ranks.lost:
                logger.warning("no %s (%s): the other ranks cannot be asked", kind, reason)
            else:
                self._act(kind, reason)

    def with_all(self, exchanged: Exchanged) -> None:
        """What any rank asked for with a window."""
        for kind in ("stop", "checkpoint"):
            reason = exchanged.vote(kind)
            if reason is not None:
                self._act(kind, reason)

    def raise_if_fatal(self, snapshot: Snapshot) -> None:
        """A rule asked for it.

        Raises:
            CriticalAlert: with the snapshot's numbers.
        """
        if self._fatal:
            reason, self._fatal = self._fatal, ""
            raise CriticalAlert(reason, snapshot.to_dict("window"))

    def _act(self, kind: str, reason: str) -> None:
        if self.carry_out is not None:
            with self._guard(f"{kind}, for {reason}"):  # a full disk must not keep it from stopping
                self.carry_out(kind, reason)
