"""Decisions that all ranks make at the same step: to stop, to make a checkpoint."""

from __future__ import annotations


class Votes:
    """What this process asks for, until all have heard it.

    >>> votes = Votes()
    >>> votes.ask("stop", "it is enough")
    >>> sent = votes.send()
    >>> votes.ask("checkpoint", "later")
    >>> votes.heard()
    >>> votes.take()
    {'checkpoint': 'later'}
    """

    def __init__(self) -> None:
        self._open: dict[str, str] = {}
        self._sent: dict[str, str] = {}

    def ask(self, kind: str, reason: str) -> None:
        """Ask for ``stop`` or ``checkpoint``."""
        self._open[kind] = reason

    def send(self) -> dict[str, str]:
        """What goes to the others with this window."""
        self._sent = dict(self._open)
        return self._sent

    def heard(self) -> None:
        """All have what was sent."""
        self._open = {k: why for k, why in self._open.items() if self._sent.get(k) != why}

    def take(self) -> dict[str, str]:
        """Everything asked for, which is asked for no more."""
        taken, self._open = self._open, {}
        return taken
