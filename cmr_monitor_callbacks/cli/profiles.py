"""``cmr-monitor profile``: what a profile says, alone or beside an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.cli.runs import told
from cmr_monitor_callbacks.profiling import SectionChange, compare_profiles, load_results
from cmr_monitor_callbacks.reports.numbers import shown

_STYLES = {"slower": "red", "missing": "yellow", "faster": "green"}
_MIB = 2**20


def profile(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run's log folder (its newest profile), or a *.profile.json; default: this one."
        ),
    ] = Path(),
    against: Annotated[
        Path | None,
        typer.Option(
            help="A profile, or a run with one, that it is compared with; default: it is shown."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="With --against: a section is slower from this ratio on.")
    ] = 1.2,
    min_calls: Annotated[
        int, typer.Option(min=1, help="With --against: fewer calls than this say nothing.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show a profile. With --against, exit code 1 if a section became slower; 2: not readable."""
    with told():
        results = load_results(run)
        changes = (
            None
            if against is None
            else compare_profiles(against, results, threshold=threshold, min_calls=min_calls)
        )
    if changes is None:
        print(json.dumps(results, allow_nan=False)) if as_json else _show(results)
        return
    if as_json:
        print(json.dumps([change.to_dict() for change in changes], allow_nan=False))
    else:
        _show_changes(changes)
    raise typer.Exit(1 if any(change.verdict == "slower" for change in changes) else 0)


def _table(headings: Iterable[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    return table


def _show(results: Mapping[str, Any]) -> None:
    console, about = Console(), results["about"]
    wall = about["seconds"]
    sections = _table(("section", "calls", "each", "total", "own", "share", "peak MiB"))
    for name, row in results["sections"].items():
        sections.add_row(
            Text(name),
            str(row["calls"]),
            shown(row["median_seconds"], "s"),
            shown(row["seconds"], "s"),
            shown(row["self_seconds"], "s"),
            shown(row["share"], "1"),
            _mib(row["peak_bytes"]),
        )
    operators = _table(("operator", "calls", "own", "share", "on the device"))
    for row in results["operators"][:10]:
        operators.add_row(
            Text(row["name"]),
            str(row["calls"]),
            shown(row["self_seconds"], "s"),
            shown(row["self_seconds"] / wall if wall else None, "1"),
            shown(row["device_self_seconds"], "s"),
        )
    first, last = about["first_step"], about["last_step"]
    console.print(
        f"Steps {first} to {last} ({about['reason']}), {shown(wall, 's')} on rank {about['rank']}",
        highlight=False,
    )
    console.print(sections, operators)
    for device, row in results["memory"].items():
        console.print(f"{device}: peak {row['peak_bytes'] / _MIB:,.1f} MiB", highlight=False)
    console.print(Text(results["bottleneck"]["sentence"]), soft_wrap=True)
    if about["trace"]:
        console.print(Text(f"Trace: {about['trace']}"), soft_wrap=True)


def _mib(peaks: Mapping[str, int] | None) -> str:
    return "–" if not peaks else f"{max(peaks.values()) / _MIB:,.1f}"


def _show_changes(changes: list[SectionChange]) -> None:
    table = _table(("section", "base", "new", "ratio", "verdict"))
    for change in changes:
        table.add_row(
            Text(change.section),
            shown(change.base, "s"),
            shown(change.new, "s"),
            "–" if change.ratio is None else f"{change.ratio:.2f}",
            Text(change.verdict, style=_STYLES.get(change.verdict, "")),
        )
    console = Console()
    console.print(table)
    slower = sum(change.verdict == "slower" for change in changes)
    console.print(f"{slower} slower of {len(changes)} sections", highlight=False)
