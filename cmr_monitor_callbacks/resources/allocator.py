"""What torch's allocator holds on the GPU; asking never initialises CUDA and never waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

_MIB: Final = 2.0**20
_STATS: Final = (
    "allocated_bytes.all.current",
    "reserved_bytes.all.current",
    "allocated_bytes.all.peak",
)


def used_devices(cuda: Any = torch.cuda) -> list[int]:
    """CUDA devices on which this process' allocator holds memory.

    >>> torch.cuda.is_initialized() or used_devices() == []
    True
    """
    if not cuda.is_initialized():
        return []
    return [i for i in range(cuda.device_count()) if _of(cuda, i)[1] > 0]


def uuid_of(device: int, cuda: Any = torch.cuda) -> str:
    """The UUID of a CUDA device; '' before CUDA is initialised, and of old versions of torch."""
    if not cuda.is_initialized():
        return ""
    return str(getattr(cuda.get_device_properties(device), "uuid", ""))


def read_allocator(devices: Sequence[int], cuda: Any = torch.cuda) -> dict[str, float]:
    """What the allocator says of these devices together; nothing before CUDA is initialised.

    Args:
        devices: CUDA's numbers of them.
        cuda: ``torch.cuda``.
    """
    if not devices or not cuda.is_initialized():
        return {}
    rows = [_of(cuda, device) for device in devices]
    allocated, reserved, peak = (sum(row[i] for row in rows) for i in range(3))
    out = {"gpu_allocated_peak_mb": peak / _MIB, "gpu_reserved_mb": reserved / _MIB}
    if reserved > 0:
        out["gpu_fragmentation"] = 1.0 - allocated / reserved
    return out


def _of(cuda: Any, device: int) -> tuple[float, float, float]:
    """Bytes of tensors, bytes that are held, most bytes of tensors."""
    stats = cuda.memory_stats(device)
    allocated, reserved, peak = (float(stats.get(name, 0)) for name in _STATS)
    return allocated, reserved, peak
