"""``cmr-monitor report`` and ``cmr-monitor export``: files about a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cmr_monitor_callbacks.cli.runs import Range, Run, Session, check_range, opened, told
from cmr_monitor_callbacks.cli.terminal import say
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.markdown import to_markdown
from cmr_monitor_callbacks.reports.page import to_html
from cmr_monitor_callbacks.reports.tables import export as write_tables

_FORMS = ("md", "json", "html")
_TABLES = ("csv", "parquet")


def report(
    run: Run = None,
    time_range: Range = None,
    session: Session = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A file (.md, .json or .html), written over; default: standard output.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="md|json|html",
            help="Form of the report; default: by the file's name, else md.",
        ),
    ] = None,
) -> None:
    """Write a report on a run: Markdown, JSON or one HTML page."""
    with told():
        chosen = form or ("md" if output is None else output.suffix.lstrip(".").lower() or "md")
        _check("--format", chosen, _FORMS)
        check_range(time_range)
    with opened(run, session) as history:
        text = _text(history, chosen, time_range)
        if output is None:
            print(text)
            return
        output.write_text(text, encoding="utf-8")
    say(f"Wrote {output}")


def _check(option: str, form: str, forms: tuple[str, ...]) -> None:
    if form not in forms:
        raise ConfigError(f"{option} must be one of them, got {form!r}; {nearest(form, forms)}")


def _text(history: RunHistory, form: str, time_range: str | None) -> str:
    if form == "html":
        return to_html(history, time_range)
    found = report_of(history, time_range)
    if form == "json":
        return json.dumps(found, indent=2, allow_nan=False)
    return to_markdown(found)


def export(
    run: Run = None,
    folder: Annotated[
        Path,
        typer.Option(
            "--to", help="Folder of the files, made where it is not there; they are written over."
        ),
    ] = Path("export"),
    form: Annotated[
        str,
        typer.Option(
            "--format", metavar="csv|parquet", help="Form of the files; parquet needs pyarrow."
        ),
    ] = "csv",
    time_range: Range = None,
    session: Session = None,
) -> None:
    """Write a run's numbers, health, alerts, errors and resources as CSV or Parquet files."""
    with told():
        _check("--format", form, _TABLES)
        check_range(time_range)
    with opened(run, session) as history:
        for path in write_tables(history, folder, time_range, form):
            say(str(path))
