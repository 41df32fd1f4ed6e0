"""One profile: ``torch.profiler`` from its start to a trace file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerAction

from cmr_monitor_callbacks.config import ProfilingConfig
from cmr_monitor_callbacks.profiling.plan import Plan
from cmr_monitor_callbacks.profiling.torch_api import activities


class ProfileSession:
    """Starts the profiler, counts steps, and stops it; all on one thread.

    Args:
        config: what is recorded.
        plan: how many steps.
        first_step: number of the step that begins.
    """

    def __init__(self, config: ProfilingConfig, plan: Plan, first_step: int) -> None:
        self.plan = plan
        self.first_step = first_step + plan.warmup
        """The first step that is kept."""
        self._steps = 0
        self._profile = torch.profiler.profile(
            activities=activities(),
            schedule=self._action,
            record_shapes=config.record_shapes or config.with_flops,
            profile_memory=config.profile_memory,
            with_stack=config.with_stack,
            with_flops=config.with_flops,
        )
        self._counts_flops = config.with_flops

    def _action(self, step: int) -> ProfilerAction:
        # not torch.profiler.schedule: that one warns where there is no warm-up
        return ProfilerAction.WARMUP if step < self.plan.warmup else ProfilerAction.RECORD

    def start(self) -> None:
        """Begin; no other profiler may be on."""
        self._profile.start()

    @property
    def recorded(self) -> int:
        """Steps that are kept until now, with the one that began last."""
        return max(0, self._steps + 1 - self.plan.warmup)

    def step(self) -> None:
        """Another step begins."""
        self._steps += 1
        self._profile.step()

    def stop(self) -> None:
        """End; waits for the device."""
        self._profile.stop()

    def export(self, path: Path) -> None:
        """Write the trace as JSON."""
        self._profile.export_chrome_trace(str(path))

    def flops(self) -> dict[str, float] | None:
        """Operations by operator; None: they were not counted."""
        if not self._counts_flops:
            return None
        return {row.key: float(row.flops) for row in self._profile.key_averages()}
