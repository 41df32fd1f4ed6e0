"""What the operating system says of this process and of the machine: psutil, else ``/proc``.

psutil is a dependency; where it is missing all the same (a broken or partial install) Linux's own
files say the same numbers, and the monitor goes on.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

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
    """psutil's numbers; Linux, macOS and Windows."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._own = os.getpid()
        self._processes: dict[int, Any] = {}

    def children(self) -> list[int]:
        """See `Machine.children`."""
        try:
            found = self._psutil.Process(self._own).children(recursive=True)
        except self._psutil.Error:
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
                process = self._processes.get(pid) or self._psutil.Process(pid)
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
            except self._psutil.Error:  # it ended, or is somebody else's
                continue
            out.append(ProcessUse(pid, float(times.user + times.system), int(memory.rss)))
        return out

    def memory(self) -> tuple[float, float]:
        """See `Machine.memory`."""
        found = self._psutil.virtual_memory()
        return float(found.total), float(found.available)


class ProcMachine:
    """The same from Linux's ``/proc``."""

    def __init__(self) -> None:
        self._own = os.getpid()
        self._tick = os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")

    def children(self) -> list[int]:
        """See `Machine.children`."""
        parents: dict[int, list[int]] = {}
        for entry in _PROC.iterdir():
            if entry.name.isdigit():
                fields = self._stat(int(entry.name))
                if fields:
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found: list[int] = []
        ahead = [self._own]
        while ahead:
            below = parents.get(ahead.pop(), [])
            found += below
            ahead += below
        return found

    def use_of(self, pids: Iterable[int]) -> list[ProcessUse]:
        """See `Machine.use_of`."""
        out = []
        for pid in pids:
            fields = self._stat(pid)
            if fields:
                cpu = (int(fields[11]) + int(fields[12])) / self._tick
                out.append(ProcessUse(pid, cpu, int(fields[21]) * self._page))
        return out

    def _stat(self, pid: int) -> list[str]:
        """Fields of ``stat`` from the state on (the third); none where it is gone."""
        try:
            text = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return []
        return text.rpartition(")")[2].split()  # the name before it may hold anything

    def memory(self) -> tuple[float, float]:
        """See `Machine.memory`."""
        found = {}
        for line in (_PROC / "meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            found[name] = 1024.0 * float(rest.split()[0])
        return found["MemTotal"], found["MemAvailable"]


def this_machine() -> Machine | None:
    """Psutil's numbers, else those of ``/proc``; None where there is neither."""
    try:
        return PsutilMachine(importlib.import_module("psutil"))
    except ImportError:
        return ProcMachine() if (_PROC / "self" / "stat").is_file() else None


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
