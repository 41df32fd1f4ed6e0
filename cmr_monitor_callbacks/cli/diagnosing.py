"""``cmr-monitor diagnose``: what the diagnostics found in a run."""

from __future__ import annotations

import typer

from cmr_monitor_callbacks.cli.runs import Json, Run, Session, opened
from cmr_monitor_callbacks.cli.terminal import output, say, say_json
from cmr_monitor_callbacks.diagnostics import diagnostics_table
from cmr_monitor_callbacks.history import HistoryError, RunHistory

_GRAVE = ("error", "critical")


def diagnose(run: Run = None, session: Session = None, as_json: Json = False) -> None:
    """Show what the diagnostics found in the model when they ran last: at the end of the fit.

    Exit code 0: nothing, or warnings alone; 1: an error, or something critical; 2: no answer.
    """
    with opened(run, session) as history:
        kept = history.diagnostics()
        if not kept:
            raise HistoryError(_why_none(history))
        found = kept[-1]
        if as_json:
            say_json(found)
        else:
            say(str(history.path and history.path.parent))
            output().print(diagnostics_table(found))
    raise typer.Exit(int(any(one["severity"] in _GRAVE for one in found["findings"])))


def _why_none(history: RunHistory) -> str:
    """What to do where none were kept."""
    goes_on = any(session["state"] == "running" for session in history.sessions()[-1:])
    text = "no diagnostics are kept of this run"
    if goes_on:
        return f"{text} yet: they run when the fit ends, or with monitor.run_diagnostics()"
    return (
        f"{text}: they run where a fit ends well (monitoring.diagnostics.at_end), and with "
        "monitor.run_diagnostics()"
    )
