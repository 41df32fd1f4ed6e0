"""What goes wrong: errors of the model, values not taken, and the monitor's own failures."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from cmr_monitor_callbacks.errors import CMRMonitorError, CriticalAlert, MonitorFailure
from cmr_monitor_callbacks.layers import LayerId, layer_id

logger = logging.getLogger(__name__)
_SAID_AT_MOST: Final = 100
_KINDS_AT_MOST: Final = 100
"""Kinds of error of one window; errors of further kinds are only counted."""
_LONGEST: Final = 500
_FRAMES: Final = 20


@dataclass(frozen=True)
class ErrorRecord:
    """Errors of one kind in one window.

    Attributes:
        origin: ``model`` (an error that the model's memory met), ``sample`` (a value that was not
            taken), or ``monitor`` (the monitor's own failure).
        component: whose error it is.
        layer: where; None: the model as a whole.
        type: class of the exception, or why a value was not taken.
        message: text of the first of them.
        traceback: where it was raised; '' where that is not known.
        step: step at which the first of them was seen; -1 where nobody said.
        count: how many.
        rank: the process.
        time: end of the window, seconds since the Unix epoch.
    """

    origin: str
    component: str
    layer: LayerId | None
    type: str
    message: str
    traceback: str = ""
    step: int = -1
    count: int = 1
    rank: int = 0
    time: float = 0.0


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
    >>> [record.type for record in failures.take_records(rank=0, step=9, time=1.0)]
    ['OSError']
    """

    def __init__(self, keep: int, *, raises: bool) -> None:
        self.count = 0
        self.log: deque[str] = deque(maxlen=keep)
        self.on_error: Callable[[BaseException], None] | None = None
        """Told each error of the model."""
        self._raises = raises
        self._said: set[str] = set()
        self._records: dict[tuple[Any, ...], ErrorRecord] = {}

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
        text = f"{where}: {type(error).__name__}: {message_of(error)}"
        self.log.append(text)
        self._record("monitor", "monitor", None, error, -1, f"{where}: {message_of(error)}")
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

    def log_error(
        self, step: int, component: str, layer: Hashable | None, exc: BaseException
    ) -> None:
        """Keep an error of the model as text; the exception is not kept."""
        message = message_of(exc)
        self.log.append(f"step {step}: layer {layer}: {type(exc).__name__}: {message}"[:_LONGEST])
        self._record("model", component, layer, exc, step, message)
        if self.on_error is not None:
            self.on_error(exc)

    def log_note(self, step: int, component: str, kind: str, text: str) -> None:
        """Keep what was found out about an error of the model, as an error of its own kind."""
        self.log.append(f"step {step}: {text}"[:_LONGEST])
        self._add(("note", component, kind), "model", component, None, kind, text, step)

    def log_sample(
        self, step: int, layer: Hashable | None, component: str, field: str, reason: str, value: str
    ) -> None:
        """Keep that a value was not taken, and why."""
        text = f"{component}.{field} is {reason}: {value}"
        self.log.append(f"step {step}: layer {layer}: {text}")
        key = ("sample", component, layer, field, reason)
        self._add(key, "sample", component, layer, reason, text, step)

    def _record(
        self,
        origin: str,
        component: str,
        layer: Hashable | None,
        exc: BaseException,
        step: int,
        message: str,
    ) -> None:
        kind = type(exc).__name__
        key = (origin, component, layer, kind, *_raised_at(exc))
        self._add(key, origin, component, layer, kind, message, step, exc)

    def _add(
        self,
        key: tuple[Any, ...],
        origin: str,
        component: str,
        layer: Hashable | None,
        kind: str,
        message: str,
        step: int,
        exc: BaseException | None = None,
    ) -> None:
        known = self._records.get(key)
        if known is not None:
            self._records[key] = replace(known, count=known.count + 1)
        elif len(self._records) < _KINDS_AT_MOST:
            at = None if layer is None else layer_id(layer)
            text = "" if exc is None else _traceback(exc)
            self._records[key] = ErrorRecord(
                origin, component, at, kind, message[:_LONGEST], text, step
            )

    def take_records(self, *, rank: int, step: int, time: float) -> list[ErrorRecord]:
        """What was noted since the last call, grouped by kind and place.

        Args:
            rank: of this process.
            step: last step of the window.
            time: its end, seconds since the Unix epoch.
        """
        if not self._records:
            return []
        records, self._records = self._records, {}
        return [
            replace(r, rank=rank, time=time, step=step if r.step < 0 else r.step)
            for r in records.values()
        ]


def message_of(exc: BaseException) -> str:
    """An exception's text, whatever its ``__str__`` does."""
    try:
        return str(exc)
    except Exception:
        return "(no text)"


def _raised_at(exc: BaseException) -> tuple[str, int]:
    """File and line that raised it; errors raised in one place are of one kind."""
    found = exc.__traceback__
    if found is None:
        return message_of(exc)[:_LONGEST], 0
    while found.tb_next is not None:
        found = found.tb_next
    return found.tb_frame.f_code.co_filename, found.tb_lineno


def _traceback(exc: BaseException) -> str:
    """Where it was raised, without the sources' values; the innermost frames of a long one."""
    frames = traceback.extract_tb(exc.__traceback__)[-_FRAMES:]
    return "".join(traceback.format_list(frames))
