"""What torch's allocator says of all its memory; the private interface that it takes lies here."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from cmr_monitor_callbacks.resources.allocator import used_devices


class TooLarge(Exception):
    """A file would have become larger than it may."""


def allocator_summary(cuda: Any = torch.cuda) -> str:
    """``torch.cuda.memory_summary()`` of each device in use; '' where CUDA is not."""
    return "\n\n".join(cuda.memory_summary(device) for device in used_devices(cuda))


def write_snapshot(path: Path, most: int, cuda: Any = torch.cuda) -> str:
    """Write a memory snapshot for <https://pytorch.org/memory_viz>.

    It holds the segments and blocks of now. Where they were allocated it says only if
    ``torch.cuda.memory._record_memory_history()`` was called before. Nothing is written where torch
    has no snapshots, which is no part of its public interface (2.13).

    Args:
        path: of the file.
        most: bytes that it may have.
        cuda: ``torch.cuda``.

    Returns:
        '' or why there is none.
    """
    take = getattr(getattr(cuda, "memory", None), "_snapshot", None)
    if not cuda.is_initialized():
        return "CUDA is not in use"
    if take is None:
        return "this torch takes none"
    try:
        with path.open("wb") as file:
            pickle.dump(take(), _Bounded(file, most))
    except TooLarge:
        path.unlink()
        return f"it is larger than {most / 2**20:g} MiB"
    return ""


class _Bounded:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: io.BufferedWriter, most: int) -> None:
        self._file = file
        self._left = most

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge
        return self._file.write(data)
