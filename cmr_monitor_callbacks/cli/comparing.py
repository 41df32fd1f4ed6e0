"""``cmr-monitor compare``: two runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.cli.runs import Json, NamedRun, opened, told
from cmr_monitor_callbacks.cli.terminal import output, say, say_json
from cmr_monitor_callbacks.errors import ConfigError, closest
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.reports.comparison import Difference
from cmr_monitor_callbacks.reports.comparison import compare as compare_runs
from cmr_monitor_callbacks.reports.numbers import shown

_STYLES = {
    "regression": "red",
    "missing": "red",
    "improvement": "green",
    "new": "cyan",
    "same": "bright_black",
}


def compare(
    base: NamedRun,
    run: NamedRun,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0.0, help="Relative change that is still the same; 0.05 is 5 %."
        ),
    ] = 0.05,
    time_tolerance: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            help="The same for seconds and rates, which vary with the machine.",
        ),
    ] = 0.2,
    tail: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Share of each run's windows that counts, the newest.",
        ),
    ] = 0.5,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Compare these numbers only; may be repeated; default: all."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show what stayed the same, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare a run with a base run, such as the last good one; for CI.

    Exit code 0: no number is worse; 1: some are; 2: no answer.
    """
    globs = metric or ["*"]
    with told():
        for glob in globs:
            if not any(matches(glob, name) for name in BY_NAME):
                raise ConfigError(f"--metric {glob!r} matches no number{closest(glob, BY_NAME)}")
    with opened(base) as before, opened(run) as after:
        found = compare_runs(
            before,
            after,
            tolerance=tolerance,
            time_tolerance=time_tolerance,
            tail=tail,
            metrics=globs,
        )
        if all(difference.verdict == "new" for difference in found):
            raise ConfigError(
                "there is nothing to compare: the base run has no windows with such numbers, or "
                "none of which one direction is better"
            )
        if as_json:
            say_json([difference.to_dict() for difference in found])
        else:
            _show(found, everything)
    raise typer.Exit(1 if any(difference.fails for difference in found) else 0)


def _show(found: list[Difference], everything: bool) -> None:
    listed = [d for d in found if everything or d.verdict != "same"]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("metric", "layer", "base", "run", "change", "verdict"):
        right = heading in ("base", "run", "change")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for d in listed:
        change = "–" if d.change != d.change else f"{d.change:+.1%}"
        per_step = "/step" if d.unit.endswith("/step") else ""
        unit = d.unit.removesuffix("/step")
        table.add_row(
            d.metric,
            Text("" if d.layer is None else str(d.layer)),
            shown(d.base, unit) + per_step,
            shown(d.run, unit) + per_step,
            change,
            Text(d.verdict, style=_STYLES[d.verdict]),
        )
    if listed:
        output().print(table)
    same = sum(d.verdict == "same" for d in found)
    worse = sum(d.fails for d in found)
    better = sum(d.verdict == "improvement" for d in found)
    new = sum(d.verdict == "new" for d in found)
    say(f"{worse} worse, {better} better, {same} the same" + (f", {new} new" if new else ""))
