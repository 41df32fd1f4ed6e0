"""``cmr-monitor ack`` and ``cmr-monitor prune``: what changes a run or its store."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import typer

from cmr_monitor_callbacks.cli.runs import NamedRun, Run, find_run, told
from cmr_monitor_callbacks.cli.terminal import complain, say
from cmr_monitor_callbacks.config import HistoryConfig, parse
from cmr_monitor_callbacks.errors import ConfigError, closest
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.history.requests import ask, is_taken
from cmr_monitor_callbacks.history.retention import Contents
from cmr_monitor_callbacks.history.retention import prune as prune_store
from cmr_monitor_callbacks.layers import matches


def ack(
    run: NamedRun,
    rule: Annotated[str, typer.Argument(help="Name of the alert's rule, as a glob.")],
    layer: Annotated[
        str | None, typer.Option(help="Only of layers that match this glob; default: any.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(help="Only of ranks that match this glob; default: any.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.0, help="How long to wait until the run has taken it."
        ),
    ] = 30.0,
) -> None:
    """Acknowledge an alert of a running job: it is neither raised nor told of again.

    Exit code 0: the run has taken it; 1: not yet; 2: no such alert is open, or the run is over.
    """
    with told():
        path = find_run(run)
        with RunHistory(path) as history:
            meant = _meant(history, rule, layer, rank)
        request = {"kind": "acknowledge", "rule": rule, "layer": layer, "rank": rank}
        number = ask(path, request, time.time())
        taken = is_taken(path, number, wait)
    if not taken:
        complain(
            f"asked for, but the run has ended no window within {wait:g} s; it takes it at the next"
        )
        raise typer.Exit(1)
    say(f"Acknowledged: {', '.join(meant)}")


def _meant(history: RunHistory, rule: str, layer: str | None, rank: str | None) -> list[str]:
    """Open alerts that are to be acknowledged.

    Raises:
        HistoryError: the run is over.
        ConfigError: there are none; the message lists the open ones.
    """
    sessions = history.sessions()
    state = sessions[-1]["state"] if sessions else "unknown"
    if state in ("ended", "died"):
        raise HistoryError(f"the run has {state}: there is nobody to acknowledge an alert to")
    alerts = [alert for alert in history.open_alerts() if alert["after"] != "pending"]
    found = [
        _label(alert)
        for alert in alerts
        if matches(rule, alert["rule"])
        and (layer is None or matches(layer, alert["layer"]))
        and (rank is None or matches(rank, alert["rank"]))
    ]
    if found:
        return found
    what = rule if layer is None else f"{rule}, layer {layer}"
    what = what if rank is None else f"{what}, rank {rank}"
    opened = "; ".join(_label(alert) for alert in alerts) or "none"
    known = {alert["rule"] for alert in alerts} | set(
        history.config.get("alerts", {}).get("rules", {})
    )
    hint = "" if any(matches(rule, name) for name in known) else closest(rule, known)
    raise ConfigError(f"no alert {what!r} is firing{hint}; firing: {opened}")


def _label(alert: dict[str, Any]) -> str:
    parts = [alert["rule"]]
    parts += [f"{name} {alert[name]}" for name in ("layer", "rank") if alert[name] is not None]
    return ", ".join(parts)


def prune(
    run: Run = None,
    raw_windows: Annotated[
        int | None,
        typer.Option(
            metavar="WINDOWS",
            help="Of each stage so many of the newest stay exact, at least 1000; of older ones "
            "a summary stays; default: all stay exact.",
        ),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Delete what is older, such as 12h or 30d; default: nothing."
        ),
    ] = None,
    max_size_mb: Annotated[
        float | None,
        typer.Option(
            metavar="MIB",
            help="Largest size in MiB: the oldest exact windows go first, then summaries; "
            "default: any size.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
) -> None:
    """Delete old windows of a run's store, also of a running job's; give one limit or more.

    Windows are packed by the thousand: one goes when all of its thousand may.
    """
    given = {"raw_windows": raw_windows, "max_age": max_age, "max_size_mb": max_size_mb}
    limits = {name: value for name, value in given.items() if value is not None}
    with told():
        if not limits:
            raise ConfigError("say what to delete: --raw-windows, --max-age or --max-size-mb")
        unlimited = {"raw_windows": 10**15, "max_age": None, "max_size_mb": None}
        try:
            config = parse(HistoryConfig, unlimited | limits, "prune")
        except ConfigError as error:
            raise ConfigError(_as_option(str(error))) from None
        path = find_run(run)
        before, after = prune_store(path, config, time.time(), dry=dry_run)
    say(_pruned(str(path), before, after, dry_run))


def _as_option(text: str) -> str:
    """A message about a setting as one about the option that gives it."""
    return re.sub(r"prune\.(\w+)", lambda found: "--" + found[1].replace("_", "-"), text)


def _pruned(name: str, before: Contents, after: Contents, dry: bool) -> str:
    gone = before.exact + before.summarised - after.exact - after.summarised
    merged = after.summarised - before.summarised
    would = "would be " if dry else ""
    size = f"{before.size / 2**20:.1f} MiB, {'would be' if dry else 'now'}"
    return (
        f"{name}: {gone:,} windows {would}deleted, {max(0, merged):,} more {would}kept as a "
        f"summary, {after.exact:,} exact; {size} {after.size / 2**20:.1f} MiB"
    )
