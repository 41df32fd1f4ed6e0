"""The monitor's own process groups, and the thread that uses them: all collectives are here.

A group of its own keeps the monitor's traffic out of training's, and off the GPU. A thread of its
own keeps it off the training thread, which hands over a window's numbers and picks up everybody's
some steps later. The thread does one thing after the other, so that no two operations of a group
are ever under way at once; each has a limit of time.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cmr_monitor_callbacks.errors import CMRMonitorError

Vector = NDArray[np.float64]
T = TypeVar("T")
_PREFIX = "cmr_monitor"
_GRACE = 5.0
"""Seconds that a result may come later than the operation's own limit."""


_FAILURES = (RuntimeError, ValueError, AssertionError)
"""What torch.distributed raises where others are lost or a group is gone."""


class ExchangeError(CMRMonitorError):
    """The ranks' numbers could not be put together."""


@contextmanager
def _as_exchange_error(what: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExchangeError(f"{what}: {reason}") from error


class Pending(Generic[T]):
    """Work of the group's thread, under way."""

    def __init__(self, future: Future[T], timeout: float) -> None:
        self._future = future
        self._timeout = timeout

    def done(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, well or not, within so many seconds."""
        return bool(concurrent.futures.wait([self._future], seconds).done)

    def take(self) -> T:
        """Its result; waits for it, but not forever.

        Raises:
            ExchangeError: a rank did not take part in time, or is gone.
        """
        try:
            return self._future.result(self._timeout + _GRACE)
        except concurrent.futures.TimeoutError as error:
            raise ExchangeError(f"no answer within {self._timeout:g} s") from error


class Group:
    """Some ranks of a job, over gloo; its methods wait, with a limit.

    Args:
        group: the process group; this rank is in it.
        timeout: longest wait for the others, in seconds.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self.group = group
        self._timeout = timedelta(seconds=timeout)
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.collectives = 0
        """Collectives launched so far."""

    def gather(self, vector: Vector) -> NDArray[np.float64]:
        """Every rank's vector, all of the same length; shape ``(ranks, length)``.

        Raises:
            ExchangeError: a rank did not take part in time, or is gone.
        """
        matrix = torch.empty(self.size, len(vector), dtype=torch.float64)
        self._run(lambda: self._all_gather(list(matrix.unbind(0)), torch.from_numpy(vector)))
        out: NDArray[np.float64] = matrix.numpy()
        return out

    def broadcast(self, vector: Vector) -> None:
        """Have the first rank's vector on every rank, in place.

        Raises:
            ExchangeError: a rank did not take part in time, or is gone.
        """
        self._run(lambda: self.group.broadcast([torch.from_numpy(vector)], dist.BroadcastOptions()))

    def gather_bytes(self, mine: bytes) -> list[bytes]:
        """Every rank's bytes, whatever their length, in two gathers.

        Raises:
            ExchangeError: a rank did not take part in time, or is gone.
        """
        lengths = self.gather(np.array([float(len(mine))]))[:, 0].astype(int)
        padded = mine.ljust(max(8, -(-int(lengths.max()) // 8) * 8), b"\0")
        rows = self.gather(np.frombuffer(padded, np.float64).copy())
        return [row.tobytes()[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]

    def _all_gather(self, out: list[torch.Tensor], mine: torch.Tensor) -> Any:
        return self.group.allgather([out], [mine])

    def _run(self, launch: Callable[[], Any]) -> None:
        self.collectives += 1
        with _as_exchange_error("the ranks' numbers did not arrive"):
            launch().wait(self._timeout)


class RankGroup(Group):
    """All ranks of a job, and the thread that talks to them."""

    def __init__(self, group: Any, store: Any, timeout: float) -> None:
        super().__init__(group, timeout)
        self._store = store
        self._seconds = timeout
        self._groups: list[Group] = [self]
        self.trees = 0
        """Trees made of this group, by which their parts are named."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cmr-monitor-ranks")

    @classmethod
    def create(cls, timeout: float) -> RankGroup | None:
        """Make the group, on every rank of the default process group at once.

        Making a group waits for all ranks. So each says first, in the store that they share, that
        it is here; rank 0 waits for that, with a limit, and says whether the group is made.

        Returns:
            None where there is one process only.

        Raises:
            ExchangeError: a rank has no monitor or did not come in time, or no group can be made.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        with _as_exchange_error("the ranks do not find each other"):
            store = _meet(timeout)
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            return cls(group, store, timeout)

    def part(self, ranks: Sequence[int], name: str) -> Group:
        """A group of some of the ranks; those alone make it, at the same time.

        torch.distributed's own way to do that names a group after its ranks alone, so that a second
        group of the same ranks finds the addresses of the first; or has every rank wait for the
        making of every group.

        Args:
            ranks: this one among them.
            name: known to them, and given once.

        Raises:
            ExchangeError: a rank did not come in time.
        """
        with _as_exchange_error("the ranks of a node do not find each other"):
            group = dist.ProcessGroupGloo(
                dist.distributed_c10d.PrefixStore(name, self._store),
                list(ranks).index(self.rank),
                len(ranks),
                timedelta(seconds=self._seconds),
            )
        self._groups.append(Group(group, self._seconds))
        return self._groups[-1]

    def _all_gather(self, out: list[torch.Tensor], mine: torch.Tensor) -> Any:
        return dist.all_gather(out, mine, group=self.group, async_op=True)

    def submit(self, work: Callable[[], T]) -> Pending[T]:
        """Have the group's thread do something, after what it was given before."""
        return Pending(self._thread.submit(work), self._seconds)

    @property
    def collectives_of_rank(self) -> int:
        """Collectives that this rank took part in, in all groups."""
        return sum(group.collectives for group in self._groups)

    def close(self) -> None:
        """Let the groups go; no rank waits for another, but for what is under way."""
        idle = self._thread.submit(lambda: None)
        self._thread.shutdown(wait=False)
        # torch 2.7 may never come back from a group whose operation timed out: a daemon, which the
        # interpreter does not wait for at its end
        last = threading.Thread(
            target=self._destroy, args=(idle,), name="cmr-monitor-ranks-end", daemon=True
        )
        last.start()
        last.join(self._seconds)

    def _destroy(self, idle: Future[None]) -> None:
        concurrent.futures.wait([idle])
        with suppress(*_FAILURES):  # the job's groups may be gone already
            dist.destroy_process_group(self.group)
        while self._groups:
            self._groups.pop().group = None  # sockets and threads go with the last reference


_meetings = 0
_lock = threading.Lock()


def _meet(timeout: float) -> Any:
    """A store for this meeting alone, on all ranks; or raise on all."""
    global _meetings  # every process makes its groups in the same order
    with _lock:
        _meetings += 1
        meeting = _meetings
    store = dist.distributed_c10d.PrefixStore(
        f"{_PREFIX}/{meeting}", dist.distributed_c10d._get_default_store()
    )
    rank, size = dist.get_rank(), dist.get_world_size()
    store.set(f"here/{rank}", "1")
    if rank == 0:
        missing = _missing(store, [f"here/{r}" for r in range(size)], timeout)
        store.set("verdict", "go" if not missing else f"rank {missing[0]} has no monitor")
    # rank 0 may begin later than this one, and waits for all
    if _missing(store, ["verdict"], 2 * timeout):
        raise ExchangeError(f"rank 0 did not say within {2 * timeout:g} s that all are here")
    verdict = store.get("verdict").decode()
    if verdict != "go":
        raise ExchangeError(verdict)
    return store


def _missing(store: Any, keys: Sequence[str], timeout: float) -> list[int]:
    """Which of the keys were not set in time."""
    end = time.monotonic() + timeout
    pause = 0.001
    while True:
        missing = [i for i, key in enumerate(keys) if not store.check([key])]
        if not missing or time.monotonic() > end:
            return missing
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
