"""Channels that end on this machine: the terminal, Python's logging, a file, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import sys
import textwrap
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from cmr_monitor_callbacks.alerts.channels.base import Surroundings, plain
from cmr_monitor_callbacks.alerts.notice import Alert, Notice
from cmr_monitor_callbacks.config.channels import (
    CallbackConfig,
    ConsoleConfig,
    JsonlConfig,
    LogConfig,
    TensorBoardConfig,
)
from cmr_monitor_callbacks.health import Severity

logger = logging.getLogger("cmr_monitor_callbacks.alerts")
# where nobody set up logging, Python would print a notice beside the console channel's own line
logger.addHandler(logging.NullHandler())

_LEVELS: Final = {
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}
_WIDTH: Final = 80
"""Of a sentence's lines in TensorBoard's table, in characters."""
_COLORS: Final = {Severity.WARNING: "33", Severity.ERROR: "31", Severity.CRITICAL: "1;31"}


class ConsoleChannel:
    """One line on the terminal for each notice; of several alerts one below it for each.

    Args:
        config: colours.
        around: prints above a progress bar, where there is one; else the line goes to stderr.
    """

    def __init__(self, config: ConsoleConfig, around: Surroundings) -> None:
        self._around = around
        self._color = config.color

    def send(self, notice: Notice) -> None:
        """Print the notice."""
        text = "\n".join(_lines(notice))
        color = sys.stderr.isatty() if self._color is None else self._color
        if color:
            code = "32" if notice.resolved else _COLORS[notice.severity]
            text = f"\x1b[{code}m{text}\x1b[0m"
        if self._around.emit is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._around.emit(text)

    def close(self) -> None:
        """Nothing is open."""


def _lines(notice: Notice) -> list[str]:
    if len(notice.alerts) < 2 or notice.summary:
        return [plain(str(notice))]
    head = f"[cmr-monitor] {notice.title} at step {notice.step}: {len(notice.alerts)} alerts"
    return [plain(head), *(f"    {plain(sentence)}" for sentence in notice.sentences)]


class LogChannel:
    """Python's logging, logger ``cmr_monitor_callbacks.alerts``, at the alert's own level."""

    def __init__(self, config: LogConfig, around: Surroundings) -> None:
        del config, around

    def send(self, notice: Notice) -> None:
        """Log the notice."""
        level = logging.INFO if notice.resolved else _LEVELS[notice.severity]
        logger.log(level, "%s", plain(str(notice)))

    def close(self) -> None:
        """Nothing is open."""


class JsonlChannel:
    """A file with one JSON object for each alert; it is closed after each notice."""

    def __init__(self, config: JsonlConfig, around: Surroundings) -> None:
        self._path = Path(config.path)
        self._around = around

    def send(self, notice: Notice) -> None:
        """Append the notice's alerts."""
        path = self._path
        if not path.is_absolute():
            path = (self._around.folder or Path()) / path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(as_json(alert), allow_nan=False) for alert in notice.alerts]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def close(self) -> None:
        """Nothing is open."""


class TensorBoardChannel:
    """A table of the newest notices, as one text tag: TensorBoard shows a sample of all texts."""

    def __init__(self, config: TensorBoardConfig, around: Surroundings) -> None:
        self._rows: deque[str] = deque(maxlen=config.rows)
        self._around = around

    def send(self, notice: Notice) -> None:
        """Write the table anew."""
        state = "resolved" if notice.resolved else notice.severity.value
        names = ", ".join(dict.fromkeys(alert.rule for alert in notice.alerts))
        time = datetime.fromtimestamp(notice.time, timezone.utc).strftime("%H:%M:%S")
        # a long line would take the room of the other columns, whose words then break
        what = [line for text in notice.sentences for line in textwrap.wrap(plain(text), _WIDTH)]
        cells = [_cell(text) for text in (str(notice.step), time, state, names)]
        self._rows.appendleft(f"| {' | '.join(cells)} | {'<br>'.join(map(_cell, what))} |")
        if self._around.add_text is not None:
            head = "| step | time (UTC) | state | alert | what |\n| --- | --- | --- | --- | --- |\n"
            self._around.add_text("cmr_health/alerts", head + "\n".join(self._rows), notice.step)

    def close(self) -> None:
        """Nothing is open."""


def _cell(text: str) -> str:
    """Text in a Markdown table, in which no sign means anything."""
    escaped = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]()#+!|~" else sign for sign in escaped)


class CallbackChannel:
    """A Python function, given each notice on the delivery's thread."""

    def __init__(self, config: CallbackConfig, around: Surroundings) -> None:
        del around
        self._function = config.function

    def send(self, notice: Notice) -> None:
        """Call the function."""
        self._function(notice)

    def close(self) -> None:
        """Nothing is open."""


def as_json(alert: Alert) -> dict[str, Any]:
    """An alert as JSON has it: times in ISO 8601 (UTC), None where there is no number."""
    return {
        "time": iso(alert.time),
        "step": alert.step,
        "rule": alert.rule,
        "state": "resolved" if alert.resolved else "firing",
        "severity": alert.severity.value,
        "labels": dict(alert.labels),
        "value": _number(alert.value),
        "threshold": _number(alert.threshold),
        "message": plain(alert.message),
        "runbook": alert.runbook,
    }


def iso(time: float) -> str:
    """Seconds since the Unix epoch as ISO 8601, in UTC.

    >>> iso(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    text = datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
