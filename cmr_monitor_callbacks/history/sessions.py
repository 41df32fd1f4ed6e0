"""Sessions: the processes that have written a store, and those that write it now."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What a session of a run is known by.

    Attributes:
        rank: of this process.
        world_size: processes of the run.
        host: name of the machine.
        config: settings as plain data, secrets masked.
        versions: of the libraries, by name.
        git_commit: of the folder that the run was started in; None where it is none of git's.
    """

    rank: int = 0
    world_size: int = 1
    host: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None


def begin_session(connection: sqlite3.Connection, info: RunInfo, now: float) -> int:
    """Write down that this process begins; gives back the session's number."""
    cursor = connection.execute(
        "INSERT INTO sessions (started, host, pid, rank, world_size, git_commit, versions, "
        "config) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            now,
            info.host,
            os.getpid(),
            info.rank,
            info.world_size,
            info.git_commit,
            json.dumps(dict(info.versions)),
            json.dumps(dict(info.config)),
        ),
    )
    return int(cursor.lastrowid or 0)


def other_writers(connection: sqlite3.Connection, host: str) -> list[str]:
    """Other processes of this machine that have begun a session and not ended it."""
    found = []
    rows = connection.execute("SELECT host, pid FROM sessions WHERE ended IS NULL")
    for other, pid in rows:
        if other == host and pid != os.getpid() and is_alive(pid):
            found.append(f"process {pid}")
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
