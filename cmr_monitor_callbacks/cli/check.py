"""``cmr-monitor check``: settings and a model, looked at before a long run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.errors import ConfigError

if TYPE_CHECKING:
    from cmr_monitor_callbacks.checking import CheckReport, Cost, Counted, Measured, ModelPart

FOUND = 1
UNREADABLE = 2


def run_check(
    settings: Annotated[
        str | None,
        typer.Argument(help="A YAML file with the callback's arguments, or a preset's name."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override", "-o", help="One setting, such as monitoring.log_every_n_steps=10."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="module:callable without arguments, or module:Class; default: no model."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="module:callable that gives a batch for real forward passes; default: none run.",
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes that the run will have; default: not known."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=2, help="Passes timed with, and as many without, the monitor.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 where there are findings.")
    ] = False,
) -> None:
    """Check settings and a model before a long run; nothing is trained, no file is written.

    Exit code 0: all can be read; 1: findings, with --strict; 2: something cannot be read.
    """
    out, err = Console(), Console(stderr=True)
    if settings is None and model is None:
        err.print("give a settings file, a preset's name or --model", style="red")
        raise typer.Exit(UNREADABLE)
    try:
        # torch and Hydra take seconds to load, which the other commands need not wait for
        from cmr_monitor_callbacks.checking import check

        with redirect_stdout(sys.stderr):  # what the model prints is no part of the report
            report = check(
                settings, override or (), model=model, batch=batch, ranks=ranks, pairs=pairs
            )
    except ConfigError as error:
        err.print(escape(str(error)), style="red", soft_wrap=True, highlight=False)
        raise typer.Exit(UNREADABLE) from None
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, allow_nan=False))
    else:
        _show(out, report)
    raise typer.Exit(FOUND if strict and report.findings else 0)


def _show(out: Console, report: CheckReport) -> None:
    _show_settings(out, report)
    if report.model is not None:
        _show_model(out, report.model)
    _show_rules(out, report)
    _rows(out, "Estimated cost", _cost(report.cost))
    if report.counted is not None:
        _show_counted(out, report.counted)
    if report.measured is not None:
        _rows(out, "Measured cost", _measured(report.measured))
    if report.findings:
        count = len(report.findings)
        what = "1 finding" if count == 1 else f"{count} findings"
        _line(out, f"[yellow]{what}[/yellow], for which --strict exits with 1")
    else:
        _line(out, "[green]No findings[/green]")


def _show_settings(out: Console, report: CheckReport) -> None:
    settings = report.settings
    _line(out, f"{escape(settings.source)}: the settings are [green]valid[/green]")
    rows = [("rules in force", str(settings.rules))]
    for channel in settings.channels:
        given = [f"from {channel.min_severity}"]
        given += [f"{key}: {value}" for key, value in channel.settings.items() if value]
        rows.append((f"channel {channel.name}", ", ".join(given)))
    rows += [("note", note) for note in settings.notes]
    _rows(out, "Settings", rows)


def _show_model(out: Console, model: ModelPart) -> None:
    rows = [
        ("model", f"{model.target}, {model.parameters:,} parameters"),
        ("class", model.type),
        ("probes", str(model.probes)),
        ("other objects watched", str(model.objects)),
        ("layers", ", ".join(map(str, model.layers)) or "none"),
    ]
    rows += [("not known", text) for text in model.unknown]
    rows += [("failed", text) for text in model.failures]
    _rows(out, "Model", rows)
    sources = sorted(model.sources.items())
    _rows(out, "Where numbers come from", [*sources, *model.missing.items()])


def _show_rules(out: Console, report: CheckReport) -> None:
    if not report.rules:
        _line(out, f"Nothing is known that keeps any of the {report.settings.rules} rules idle\n")
        return
    table = Table(title="Rules", title_justify="left", highlight=False)
    for name in ("rule", "what", "why"):
        table.add_column(name, overflow="fold")
    for note in report.rules:
        table.add_row(*map(escape, (note.rule, note.status, note.reason)))
    out.print(table)


def _show_counted(out: Console, counted: Counted) -> None:
    rows = []
    for name, value in counted.whole.items():
        unit = BY_NAME[name].unit if BY_NAME[name].unit in ("s", "MiB") else ""
        if value:
            rows.append((name, f"{value:.6g} {unit}".strip()))
    _rows(out, f"Counted in {counted.passes} forward passes", rows)


def _cost(cost: Cost) -> Iterable[tuple[str, str]]:
    more = cost.layers is None
    yield "layers", "not known without a model" if more else str(cost.layers)
    each = " of the whole, and {} for each layer" if more else ""
    yield "series", f"{cost.series}{each.format(cost.series_per_layer)}"
    if not more:
        yield "series that rules look at", str(cost.rule_series)
    scalars = f"{cost.scalars}{each.format(cost.scalars_per_layer)}"
    yield "scalars per window in TensorBoard", f"at most {scalars}"
    yield "memory of a window's tables", _size(cost.window_bytes)
    if cost.payload_bytes is not None:
        yield "sent per window and process", _size(cost.payload_bytes)
    steps = cost.window_steps
    yield "steps in a window", "as the Trainer logs" if steps is None else str(steps)


def _measured(measured: Measured) -> Iterable[tuple[str, str]]:
    yield "forward pass without the monitor", _time(measured.plain_seconds)
    yield "forward pass with it", _time(measured.watched_seconds)
    yield (
        "with / without",
        f"{measured.ratio:.3f}, quartiles {measured.ratio_low:.3f} to {measured.ratio_high:.3f} "
        f"({measured.pairs} pairs)",
    )
    yield "end of a window, rules judged", _time(measured.window_seconds)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB"


def _rows(out: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, highlight=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(escape(name), escape(text))
    out.print(table)


def _line(out: Console, text: str) -> None:
    out.print(text, soft_wrap=True, highlight=False)
