"""What a channel is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cmr_monitor_callbacks.alerts.notice import Notice

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Channel(Protocol):
    """Delivers notices. It runs on a thread of the monitor's own, so it may take its time."""

    def send(self, notice: Notice) -> None:
        """Deliver one notice.

        Raises:
            Retry: it could not be delivered now; later it may.
            Exception: it cannot be delivered.
        """
        ...

    def close(self) -> None:
        """Nothing more is to be delivered for now."""
        ...


class Retry(Exception):
    """A notice could not be delivered now.

    Attributes:
        after: seconds that the other side asks to wait; None: it does not say.
    """

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


@dataclass
class Surroundings:
    """What channels find where a run goes on.

    Attributes:
        folder: where the run's files are; None: nowhere.
        emit: prints a line above a progress bar; None: nobody does.
        add_text: writes Markdown to TensorBoard: tag, text, step; None: nobody does.
        run: name of the run.
    """

    folder: Path | None = None
    emit: Callable[[str], None] | None = None
    add_text: Callable[[str, str, int], None] | None = None
    run: str = ""


def plain(text: str) -> str:
    """A text without control characters, which could move a terminal's cursor or hide a line."""
    return _CONTROL.sub(" ", text).replace("\n", " ")
