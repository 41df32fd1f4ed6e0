"""Runs made by hand, as the command `cmr-monitor` finds them on a disk."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from cmr_monitor_callbacks import HealthStatus, HistoryConfig
from cmr_monitor_callbacks.cli import app
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.history import HistoryStore, RunInfo, schema
from cmr_monitor_callbacks.layers import LayerId
from tests.histories import START, end, snapshot

NOBODY = 65534
RULES: Mapping[str, Any] = {
    "refused": {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "condition": "<",
        "thresholds": {"warning": 0.5},
        "for": "2 windows",
    },
    "slow": {"metric": "step_time", "condition": ">", "thresholds": {"warning": 1, "error": 2}},
    "off": {
        "enabled": False,
        "metric": "error_rate",
        "condition": ">",
        "thresholds": {"warning": 0.1},
    },
    "unfed": {"metric": "retrieval_quality", "condition": "<", "thresholds": {"warning": 0.1}},
    "of_ranks": {
        "metric": "step_time",
        "select": {"rank": "*"},
        "condition": ">",
        "thresholds": {"warning": 1},
    },
}


def command(*arguments: object, **environment: str) -> Result:
    """What the command says, standard output and standard error apart."""
    return CliRunner().invoke(app, [str(a) for a in arguments], env=environment)


def begin(folder: Path, rules: Mapping[str, Any] = RULES) -> HistoryStore:
    """The store of a run that goes on in this process."""
    config = {"alerts": {"rules": dict(rules)}, "monitoring": {"components": ["*"]}}
    info = RunInfo(host=socket.gethostname(), config=config, versions={"python": "3"})
    return HistoryStore(folder / "history.sqlite", HistoryConfig(), info, now=START)


def write(
    store: HistoryStore,
    steps: Sequence[int],
    *,
    layers: Sequence[LayerId] = (4, 6),
    stored: float = 0.8,
    seconds: float = 0.5,
    status: HealthStatus = HealthStatus.HEALTHY,
    transitions: Sequence[Transition] = (),
    time: Callable[[int], float] = lambda step: START + step,
) -> None:
    """Windows that end at these steps; the transitions are of the last one."""
    for step in steps:
        values: dict[Any, float] = {"step_time": seconds, "storage_efficiency": stored}
        for layer in layers:
            values["storage_efficiency", layer] = stored
            values["states_stored", layer] = 10.0 * (step + 1) * stored
        score = 100.0 if status is HealthStatus.HEALTHY else 30.0
        own = {"status": float(status.code), "score": score}
        told = transitions if step == steps[-1] else ()
        one = snapshot(step, values, layers=layers, time=time(step), own=own)
        store.window(one, told)
        store.tidy(time(step))


def make(folder: Path, windows: int = 20, **how: Any) -> Path:
    """A run that is over; gives back its folder."""
    store = begin(folder)
    write(store, range(windows), **how)
    end(store)
    return folder


def spoil(folder: Path, kind: str) -> Path:
    """A run whose store cannot be used, in one of the ways of `BROKEN`."""
    path = folder / "history.sqlite"
    if kind in ("empty", "text", "foreign"):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        if kind == "text":
            path.write_text("no database " * 1000)
        if kind == "foreign":
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE mine (id INTEGER)")
            connection.close()
    elif kind != "missing":
        make(folder, 60)
        data = bytearray(path.read_bytes())
        if kind == "newer":
            with sqlite3.connect(path) as connection:
                connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
            connection.close()
        elif kind == "truncated":
            path.write_bytes(data[: len(data) // 3])
        else:
            data[4096:20480] = b"\xff" * (20480 - 4096)
            path.write_bytes(data)
    return path


BROKEN = {
    "missing": "there is no history at",
    "empty": "is empty: the run has ended no window yet",
    "text": "file is not a database",
    "foreign": "is a database, but not a history of this monitor",
    "newer": "update it to read the history",
    "truncated": "cannot be read",
    "corrupt": "cannot be read",
}


def forked(what: Callable[[], object]) -> int:
    """Run something in a process of its own; its exit code is what it gives back."""
    child = os.fork()
    if child == 0:
        code = 111
        try:
            code = int(bool(what()))
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_a_child(what: Callable[[], object]) -> int:
    """Run something in a process of its own, which may become somebody else; its exit code."""
    return exit_code(forked(what))
