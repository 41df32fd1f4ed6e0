"""What a command calls a run: a folder, or a store; the newest one where nothing is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.history.reading import FILE

UNREADABLE: Final = 2
"""Exit code where a run or a file cannot be read."""
_SKIPPED: Final = {".git", ".venv", "node_modules", "__pycache__", "site-packages"}
Run = Annotated[
    Path | None,
    typer.Argument(
        help="A run's log folder, a folder above it, or a history file; default: the newest run "
        "under this folder.",
        show_default=False,
    ),
]
Range = Annotated[
    str | None,
    typer.Option("--range", help="The last part of the run, such as 1h or 30m; default: all."),
]
Session = Annotated[
    int | None,
    typer.Option(help="Of a folder that several processes wrote: which; default: all as one run."),
]


def stores_under(folder: Path) -> list[Path]:
    """Every store under a folder, the one written last first."""
    found: list[tuple[float, Path]] = []
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        if FILE in files:
            path = Path(at) / FILE
            found.append((written(path), path))
    return [path for _, path in sorted(found, key=lambda item: (-item[0], item[1]))]


def written(path: Path) -> float:
    """When a store was last written, seconds since the Unix epoch."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def find_run(run: Path | None) -> Path:
    """The store that is meant.

    Raises:
        HistoryError: there is none; the message says where it was looked for.
    """
    if run is not None and run.is_file():
        return run
    folder = Path() if run is None else run
    if not folder.exists():
        raise HistoryError(f"there is no run at {str(folder)!r}")
    if (folder / FILE).is_file():
        return folder / FILE
    found = stores_under(folder)
    if not found:
        raise HistoryError(
            f"there is no {FILE} in or under {str(folder.resolve())!r}: name a run's log folder "
            "(runs without a logger, and those with history.enabled: false, keep none)"
        )
    return found[0]


@contextmanager
def opened(run: Path | None, session: int | None = None) -> Iterator[RunHistory]:
    """The history of the run that is meant; what goes wrong is one red line and exit code 2."""
    with told(), RunHistory(find_run(run), session) as history:
        yield history


@contextmanager
def told() -> Iterator[None]:
    """An error of this package is a line for people, not a traceback."""
    try:
        yield
    except (CMRMonitorError, ValueError, KeyError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        Console(stderr=True).print(escape(str(text)), style="red", soft_wrap=True, highlight=False)
        raise typer.Exit(UNREADABLE) from None
