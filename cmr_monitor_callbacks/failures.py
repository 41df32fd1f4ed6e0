"""What goes wrong: errors of the model as text, and the monitor's own failures, got over."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from cmr_monitor_callbacks.errors import CMRMonitorError, CriticalAlert, MonitorFailure

logger = logging.getLogger(__name__)
_SAID_AT_MOST = 100


class Failures:
    """Counts the monitor's own failures, says each once, and keeps the error log.

    Args:
        keep: lines of the log.
        raises: whether a failure is raised instead of being got over.

    Attributes:
        count: of the monitor's own failures.
        log: errors and rejected values as text, the newest last.

    >>> failures = Failures(keep=10, raises=False)
    >>> with failures.guard("a sink"):
    ...     raise OSError("disk full")
    >>> failures.count, failures.log[0]
    (1, 'a sink: OSError: disk full')
    """

    def __init__(self, keep: int, *, raises: bool) -> None:
        self.count = 0
        self.log: deque[str] = deque(maxlen=keep)
        self._raises = raises
        self._said: set[str] = set()

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """The monitor's own failure must not end training: count it, say it once, go on."""
        try:
            yield
        except (MonitorFailure, CriticalAlert):
            raise
        except Exception as error:
            self.note(where, error)

    def note(self, where: str, error: Exception) -> None:
        """Count a failure of the monitor itself.

        Raises:
            MonitorFailure: failures are to be raised.
        """
        self.count += 1
        text = f"{where}: {type(error).__name__}: {error}"
        self.log.append(text)
        if self._raises:
            raise MonitorFailure(text) from error
        if text not in self._said and len(self._said) < _SAID_AT_MOST:
            self._said.add(text)
            expected = isinstance(error, CMRMonitorError)  # that ranks fail is no fault in the code
            logger.error(
                "the monitor failed in %s; training goes on",
                text,
                exc_info=None if expected else error,
            )

    def log_error(self, step: int, layer: Hashable | None, exc: BaseException) -> None:
        """Keep an error of the model as text; the exception is not kept."""
        text = f"layer {layer}: {type(exc).__name__}: {_message(exc)}"
        self.log.append(f"step {step}: {text}"[:500])


def _message(exc: BaseException) -> str:
    """An exception's text, whatever its ``__str__`` does."""
    try:
        return str(exc)
    except Exception:
        return "(no text)"
