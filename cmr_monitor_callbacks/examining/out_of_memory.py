"""When memory runs out: its largest tensors are named, what the allocator says is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch

from cmr_monitor_callbacks.config import ResourcesConfig
from cmr_monitor_callbacks.errors import MonitorFailure
from cmr_monitor_callbacks.failures import Failures, message_of
from cmr_monitor_callbacks.probes.largest import HeldTensors
from cmr_monitor_callbacks.resources.snapshots import allocator_summary, write_snapshot

logger = logging.getLogger(__name__)
_NAMED: Final = 3
_LISTED: Final = 50
_LONGEST: Final = 2_000_000
"""Characters of the text file."""
_OF_THE_HOST: Final = ("DefaultCPUAllocator", "can't allocate memory", "CUDA out of memory")
Snapshot = Callable[[Path, int], str]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of a device or of the host ran out.

    >>> is_out_of_memory(torch.OutOfMemoryError()), is_out_of_memory(RuntimeError("shapes"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        text in message_of(error) for text in _OF_THE_HOST
    )


class OutOfMemory:
    """Tells of the first such error of a run; never raises, and allocates nothing on a device.

    Args:
        config: whether, and how large a snapshot may be.
        held: gives what the model's memory holds, the largest first.
        failures: given the sentence, and its own failures.
        step: gives the step that is under way.
        summary: what the allocator says.
        snapshot: writes a memory snapshot; gives '' or why there is none.
    """

    def __init__(
        self,
        config: ResourcesConfig,
        held: Callable[[], Sequence[HeldTensors]],
        failures: Failures,
        step: Callable[[], int],
        summary: Callable[[], str] = allocator_summary,
        snapshot: Snapshot = write_snapshot,
    ) -> None:
        self._config = config
        self._held = held
        self._failures = failures
        self._step = step
        self.summary = summary
        self.snapshot = snapshot
        self._folder: Path | None = None
        self._rank = 0
        self._told = False

    def place(self, folder: Path | None, rank: int) -> None:
        """A run begins.

        Args:
            folder: of the run; None: nothing is written.
            rank: of this process.
        """
        self._folder, self._rank, self._told = folder, rank, False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """An error that leaves this is told, and goes on."""
        try:
            yield
        except Exception as error:
            self.note(error)
            raise

    def note(self, error: BaseException) -> None:
        """An error of the model: told, if it is the first that says that memory ran out."""
        if self._told or not self._config.out_of_memory or not is_out_of_memory(error):
            return
        self._told = True
        try:
            self._tell(error)
        except Exception as failure:
            with suppress(MonitorFailure):  # the error that is under way is the one to be raised
                self._failures.note("telling that memory ran out", failure)

    def _tell(self, error: BaseException) -> None:
        held = self._held()
        text = _sentence(held)
        if self._folder is not None:
            text += self._write(self._folder, error, text, held)
        self._failures.log_note(self._step(), "resources", "OutOfMemory", text)
        logger.error("step %d: %s", self._step(), text)

    def _write(
        self, folder: Path, error: BaseException, text: str, held: Sequence[HeldTensors]
    ) -> str:
        """Write what is known; says where."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"out_of_memory_rank_{self._rank}.txt"
        listed = [f"  {one} on {one.device}" for one in held[:_LISTED]]
        summary = self._guarded(self.summary)
        parts = [f"step {self._step()}: {text}", message_of(error), *listed, summary]
        path.write_text("\n".join(parts)[:_LONGEST] + "\n", encoding="utf-8")
        said = f" See {path.name}"
        most = int(self._config.memory_snapshot_mb * 2**20)
        if most:
            file = folder / f"out_of_memory_rank_{self._rank}.pickle"
            why = self._guarded(lambda: self.snapshot(file, most))
            said += f" (no snapshot: {why})" if why else f" and {file.name}"
        return f"{said}."

    @staticmethod
    def _guarded(ask: Callable[[], str]) -> str:
        try:
            return ask()
        except Exception as failure:  # the allocator is in trouble: the other half is still wanted
            return f"{type(failure).__name__}: {message_of(failure)}"


def _sentence(held: Sequence[HeldTensors]) -> str:
    if not held:
        return "memory ran out; of the model's own memory no tensor is known."
    total = sum(one.nbytes for one in held) / 2**20
    names = ", ".join(str(one)[:100] for one in held[:_NAMED])
    return f"memory ran out; of the {total:.1f} MiB of the model's memory the largest: {names}."
