"""``cmr-monitor ack`` and ``cmr-monitor prune``: what changes a run or its store."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from cmr_monitor_callbacks.cli.runs import Run, find_run, told
from cmr_monitor_callbacks.config import HistoryConfig, parse
from cmr_monitor_callbacks.errors import nearest
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.history.requests import ask, is_taken
from cmr_monitor_callbacks.history.retention import prune as prune_store
from cmr_monitor_callbacks.layers import matches


def ack(
    rule: Annotated[str, typer.Argument(help="Name of the rule, as a glob.")],
    run: Run = None,
    layer: Annotated[str | None, typer.Option(help="Of the alert, as a glob.")] = None,
    rank: Annotated[str | None, typer.Option(help="Of the alert, as a glob.")] = None,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait until the run has taken it.")
    ] = 30.0,
) -> None:
    """Acknowledge an alert of a running job: it is neither raised nor told of again."""
    with told():
        path = find_run(run)
        with RunHistory(path) as history:
            _check(history, rule)
        request = {"kind": "acknowledge", "rule": rule, "layer": layer, "rank": rank}
        number = ask(path, request, time.time())
        taken = is_taken(path, number, wait)
    if taken:
        Console().print(f"Acknowledged: {rule}", highlight=False)
        return
    Console(stderr=True).print(
        f"asked for, but the run has ended no window within {wait:g} s; it takes it at the next",
        highlight=False,
    )
    raise typer.Exit(1)


def _check(history: RunHistory, rule: str) -> None:
    sessions = history.sessions()
    state = sessions[-1]["state"] if sessions else "unknown"
    if state in ("ended", "died"):
        raise HistoryError(f"the run has {state}: there is nobody to acknowledge an alert to")
    alerts = history.open_alerts()
    names = sorted({alert["rule"] for alert in alerts})
    known = [*names, *history.config.get("alerts", {}).get("rules", {})]
    if not any(matches(rule, name) for name in known):
        raise HistoryError(f"rule must be one of the run's, got {rule!r}; {nearest(rule, known)}")


def prune(
    run: Run = None,
    raw_windows: Annotated[
        int | None, typer.Option(help="Newest windows that are kept exactly.")
    ] = None,
    max_age: Annotated[
        str | None, typer.Option(help="Delete what is older, such as 30d or 12h.")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Largest size in MiB.")] = None,
) -> None:
    """Delete the oldest windows of a run's store; what is not asked for stays as it is."""
    given = {"raw_windows": raw_windows, "max_age": max_age, "max_size_mb": max_size_mb}
    limits = {name: value for name, value in given.items() if value is not None}
    with told():
        if not limits:
            raise HistoryError("say what to delete: --raw-windows, --max-age or --max-size-mb")
        unlimited = {"raw_windows": 10**15, "max_age": None, "max_size_mb": None}
        config = parse(HistoryConfig, unlimited | limits, "prune")
        path = find_run(run)
        before, after = prune_store(path, config, time.time())
    Console().print(
        f"{path.name}: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB now",
        highlight=False,
    )
