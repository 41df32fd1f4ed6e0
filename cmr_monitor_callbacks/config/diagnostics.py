"""What the diagnostics look at, and what that may cost."""

from __future__ import annotations

from pydantic import Field

from cmr_monitor_callbacks.config.loading import Settings


class DiagnosticsConfig(Settings):
    """How `run_diagnostics` looks, and what is measured for it (``monitoring.diagnostics``).

    >>> DiagnosticsConfig().compare_memory_every
    0
    """

    entries_per_layer: int = Field(default=256, ge=32)
    """Most entries of a layer that are looked at, spread evenly over all."""
    at_end: bool = True
    """Whether they run once more when the fit ends well, and are kept in the history, where reports
    and ``cmr-monitor`` find them; of several ranks on rank 0, of what that one holds."""
    look_every: int = Field(default=0, ge=0)
    """Every so many windows all entries (of a layer of at most 4,096) are copied from their device,
    to see which are gone and whether their like is stored again. 0: only when diagnostics run."""
    compare_memory_every: int = Field(default=0, ge=0)
    """Every so many validation batches the loss is taken with and without the memory, on copies of
    the model; that costs two more passes and two copies of what the memory holds. 0: never."""
