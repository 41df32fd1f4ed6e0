"""The machine that a run uses: processor, memory, disk and GPU, sampled off the training thread."""

from cmr_monitor_callbacks.resources.samples import (
    RESOURCES,
    Numbers,
    Sample,
    by_rank,
    whole_of,
    window_of,
)
from cmr_monitor_callbacks.resources.watch import ResourceWatch

__all__ = ["RESOURCES", "Numbers", "ResourceWatch", "Sample", "by_rank", "whole_of", "window_of"]
