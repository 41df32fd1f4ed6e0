"""The monitor's own process group: the only place that calls a collective.

One asynchronous all-gather of equally long float64 vectors is all there is. It is launched at a
step that all ranks agree on, at most one is under way, and it is waited for with a limit. A group
of its own keeps the monitor's traffic out of training's, and off the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cmr_monitor_callbacks.errors import CMRMonitorError

Vector = NDArray[np.float64]
_PREFIX = "cmr_monitor"


class ExchangeError(CMRMonitorError):
    """The ranks' numbers could not be put together."""


class Pending:
    """An all-gather under way.

    Args:
        work: its handle.
        matrix: shape ``(ranks, length)``, float64; filled when the work is done.
        timeout: longest wait in seconds.
    """

    def __init__(self, work: Any, matrix: torch.Tensor, timeout: float) -> None:
        self._work = work
        self._matrix = matrix
        self._timeout = timeout

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not; never waits."""
        return bool(self._work.is_completed())

    def take(self) -> NDArray[np.float64]:
        """Every rank's vector, shape ``(ranks, length)``; waits for them, but not forever.

        Raises:
            ExchangeError: a rank did not take part in time, or is gone.
        """
        try:
            self._work.wait(timedelta(seconds=self._timeout))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ExchangeError(f"the ranks' numbers did not arrive: {reason}") from error
        out: NDArray[np.float64] = self._matrix.numpy()
        return out


class RankGroup:
    """All ranks of a job, over gloo.

    Args:
        group: the process group.
        timeout: longest wait for the others, in seconds.
    """

    def __init__(self, group: Any, timeout: float) -> None:
        self._group = group
        self._timeout = timeout
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.collectives = 0
        """All-gathers launched so far."""

    @classmethod
    def create(cls, timeout: float) -> RankGroup | None:
        """Make the group, on every rank of the default process group at once.

        Making a group waits for all ranks. So each says first, in the store that they share, that
        it is here; rank 0 waits for that, with a limit, and says whether the group is made.

        Returns:
            None where there is one process only.

        Raises:
            ExchangeError: a rank has no monitor, or did not come in time.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        _agree_to_meet(timeout)
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return cls(group, timeout)

    def launch(self, vector: Vector) -> Pending:
        """Start to gather the ranks' vectors; each must be of the same length."""
        matrix = torch.empty(self.size, len(vector), dtype=torch.float64)  # its owner keeps it
        mine = torch.from_numpy(vector)
        self.collectives += 1
        work = dist.all_gather(list(matrix.unbind(0)), mine, group=self._group, async_op=True)
        return Pending(work, matrix, self._timeout)

    def gather_bytes(self, mine: bytes) -> list[bytes]:
        """Every rank's bytes, whatever their length, in two gathers; waits for them.

        Raises:
            ExchangeError: a rank did not take part in time, or is gone.
        """
        lengths = self.launch(np.array([float(len(mine))])).take()[:, 0].astype(int)
        padded = mine.ljust(-(-int(lengths.max()) // 8) * 8, b"\0")
        rows = self.launch(np.frombuffer(padded, np.float64).copy()).take()
        return [row.tobytes()[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]

    def close(self) -> None:
        """Let the group go; no rank waits for another."""
        dist.destroy_process_group(self._group)


_meetings = 0


def _agree_to_meet(timeout: float) -> None:
    """Return on all ranks, or raise on all."""
    global _meetings  # every process makes its groups in the same order
    _meetings += 1
    store = dist.distributed_c10d.PrefixStore(
        f"{_PREFIX}/{_meetings}", dist.distributed_c10d._get_default_store()
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
