"""What the operating system says of this process, of the machine, and of the container."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import psutil

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_NO_LIMIT: Final = 2**60
"""Version 1 of cgroups says "none" by a very great number."""


class ProcessUse(NamedTuple):
    """What a process has used.

    Attributes:
        pid: its number.
        cpu: processor seconds since it began, its own alone.
        rss: resident bytes.
    """

    pid: int
    cpu: float
    rss: int


class Machine(Protocol):
    """Where numbers of the machine come from."""

    def children(self) -> list[int]:
        """Numbers of the processes that this one has started, and of those that they have."""
        ...

    def use_of(self, pids: Iterable[int]) -> list[ProcessUse]:
        """What these processes have used; those that are gone are left out."""
        ...

    def memory(self) -> tuple[float, float]:
        """Bytes of the machine's memory, and how many are available."""
        ...


class PsutilMachine:
    """psutil's numbers.

    >>> PsutilMachine().use_of([os.getpid()])[0].rss > 2**20
    True
    """

    def __init__(self) -> None:
        self._own = os.getpid()
        self._processes: dict[int, Any] = {}

    def children(self) -> list[int]:
        """See `Machine.children`."""
        try:
            found = psutil.Process(self._own).children(recursive=True)
        except psutil.Error:
            return []
        known = self._processes
        # an object knows when its process began: a number that was given anew is told apart
        self._processes = {p.pid: known[p.pid] if known.get(p.pid) == p else p for p in found}
        return list(self._processes)

    def use_of(self, pids: Iterable[int]) -> list[ProcessUse]:
        """See `Machine.use_of`."""
        out = []
        for pid in pids:
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:  # it ended, or is somebody else's
                continue
            out.append(ProcessUse(pid, float(times.user + times.system), int(memory.rss)))
        return out

    def memory(self) -> tuple[float, float]:
        """See `Machine.memory`."""
        found = psutil.virtual_memory()
        return float(found.total), float(found.available)


def container_memory(
    groups: Path = _CGROUPS, own: Path = _PROC / "self" / "cgroup"
) -> tuple[float, float] | None:
    """The memory that this process' container uses, and its limit, in bytes.

    What the kernel can take back at once (the page cache of files) is no use. Of nested limits the
    one that is nearest counts.

    Args:
        groups: where control groups are mounted.
        own: file that says which is this process'.

    Returns:
        None where there is no limit.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            found += _limits(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _limits(groups / "memory", path, *names)
    return max(found, key=lambda pair: pair[0] / pair[1], default=None)


def _limits(root: Path, path: str, limit: str, usage: str, cache: str) -> list[tuple[float, float]]:
    """Use and limit of a group and of those around it, as far as they are seen from here."""
    found = []
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            break
        try:
            most = (group / limit).read_text(encoding="ascii").strip()
            if not most.isdigit() or not 0 < int(most) < _NO_LIMIT:
                continue
            used = float((group / usage).read_text(encoding="ascii"))
            rows = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        except OSError:  # the root has no limit; a container sees its own group as the root
            continue
        stat = dict(row.split() for row in rows)
        found.append((max(0.0, used - float(stat.get(cache, 0))), float(most)))
    return found
