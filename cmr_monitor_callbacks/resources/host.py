"""Processor, memory and disk, as one sample."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cmr_monitor_callbacks.resources.machine import Machine, PsutilMachine, container_memory

MIB: Final = 2.0**20
_LOOK_AGAIN: Final = 10.0
"""Seconds between two looks for new children: the look goes through all processes there are."""


class HostReader:
    """Reads the processor, the memory and the disks that a process uses.

    Args:
        disks: paths whose disks are watched; a path need not be there yet.
        machine: where numbers come from; by default psutil.
        container: the use and the limit of the container's memory, see `container_memory`.

    >>> reader = HostReader([Path(".")])
    >>> reader.read(0.0)["process_rss_mb"] > 1.0
    True
    """

    def __init__(
        self,
        disks: Sequence[Path],
        machine: Machine | None = None,
        container: Callable[[], tuple[float, float] | None] = container_memory,
    ) -> None:
        self._disks = [Path(path).absolute() for path in disks]
        self._machine: Machine = machine or PsutilMachine()
        self._container = container
        self._own: list[int] = []
        self._looked = float("-inf")
        self._cpu: dict[int, float] = {}
        self._at = 0.0

    def forget(self) -> None:
        """The time since the last sample is not to be counted."""
        self._cpu = {}

    def read(self, now: float) -> dict[str, float]:
        """One sample; what is not known is left out.

        Args:
            now: in seconds; processor time is per second since the sample before.
        """
        return self._disk() | self._processes(now) | self._memory()

    def _processes(self, now: float) -> dict[str, float]:
        machine = self._machine
        if not self._own or not 0 <= now - self._looked < _LOOK_AGAIN:
            self._own = [os.getpid(), *machine.children()]
            self._looked = now
        uses = machine.use_of(self._own)
        out = {"process_rss_mb": sum(use.rss for use in uses) / MIB}
        # of a child that is new here nobody knows how much of its time is of this stretch
        spent = sum(max(0.0, u.cpu - self._cpu[u.pid]) for u in uses if u.pid in self._cpu)
        if self._cpu and now > self._at:
            out["cpu_percent"] = 100.0 * spent / (now - self._at)
        self._cpu, self._at = {use.pid: use.cpu for use in uses}, now
        return out

    def _memory(self) -> dict[str, float]:
        total, available = self._machine.memory()
        shares = [1.0 - available / total]
        container = self._container()
        if container is not None:
            shares.append(container[0] / container[1])
        return {"host_memory_percent": 100.0 * max(shares)}

    def _disk(self) -> dict[str, float]:
        free = [_free(path) for path in self._disks]
        known = [one for one in free if one is not None]
        return {"disk_free_mb": min(known) / MIB} if known else {}


def _free(path: Path) -> float | None:
    """Free bytes of the disk that a path lies on, or will lie on."""
    for place in (path, *path.parents):
        try:
            return float(shutil.disk_usage(place).free)
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
