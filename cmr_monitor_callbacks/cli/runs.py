"""What a command calls a run: a folder, or a store; the newest one where nothing is said."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from cmr_monitor_callbacks.cli.terminal import complain
from cmr_monitor_callbacks.config.spans import parse_duration
from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.history.files import find_store

TROUBLE: Final = 2
"""Exit code where there is no answer: no such run, a store that cannot be used, a wrong argument.
As with diff and grep, 1 is an answer."""
_WHERE: Final = "A run's log folder, a folder above it (its newest run), or a history file"
Run = Annotated[
    Path | None,
    typer.Argument(
        help=f"{_WHERE}; default: the newest run under this folder.",
        show_default=False,
        readable=False,  # that it is not is said as of other runs that cannot be used
    ),
]
NamedRun = Annotated[Path, typer.Argument(help=f"{_WHERE}.", readable=False)]
Range = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="DURATION",
        help="Only the last part of the run, before its newest window: such as 90s, 30m, 1h or "
        "2d; default: all.",
    ),
]
Session = Annotated[
    int | None,
    typer.Option(
        help="Only what one process wrote, by its number from 1, where a run was resumed in its "
        "folder; default: all of them as one run.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, for programs, instead of text.")]


def find_run(run: Path | None) -> Path:
    """The store that is meant.

    Raises:
        HistoryError: there is none; the message says where it was looked for.
        OSError: the folder cannot be looked into.
    """
    return find_store(Path() if run is None else run)


@contextmanager
def opened(run: Path | None, session: int | None = None) -> Iterator[RunHistory]:
    """The history of the run that is meant; what goes wrong is one line and an exit code."""
    with told(), RunHistory(find_run(run)) as history:
        if session is None:
            yield history
            return
        known = [s["session"] for s in history.sessions()]
        if session not in known:
            listing = ", ".join(map(str, known)) or "none: no process has written it yet"
            raise ValueError(f"--session must be one of {listing}, got {session}")
        assert history.path is not None
        with RunHistory(history.path, session) as one:
            yield one


def check_range(time_range: str | None) -> None:
    """Say of a range that cannot be read what is allowed.

    Raises:
        ValueError: it is no length of time.
    """
    if time_range is None:
        return
    try:
        parse_duration(time_range)
    except ValueError:
        raise ValueError(
            f"--range must be a length of time such as 90s, 30m, 1h or 2d, got {time_range!r}"
        ) from None


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong is a line for people and an exit code, not a traceback."""
    try:
        yield
    except BrokenPipeError:  # who reads has had enough, as `head` has: the framework ends quietly
        raise
    except HistoryError as error:
        complain(str(error))
        raise typer.Exit(TROUBLE) from None
    except (ValueError, KeyError) as error:  # a setting, a range, a name
        complain(str(error.args[0] if isinstance(error, KeyError) and error.args else error))
        raise typer.Exit(TROUBLE) from None
    except OSError as error:
        name = "" if error.filename is None else f"{str(error.filename)!r}: "
        complain(f"{name}{error.strerror or error}")
        raise typer.Exit(TROUBLE) from None
    except (CMRMonitorError, sqlite3.Error) as error:
        complain(str(error))
        raise typer.Exit(TROUBLE) from None
