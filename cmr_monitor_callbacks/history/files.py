"""The store as a file: which one is meant, which one it is, another name for one of no use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cmr_monitor_callbacks.history.schema import HistoryError

FILE: Final = "history.sqlite"
_SKIPPED: Final = {".git", ".venv", "node_modules", "__pycache__", "site-packages"}


def find_store(path: Path) -> Path:
    """The store that a path names: itself, the one in that folder, or the newest one below it.

    Raises:
        HistoryError: there is none; the message says where it was looked for.
        OSError: the folder cannot be looked into.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise HistoryError(f"there is no history at {str(path)!r}") from None
    if not path.is_dir():
        return path
    if (path / FILE).is_file():
        return path / FILE
    found = stores_under(path)
    if not found:
        raise HistoryError(
            f"there is no {FILE} in or under {str(path.resolve())!r}: name a run's log folder "
            "(runs without a logger, and those with history.enabled: false, keep none)"
        )
    return found[0]


def stores_under(folder: Path) -> list[Path]:
    """Every store under a folder, the one written last first.

    Raises:
        OSError: there is none, and a folder cannot be looked into.
    """
    found: list[tuple[float, Path]] = []
    refused: list[OSError] = []
    for at, folders, files in os.walk(folder, onerror=refused.append):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        if FILE in files:
            path = Path(at) / FILE
            found.append((_written(path), path))
    if refused and not found:
        raise refused[0]
    return [path for _, path in sorted(found, key=lambda item: (-item[0], item[1]))]


def _written(path: Path) -> float:
    """When a store was last written, seconds since the Unix epoch."""
    times = [0.0]
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            times.append(file.stat().st_mtime)
        except OSError:  # gone since, or there is no log
            continue
    return max(times)


def identity(name: str) -> tuple[int, int] | None:
    """What tells a file from another that takes its place; None: there is none."""
    try:
        stat = os.stat(name)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def set_aside(path: Path) -> str:
    """Give a store, with what SQLite keeps beside it, another name; gives back that name."""
    number = 1
    while path.with_name(f"{path.name}.unusable-{number}").exists():
        number += 1
    aside = path.with_name(f"{path.name}.unusable-{number}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside.name
