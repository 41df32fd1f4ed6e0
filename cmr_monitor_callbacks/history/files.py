"""The store as files of a folder: which file it is, and another name for one of no use."""

from __future__ import annotations

import os
from pathlib import Path


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
