"""``cmr-monitor report`` and ``cmr-monitor export``: files about a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cmr_monitor_callbacks.cli.runs import Range, Run, Session, opened
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.markdown import to_markdown
from cmr_monitor_callbacks.reports.page import to_html
from cmr_monitor_callbacks.reports.tables import export as write_tables

_FORMS = ("md", "json", "html")


def report(
    run: Run = None,
    time_range: Range = None,
    session: Session = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file: .md, .json or .html; default: the terminal."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="md, json or html; default: by the file's name, else md."),
    ] = None,
) -> None:
    """Write a report on a run."""
    with opened(run, session) as history:
        chosen = form or ("md" if output is None else output.suffix.lstrip(".") or "md")
        if chosen not in _FORMS:
            raise ConfigError(f"format must be one of them, got {chosen!r}; {_hint(chosen)}")
        text = _text(history, chosen, time_range)
        if output is None:
            print(text)
            return
        output.write_text(text, encoding="utf-8")
    Console().print(f"Wrote {escape(str(output))}", soft_wrap=True, highlight=False)


def _hint(form: str) -> str:
    return nearest(form, _FORMS)


def _text(history: RunHistory, form: str, time_range: str | None) -> str:
    if form == "html":
        return to_html(history, time_range)
    found = report_of(history, time_range)
    if form == "json":
        return json.dumps(found, indent=2, allow_nan=False)
    return to_markdown(found)


def export(
    run: Run = None,
    folder: Annotated[Path, typer.Option("--to", help="Folder of the files.")] = Path("export"),
    form: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "csv",
    time_range: Range = None,
    session: Session = None,
) -> None:
    """Write a run's numbers, health, alerts, errors and resources as CSV or Parquet."""
    with opened(run, session) as history:
        for path in write_tables(history, folder, time_range, form):
            Console().print(escape(str(path)), soft_wrap=True, highlight=False)
