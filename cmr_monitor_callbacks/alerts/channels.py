"""Ways to tell people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Protocol

from cmr_monitor_callbacks.alerts.notice import Notice
from cmr_monitor_callbacks.health import Severity

logger = logging.getLogger("cmr_monitor_callbacks.alerts")
# where nobody set up logging, Python would print a notice beside the console channel's own line
logger.addHandler(logging.NullHandler())

_LEVELS = {
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}
_COLORS = {Severity.WARNING: "33", Severity.ERROR: "31", Severity.CRITICAL: "1;31"}


class Channel(Protocol):
    """Delivers a notice."""

    def send(self, notice: Notice) -> None:
        """Deliver one notice. Called on the training thread: be quick."""
        ...


class ConsoleChannel:
    """One line on the terminal.

    Args:
        emit: prints a line; a progress bar's own print keeps the bar whole. Default: stderr.
        color: colour the line; default: if stderr is a terminal.
    """

    def __init__(
        self, emit: Callable[[str], None] | None = None, color: bool | None = None
    ) -> None:
        self.emit = emit
        self._color = sys.stderr.isatty() if color is None else color

    def send(self, notice: Notice) -> None:
        """Print the notice."""
        text = str(notice)
        if self._color:
            code = "32" if notice.resolved else _COLORS[notice.severity]
            text = f"\x1b[{code}m{text}\x1b[0m"
        if self.emit is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self.emit(text)


class LogChannel:
    """Python's logging, logger ``cmr_monitor_callbacks.alerts``, at the alert's own level."""

    def send(self, notice: Notice) -> None:
        """Log the notice."""
        level = logging.INFO if notice.resolved else _LEVELS[notice.severity]
        logger.log(level, "%s", notice)
