"""Real processes for tests: started from one server that has imported everything, with a limit."""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

Scenario = Callable[[int, int], dict[str, Any]]
"""What a rank does, from its rank and the number of ranks; gives plain data."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch.distributed",
        "cmr_monitor_callbacks.monitor",
        "tests.models",
        "tests.distributed.ranks",
    ]
)


class _Messages(logging.Handler):
    """Warnings and worse of the monitor, as text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _main(scenario: Scenario, rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    messages = _Messages()
    logging.getLogger("cmr_monitor_callbacks").addHandler(messages)
    path = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=path, rank=rank, world_size=size)
    start = time.monotonic()
    try:
        found = scenario(rank, size)
    except Exception:
        found = {"raised": traceback.format_exc()}
    found["seconds"] = time.monotonic() - start
    found["messages"] = messages.texts
    found["threads"] = [t.name for t in threading.enumerate() if t.name.startswith("cmr-monitor")]
    # renamed when whole: the parent must not read half of it
    part = Path(folder, f"{rank}.part")
    part.write_text(json.dumps(found))
    part.rename(Path(folder, f"{rank}.json"))
    dist.destroy_process_group()


def run_ranks(
    scenario: Scenario,
    size: int,
    folder: Path,
    *,
    limit: float = 60.0,
    gone: tuple[int, ...] = (),
) -> list[dict[str, Any]]:
    """What each rank found.

    Args:
        scenario: what a rank does.
        size: number of ranks.
        folder: an empty folder.
        limit: seconds in which all must end; a rank that does not fails the test.
        gone: ranks that are expected to be killed or to hang: they are ended when the others have.
    """
    processes = [
        _CONTEXT.Process(target=_main, args=(scenario, rank, size, str(folder)))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + limit
    staying = [rank for rank in range(size) if rank not in gone]
    for rank in staying:
        processes[rank].join(max(0.0, end - time.monotonic()))
    hung = [rank for rank in staying if processes[rank].is_alive()]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    if hung:
        pytest.fail(f"ranks {hung} did not end within {limit:g} s")
    return [
        json.loads(Path(folder, f"{rank}.json").read_text()) if rank in staying else {}
        for rank in range(size)
    ]
