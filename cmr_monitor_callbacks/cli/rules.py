"""``cmr-monitor test-rules``: tests of alert rules, for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.rule_tests import Outcome, run_file

UNREADABLE = 2


def run_rule_tests(
    files: Annotated[list[Path], typer.Argument(help="Files of tests, in promtool's form.")],
) -> None:
    """Test alert rules. Exit code 0: all is as expected; 1: something is not; 2: not readable."""
    out, err = Console(), Console(stderr=True)
    code = 0
    for path in files:
        try:
            outcome = run_file(path)
        except ConfigError as error:
            err.print(escape(str(error)), style="red", soft_wrap=True)
            code = UNREADABLE
            continue
        _show(out, path, outcome)
        if outcome.failures:
            code = max(code, 1)
    raise typer.Exit(code)


def _show(out: Console, path: Path, outcome: Outcome) -> None:
    failed = len(outcome.failures)
    word = "[red]FAILED[/red]" if failed else "[green]SUCCESS[/green]"
    met = outcome.expectations - failed
    title = f"{escape(str(path))}: {word} ({met} of {outcome.expectations} as expected)"
    out.print(title, soft_wrap=True, highlight=False)
    for failure in outcome.failures:
        out.print(
            f"  {escape(failure.test)}: {escape(failure.alertname)} at {escape(failure.when)}",
            soft_wrap=True,
            highlight=False,
        )
        for heading, lines in (("expected", failure.expected), ("got", failure.got)):
            for line in lines or ("nothing",):
                out.print(f"    {heading}: {escape(line)}", soft_wrap=True, highlight=False)
