"""Starts ranks as processes of their own, waits for them with a limit, and says what they said."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing as mp
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 60.0
"""Seconds that a job may take."""
_CONTEXT = mp.get_context("forkserver")
# only what the children import anyway and that starts no thread
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "pytorch_lightning", "pytest"])


@dataclass(frozen=True)
class Rank:
    """What a rank's function is given."""

    rank: int
    world: int
    folder: Path

    @contextmanager
    def together(self, seconds: float = 30.0) -> Iterator[None]:
        """The default process group, over gloo, made by a file."""
        init = f"file://{self.folder}/rendezvous"
        limit = timedelta(seconds=seconds)
        dist.init_process_group(
            "gloo", init_method=init, rank=self.rank, world_size=self.world, timeout=limit
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def say(self, word: str) -> None:
        """Tell the test (and the other ranks) that this rank is at some point."""
        (self.folder / f"{word}.{self.rank}").touch()

    def wait_for(self, word: str, rank: int, seconds: float = 30.0) -> None:
        """Wait until a rank has said a word."""
        wait_for(self.folder / f"{word}.{rank}", seconds)


@dataclass
class Outcome:
    """What became of a rank.

    Attributes:
        code: exit status; negative: the signal that ended it.
        result: what its function gave back; None if it did not end well.
        output: all that it printed, and its log.
        logs: messages of the package's loggers, from WARNING on.
    """

    code: int
    result: Any
    output: str
    logs: list[str] = field(default_factory=list)


def wait_for(path: Path, seconds: float = 30.0) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens to now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Job:
    """Ranks that run a function.

    Args:
        function: of the module's top level; is given its `Rank` and the arguments.
        world: number of ranks.
        folder: where the ranks meet; made.
        arguments: the same for each.
    """

    def __init__(
        self, function: Callable[..., Any], world: int, folder: Path, *arguments: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.processes = [
            _CONTEXT.Process(
                target=_child, args=(function, Rank(rank, world, folder), arguments), daemon=False
            )
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def signal(self, rank: int, number: int) -> None:
        """Send a rank a signal, if it lives."""
        pid = self.processes[rank].pid
        if pid is not None and self.processes[rank].is_alive():
            os.kill(pid, number)

    def join(self, limit: float = LIMIT, ranks: Sequence[int] | None = None) -> None:
        """Wait for these ranks (None: all); those that do not end in time are killed, and fail."""
        end = time.monotonic() + limit
        chosen = range(len(self.processes)) if ranks is None else ranks
        for rank in chosen:
            self.processes[rank].join(max(0.0, end - time.monotonic()))
        late = [rank for rank in chosen if self.processes[rank].is_alive()]
        if late:
            for rank in late:  # where they hang
                self.signal(rank, signal.SIGUSR1)
            time.sleep(0.5)
            self.kill()
            said = "\n".join(f"-- rank {r}:\n{self.output(r)}" for r in range(len(self.processes)))
            raise AssertionError(f"ranks {late} did not end within {limit:g} s\n{said}")

    def kill(self) -> None:
        """End what is left of it."""
        for rank, process in enumerate(self.processes):
            self.signal(rank, signal.SIGKILL)
            process.join(5)

    def output(self, rank: int) -> str:
        """All that a rank has printed so far."""
        path = self.folder / f"output{rank}.txt"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def outcomes(self) -> list[Outcome]:
        """What became of each rank, once all have ended."""
        found = []
        for rank, process in enumerate(self.processes):
            path = self.folder / f"result{rank}.pickle"
            result, logs = pickle.loads(path.read_bytes()) if path.exists() else (None, [])
            assert process.exitcode is not None
            found.append(Outcome(process.exitcode, result, self.output(rank), logs))
        return found


def start(
    function: Callable[..., Any], world: int, folder: Path, *arguments: Any, limit: float = LIMIT
) -> list[Outcome]:
    """Run a function on every rank and wait for all; whatever becomes of them."""
    job = Job(function, world, folder, *arguments)
    try:
        job.join(limit)
    finally:
        job.kill()
    return job.outcomes()


def results(
    function: Callable[..., Any], world: int, folder: Path, *arguments: Any, limit: float = LIMIT
) -> list[Any]:
    """What a function gives back on each rank; all of them must end well."""
    outcomes = start(function, world, folder, *arguments, limit=limit)
    bad = [f"-- rank {r}: exit {o.code}\n{o.output}" for r, o in enumerate(outcomes) if o.code]
    assert not bad, "\n".join(bad)
    return [outcome.result for outcome in outcomes]


class _Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]}"
        self.messages.append(text)


def _child(function: Callable[..., Any], rank: Rank, arguments: tuple[Any, ...]) -> None:
    out = os.open(rank.folder / f"output{rank.rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    torch.set_num_threads(1)
    keep = _Keep()
    logging.getLogger("cmr_monitor_callbacks").addHandler(keep)
    try:
        result = function(rank, *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
    path = rank.folder / f"result{rank.rank}.pickle"
    path.write_bytes(pickle.dumps((result, keep.messages)))


def threads() -> set[str]:
    """Names of this process's threads, those of Python and those of C++."""
    names = {t.name for t in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        names.add((task / "comm").read_text().strip())
    return names
