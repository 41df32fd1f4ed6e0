"""When a profile is made, what it holds, and where it is written."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cmr_monitor_callbacks.config.loading import Settings

Steps = Annotated[int, Field(ge=1)]


class ScheduleConfig(Settings):
    """Profiles at fixed steps, counted from the first step of the fit.

    >>> ScheduleConfig(wait=100, active=3).repeat
    1
    """

    wait: int = Field(default=20, ge=0)
    """Steps before each profile in which nothing is done."""
    warmup: int = Field(default=2, ge=0)
    """Steps after them in which the profiler runs, but nothing is kept: its start costs time."""
    active: int = Field(default=5, ge=1)
    """Steps that are profiled."""
    repeat: int = Field(default=1, ge=0)
    """How often; 0: until ``max_profiles``."""


class TriggerConfig(Settings):
    """Profiles when an alert starts firing; the profile begins with the step after that.

    >>> TriggerConfig(rules={"retrieval_slow": 5}).cooldown
    500
    """

    rules: dict[str, Steps] = Field(default_factory=dict)
    """Steps that are profiled, by the name of the rule (a glob)."""
    warmup: int = Field(default=0, ge=0)
    """Steps before them in which the profiler runs, but nothing is kept."""
    cooldown: int = Field(default=500, ge=0)
    """Steps after a profile in which alerts start no other one."""


class ProfilingConfig(Settings):
    """Detailed profiles of a few steps, by ``torch.profiler`` (argument ``profiling``).

    >>> ProfilingConfig(trigger={"rules": {"retrieval_slow": 5}}).schedule.active
    5
    """

    enabled: bool | None = None
    """Whether profiles may be made; null: as ``monitoring.enable_profiling`` says."""
    schedule: ScheduleConfig | None = Field(default_factory=ScheduleConfig)
    """Profiles at fixed steps; null: none."""
    trigger: TriggerConfig = Field(default_factory=TriggerConfig)
    """Profiles when an alert fires."""
    max_profiles: int = Field(default=10, ge=1)
    """Most profiles that schedule and trigger make in a run."""
    ranks: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Ranks that are profiled; a profile takes place in the same steps on all of them."""
    layers: bool = True
    """Whether the forward of each layer is a section."""
    record_shapes: bool = False
    """Whether shapes of the operators' inputs are in the trace."""
    profile_memory: bool = True
    """Whether allocations are recorded."""
    with_stack: bool = False
    """Whether Python's stack is recorded for each operator; slow."""
    with_flops: bool = False
    """Whether operations of matrix products and convolutions are counted."""
    top_operators: int = Field(default=20, ge=1)
    """Operators in the results, the slowest first."""
    folder: str | None = None
    """Where traces and results go; null: ``plugins/profile`` in the run's log folder, where
    TensorBoard's plugin looks. Without a log folder no file is written."""
    keep: int = Field(default=10, ge=1)
    """Newest profiles of this process whose files are kept."""
    max_trace_mb: float = Field(default=512.0, gt=0, allow_inf_nan=False)
    """Largest trace in MiB, before compression: a larger one is neither read nor kept."""
