"""The command ``cmr-monitor``: a file for each group of its own commands."""

from __future__ import annotations

import typer

from cmr_monitor_callbacks.cli.acting import ack, prune
from cmr_monitor_callbacks.cli.check import run_check
from cmr_monitor_callbacks.cli.comparing import compare
from cmr_monitor_callbacks.cli.diagnosing import diagnose
from cmr_monitor_callbacks.cli.explaining import explain
from cmr_monitor_callbacks.cli.looking import status, watch
from cmr_monitor_callbacks.cli.profiles import profile
from cmr_monitor_callbacks.cli.rules import run_rule_tests
from cmr_monitor_callbacks.cli.sweeping import sweep
from cmr_monitor_callbacks.cli.terminal import never_fail_to_encode
from cmr_monitor_callbacks.cli.writing import export, report

app = typer.Typer(
    name="cmr-monitor",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
_LOOKING = (status, watch, diagnose, report, export, compare, sweep, explain, profile)
for _command in (*_LOOKING, ack, prune):
    app.command(_command.__name__)(_command)
app.command("check")(run_check)
app.command("test-rules")(run_rule_tests)


@app.callback()
def _several_commands() -> None:
    """Look at runs of memory-augmented transformers, while they train and afterwards.

    RUN is a run's log folder, a folder above it or a history file. Exit codes: 0 all is well, 1 it
    is not, 2 there is no answer: no such run, an unusable store, a wrong argument. Manual:
    docs/cli.md.
    """


def main() -> None:
    """Run the command."""
    never_fail_to_encode()
    app()
