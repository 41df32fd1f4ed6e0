"""``cmr-monitor explain``: one number or rule of a run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.cli.runs import Json, NamedRun, opened
from cmr_monitor_callbacks.cli.terminal import output, say_json
from cmr_monitor_callbacks.reports.explaining import Explanation
from cmr_monitor_callbacks.reports.explaining import explain as explain_name


def _completed(begun: str) -> list[str]:
    """Names for the shell to choose from."""
    return [name for name in BY_NAME if name.startswith(begun)]


def explain(
    run: NamedRun,
    name: Annotated[
        str,
        typer.Argument(
            autocompletion=_completed,
            help="A number (storage_efficiency), one of a layer (storage_efficiency/layer_04), its "
            "tag in TensorBoard, or a rule.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Explain a number or a rule: where it comes from, its value, why no data, why it is silent."""
    with opened(run) as history:
        found = explain_name(history, name)
        if as_json:
            say_json(asdict(found))
        else:
            _show(found)


def _show(found: Explanation) -> None:
    console = output()
    console.print(Text(f"{found.kind} {found.name}", style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for heading, fact in found.facts.items():
        table.add_row(Text(heading, style="bright_black"), Text(fact))
    for label, value in found.series.items():
        table.add_row(Text(label, style="cyan"), Text(value))
    console.print(table)
    if found.verdict:
        console.print(Text(found.verdict))
