"""``cmr-monitor status`` and ``cmr-monitor watch``: a run in the terminal."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from cmr_monitor_callbacks.cli.runs import (
    Json,
    Range,
    Run,
    Session,
    check_range,
    find_run,
    opened,
    told,
)
from cmr_monitor_callbacks.cli.terminal import output, say, say_json
from cmr_monitor_callbacks.cli.views import status_view, watch_view
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.reports import report_of

_LAST_LOOKS = 3
"""Looks after which a run is over or its store gone: a fit may be followed by a test at once, and
another process may replace a file."""


def status(
    run: Run = None, time_range: Range = None, session: Session = None, as_json: Json = False
) -> None:
    """Show how a run stands: health, layers, alerts, errors, and where the time goes.

    Exit code 0: not critical; 1: critical; 2: no answer.
    """
    with told():
        check_range(time_range)
    with opened(run, session) as history:
        report = report_of(history, time_range)
        if as_json:
            say_json(report)
        else:
            assert history.path is not None
            say(str(history.path.parent))
            console = output()
            console.print(status_view(history, report, console.width))
    raise typer.Exit(1 if report["system_health"] == "critical" else 0)


def watch(
    run: Run = None,
    time_range: Range = "30m",
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
) -> None:
    """Watch a running job: health, alerts, and the newest windows of each layer as lines of blocks.

    It ends with the run, which it then leaves on the screen, and with Ctrl-C. Where the output is
    no terminal it shows the run once.
    """
    console = output()
    with told():
        check_range(time_range)
        path = find_run(run)
        if once or not console.is_terminal:
            console.print(_look(path, time_range, console)[0])
            return
        asked = _Asked()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, asked)
        _follow(path, time_range, interval, console, asked)
        console.print(_look(path, time_range, console)[0])


class _Asked:
    """A signal ends the command in order: with its cursor back, and with the shell's exit code.

    It is kept as well as raised, since Python drops what is raised within a finalizer.
    """

    def __init__(self) -> None:
        self.code: int | None = None

    def __call__(self, number: int, frame: object) -> None:
        self.code = 128 + number
        self.check()

    def check(self) -> None:
        """End here if it was asked for.

        Raises:
            SystemExit: with 128 and the signal's number.
        """
        if self.code is not None:
            raise SystemExit(self.code)


def _look(path: Path, time_range: Range, console: Console) -> tuple[RenderableType, bool]:
    """What is to be seen now, and whether the run goes on."""
    with RunHistory(path) as history:
        view = watch_view(history, time_range, console.width)
        sessions = history.sessions()
        return view, not sessions or sessions[-1]["state"] in ("running", "unknown")


def _follow(
    path: Path, time_range: Range, interval: float, console: Console, asked: _Asked
) -> None:
    """Look again and again until the run is over.

    Raises:
        HistoryError: the store is gone, or cannot be read any more.
        SystemExit: the user or the scheduler ended it.
    """
    view, _ = _look(path, time_range, console)
    left = _LAST_LOOKS
    live = Live(view, console=console, auto_refresh=False, screen=True)
    try:  # as a context manager it would not stop what an interrupt ends while it starts
        live.start(refresh=True)
        while True:
            try:
                view, goes_on = _look(path, time_range, console)
                error = None
            except HistoryError as found:  # locked for a while, or gone
                view, goes_on, error = Text(str(found), style="red"), path.exists(), found
            live.update(view, refresh=True)
            asked.check()
            left = _LAST_LOOKS if goes_on else left - 1
            if left <= 0:
                break
            time.sleep(interval)
    finally:
        live.stop()
    if error is not None:
        raise error
