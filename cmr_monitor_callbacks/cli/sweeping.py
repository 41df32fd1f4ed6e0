"""``cmr-monitor sweep``: all runs under a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.cli.runs import Json, find_run, told
from cmr_monitor_callbacks.cli.sparklines import left_out
from cmr_monitor_callbacks.cli.terminal import output, say_json
from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.history.files import stores_under
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.numbers import shown

_STYLES = {
    "critical": "red",
    "unusable": "red",
    "warning": "yellow",
    "healthy": "green",
    "unknown": "bright_black",
    "no history": "bright_black",
}
_FOLDED = ("run", "overrides", "firing")
_LEAST = 20
"""Columns of the terminal that a long name needs to be readable in pieces."""
_FIRST_TO_GO = ("samples/s", "hits", "stored", "step", "overrides", "state")
_HYDRA = ".hydra"
_HEADS = ("run", "overrides", "health", "state", "step", "stored", "hits", "samples/s", "firing")


def sweep(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder of several runs, such as one of a Hydra multirun.", readable=False
        ),
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Show one line for each run under a folder; of Hydra's jobs also of those without a history.

    Exit code 0: all is well; 1: a run is critical, or its store cannot be used; 2: no answer.
    """
    with told():
        jobs = _jobs_under(folder)
        found = stores_under(folder)
        if not found and not jobs:
            find_run(folder)  # says so
        places = [path.parent for path in found]
        empty = [job for job in jobs if not any(place.is_relative_to(job) for place in places)]
        rows = [_job(folder, path.parent, path) for path in found]
        rows += [_job(folder, job, None) for job in empty]
        rows.sort(key=lambda row: _natural(row["run"]))
        if as_json:
            say_json(rows)
        else:
            _show(rows)
    bad = any(row["health"] in ("critical", "unusable") for row in rows)
    raise typer.Exit(1 if bad else 0)


def _jobs_under(folder: Path) -> list[Path]:
    """Folders that Hydra made for a job."""
    found = []
    for at, folders, _ in os.walk(folder):
        if _HYDRA in folders:
            found.append(Path(at))
            folders.remove(_HYDRA)
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that has job 2 before job 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _job(folder: Path, where: Path, path: Path | None) -> dict[str, Any]:
    name = str(where.relative_to(folder)) if where != folder else where.resolve().name
    row: dict[str, Any] = {
        "run": name,
        "overrides": _overrides(folder, where),
        "health": "no history",
        **dict.fromkeys(("score", "state", "step", "worst", "error")),
        **{"firing": [], "errors": 0},
        **dict.fromkeys(("throughput", "storage_efficiency", "cache_hit_rate")),
    }
    if path is None:
        return row
    try:
        with RunHistory(path) as history:
            report = report_of(history)
    except (CMRMonitorError, OSError) as error:
        return row | {"health": "unusable", "error": str(error)}
    return row | _of_report(report)


def _of_report(report: dict[str, Any]) -> dict[str, Any]:
    worst = min(
        (v for v in report["health"]["components"].items() if v[1]["score"] is not None),
        key=lambda item: item[1]["score"],
        default=None,
    )
    metrics = report["metrics"]
    return {
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
    """What Hydra changed for a job; nothing where that cannot be read."""
    for parent in (where, *where.parents):
        file = parent / _HYDRA / "overrides.yaml"
        try:
            if file.is_file():
                found = yaml.safe_load(file.read_text(encoding="utf-8"))
                return [str(item) for item in found] if isinstance(found, list) else []
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            return []
        if parent == folder:
            break
    return []


def _show(rows: list[dict[str, Any]]) -> None:
    given = [set(row["overrides"]) for row in rows if row["overrides"]]
    common = set.intersection(*given) if len(given) > 1 else set()  # tells no job from another
    console = output()
    cells = [_cells(row, common) for row in rows]
    shown_columns = _fitting(cells, console.width)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for at in shown_columns:
        heading = _HEADS[at]
        right = heading in ("step", "stored", "hits", "samples/s")
        table.add_column(
            heading,
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=heading not in _FOLDED,
        )
    for line in cells:
        table.add_row(*(line[at] for at in shown_columns))
    console.print(table)
    for hint in left_out([head for at, head in enumerate(_HEADS) if at not in shown_columns]):
        console.print(hint)
    for row in rows:
        if row["error"] is not None:
            console.print(Text(f"{row['run']}: {row['error']}", style="red"), soft_wrap=True)


def _cells(row: dict[str, Any], common: set[str]) -> list[Text]:
    score = "" if row["score"] is None else f" {row['score']:.0f}"
    return [
        Text(row["run"]),
        Text(" ".join(one for one in row["overrides"] if one not in common)),
        Text(f"{row['health']}{score}", style=_STYLES[row["health"]]),
        Text(row["state"] or ""),
        Text("–" if row["step"] is None else f"{row['step']:,}"),
        Text(shown(row["storage_efficiency"], "1")),
        Text(shown(row["cache_hit_rate"], "1")),
        Text(shown(row["throughput"], "samples")),
        Text(", ".join(row["firing"])),
    ]


def _fitting(cells: list[list[Text]], width: int) -> list[int]:
    """Places of the columns that there is room for; a name may be folded, a number may not."""
    columns = list(range(len(_HEADS)))

    def needed(at: int) -> int:
        longest = max(len(_HEADS[at]), *(len(row[at]) for row in cells))
        return min(longest, _LEAST if _HEADS[at] in _FOLDED else longest) + 2

    for head in _FIRST_TO_GO:
        if sum(map(needed, columns)) + 2 <= width:
            break
        columns.remove(_HEADS.index(head))
    return columns
