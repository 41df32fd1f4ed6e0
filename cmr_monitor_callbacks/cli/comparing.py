"""``cmr-monitor compare`` and ``cmr-monitor sweep``: several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.cli.runs import UNREADABLE, find_run, opened, stores_under, told
from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.comparison import Difference
from cmr_monitor_callbacks.reports.comparison import compare as compare_runs
from cmr_monitor_callbacks.reports.numbers import shown

_VERDICTS = {
    "regression": "red",
    "missing": "red",
    "improvement": "green",
    "same": "bright_black",
    "critical": "red",
    "warning": "yellow",
    "healthy": "green",
    "unknown": "bright_black",
}
Share = Annotated[float, typer.Option(min=0.0)]


def compare(
    base: Annotated[Path, typer.Argument(help="The run that is compared with.")],
    run: Annotated[Path, typer.Argument(help="The run that is judged.")],
    tolerance: Share = 0.05,
    time_tolerance: Share = 0.2,
    tail: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the windows that counts, the newest.")
    ] = 0.5,
    metric: Annotated[
        list[str] | None, typer.Option(help="Globs of the metrics that are compared.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show what stayed the same.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Compare two runs. Exit code 0: not worse; 1: worse in some number; 2: not readable."""
    with opened(base) as before, opened(run) as after, told():
        found = compare_runs(
            before,
            after,
            tolerance=tolerance,
            time_tolerance=time_tolerance,
            tail=tail,
            metrics=metric or ["*"],
        )
        if not found:
            raise HistoryError("there is nothing to compare: the base run has no such numbers")
    if as_json:
        print(json.dumps([difference.to_dict() for difference in found], allow_nan=False))
    else:
        _show(found, everything)
    raise typer.Exit(1 if any(difference.fails for difference in found) else 0)


def _show(found: list[Difference], everything: bool) -> None:
    told = [d for d in found if everything or d.verdict != "same"]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("metric", "layer", "base", "run", "change", "verdict"):
        right = heading in ("base", "run", "change")
        table.add_column(heading, justify="right" if right else "left")
    for d in told:
        change = "–" if d.change != d.change else f"{d.change:+.1%}"
        unit = d.unit.removesuffix("/step")
        table.add_row(
            d.metric,
            Text("" if d.layer is None else str(d.layer)),
            shown(d.base, unit),
            shown(d.run, unit),
            change,
            Text(d.verdict, style=_VERDICTS[d.verdict]),
        )
    console = Console()
    if told:
        console.print(table)
    same = sum(d.verdict == "same" for d in found)
    worse = sum(d.fails for d in found)
    better = sum(d.verdict == "improvement" for d in found)
    console.print(f"{worse} worse, {better} better, {same} the same", highlight=False)


def sweep(
    folder: Annotated[
        Path, typer.Argument(help="A folder of several runs, such as a Hydra multirun.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show one line of health for each run under a folder. Exit code 1 where one is critical."""
    with told():
        found = stores_under(folder)
        if not found:
            find_run(folder)  # says so
        rows = [_job(folder, path) for path in sorted(found)]
    if as_json:
        print(json.dumps(rows, allow_nan=False))
    else:
        _show_jobs(rows)
    critical = any(row["health"] == "critical" for row in rows)
    raise typer.Exit(1 if critical else 0)


def _job(folder: Path, path: Path) -> dict[str, Any]:
    where = path.parent
    name = str(where.relative_to(folder)) if where != folder else where.resolve().name
    row: dict[str, Any] = {"run": name, "overrides": _overrides(folder, where), "health": "unknown"}
    try:
        with RunHistory(path) as history:
            report = report_of(history)
    except CMRMonitorError as error:
        return row | {"error": str(error)}
    worst = min(
        (v for v in report["health"]["components"].items() if v[1]["score"] is not None),
        key=lambda item: item[1]["score"],
        default=None,
    )
    metrics = report["metrics"]
    return row | {
        "health": report["system_health"],
        "score": report["health"]["score"],
        "state": report["run"].get("state"),
        "step": report["run"].get("step"),
        "worst": None if worst is None or worst[1]["score"] >= 100 else worst[0],
        "firing": sorted({alert["rule"] for alert in report["alerts"]["firing"]}),
        "errors": sum(error["count"] for error in report["errors"]),
        **{
            name: metrics[name]["value"] if name in metrics else None
            for name in ("throughput", "storage_efficiency", "cache_hit_rate")
        },
    }


def _overrides(folder: Path, where: Path) -> list[str]:
    """What Hydra changed for a job."""
    for parent in (where, *where.parents):
        file = parent / ".hydra" / "overrides.yaml"
        if file.is_file():
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
            return [str(item) for item in found] if isinstance(found, list) else []
        if parent == folder:
            break
    return []


def _show_jobs(rows: list[dict[str, Any]]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    heads = ("run", "overrides", "health", "state", "step", "stored", "hits", "samples/s", "firing")
    for heading in heads:
        right = heading in ("step", "stored", "hits", "samples/s")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        if "error" in row:
            table.add_row(Text(row["run"]), "", Text("unreadable", style="red"), row["error"])
            continue
        score = "" if row["score"] is None else f" {row['score']:.0f}"
        table.add_row(
            Text(row["run"]),
            Text(" ".join(row["overrides"])),
            Text(f"{row['health']}{score}", style=_VERDICTS[row["health"]]),
            row["state"] or "",
            "–" if row["step"] is None else f"{row['step']:,}",
            shown(row["storage_efficiency"], "1"),
            shown(row["cache_hit_rate"], "1"),
            shown(row["throughput"], "samples"),
            Text(", ".join(row["firing"])),
        )
    Console().print(table)


__all__ = ["UNREADABLE", "compare", "sweep"]
