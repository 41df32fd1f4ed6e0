"""``cmr-monitor status`` and ``cmr-monitor watch``: a run in the terminal."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from cmr_monitor_callbacks.cli.runs import Range, Run, Session, find_run, opened, told
from cmr_monitor_callbacks.cli.views import status_view, watch_view
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.reports import report_of


def status(
    run: Run = None,
    time_range: Range = None,
    session: Session = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON report.")] = False,
) -> None:
    """Show how a run stands: health, layers, alerts. Exit code 1 where it is critical."""
    with opened(run, session) as history:
        report = report_of(history, time_range)
        if as_json:
            print(json.dumps(report, allow_nan=False))
        else:
            Console().print(status_view(history, time_range))
    raise typer.Exit(1 if report["system_health"] == "critical" else 0)


def watch(
    run: Run = None,
    time_range: Range = "30m",
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option(help="Show it once and end.")] = False,
) -> None:
    """Watch a running job: the newest windows as lines, health and alerts. Ctrl-C ends it."""
    console = Console()
    with told():
        path = find_run(run)

        def look() -> RenderableType:
            with RunHistory(path) as history:
                return watch_view(history, time_range, console.width)

        if once:
            console.print(look())
            return
        with Live(look(), console=console, auto_refresh=False, screen=True) as live:
            try:
                while True:
                    time.sleep(interval)
                    try:
                        live.update(look(), refresh=True)
                    except HistoryError as error:  # locked for a moment, or replaced
                        live.update(Text(str(error), style="red"), refresh=True)
            except KeyboardInterrupt:
                return
