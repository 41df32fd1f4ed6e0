"""What is sampled of the machine, and how often."""

from __future__ import annotations

from pydantic import Field, field_validator

from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.spans import PositiveDuration


class ResourcesConfig(Settings):
    """Processor, memory, disk and GPU, sampled on a thread of its own (argument ``resources``).

    >>> ResourcesConfig(interval="10s").interval
    10.0
    """

    enabled: bool = True
    """Whether the machine is sampled."""
    interval: PositiveDuration = 2.0
    """Seconds between two samples."""
    rest_after: PositiveDuration = 60.0
    """Nothing is sampled once no step, of any stage, was over for so many seconds."""
    gpu: bool = True
    """Whether the process' GPU is sampled (NVML), and torch's memory on it."""
    disks: tuple[str, ...] = ()
    """Paths whose disks are watched beside that of the run's log folder."""

    out_of_memory: bool = True
    """Whether the first out-of-memory error of a run is told with the memory's largest tensors, and
    what torch's allocator says is written to the run's log folder."""
    memory_snapshot_mb: float = Field(default=64.0, ge=0, allow_inf_nan=False)
    """Largest memory snapshot that is written then, in MiB; 0: none."""

    @field_validator("interval")
    @classmethod
    def _not_too_often(cls, value: float) -> float:
        if value < 0.1:
            raise ValueError(f"must be at least 0.1 s, got {value:g}")
        return value

    @field_validator("disks")
    @classmethod
    def _are_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError(f"must be paths, got {list(value)!r}")
        return value
