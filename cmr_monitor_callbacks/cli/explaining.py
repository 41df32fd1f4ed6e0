"""``cmr-monitor explain``: one number or rule of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.cli.runs import opened, told
from cmr_monitor_callbacks.reports.explaining import Explanation
from cmr_monitor_callbacks.reports.explaining import explain as explain_name


def explain(
    run: Annotated[Path, typer.Argument(help="A run's log folder, or a history file.")],
    name: Annotated[str, typer.Argument(help="Name of a number or of a rule.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Explain one number or rule: its source, its newest value, why no data, why it is silent."""
    with opened(run) as history, told():
        found = explain_name(history, name)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _show(found)


def _show(found: Explanation) -> None:
    console = Console()
    console.print(Text(f"{found.kind} {found.name}", style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for heading, fact in found.facts.items():
        table.add_row(Text(heading, style="bright_black"), Text(fact))
    for label, value in found.series.items():
        table.add_row(Text(label, style="cyan"), Text(value))
    console.print(table)
    if found.verdict:
        console.print(Text(found.verdict))
