"""Where every window is kept, and for how long."""

from __future__ import annotations

from pathlib import PurePath

from pydantic import Field, field_validator

from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.spans import PositiveDuration

BLOCK = 1000
"""Windows that are packed together; the least that can be kept exactly."""


class HistoryConfig(Settings):
    """The embedded store of all windows (argument ``history``).

    >>> HistoryConfig(max_age="30d").max_age
    2592000.0
    """

    enabled: bool = True
    """Whether windows are kept in a file. Without a logger there is no folder for it, and none is
    kept unless ``file`` is an absolute path."""
    file: str = "history.sqlite"
    """Path of the file; a relative one lies in the run's log folder."""
    raw_windows: int = Field(default=100_000, ge=BLOCK)
    """Newest windows of a stage that are kept exactly. Of older ones a summary remains of each 10,
    then of each 100, then of each 1,000: ten times as many windows in each step."""
    max_age: PositiveDuration | None = None
    """Windows older than this are deleted; null: none for its age."""
    max_size_mb: float | None = Field(default=1024.0, gt=0, allow_inf_nan=False)
    """Largest size of the file in MiB: the oldest exact windows go first, then their summaries;
    null: no limit."""
    ranks_up_to: int = Field(default=64, ge=0)
    """Most ranks whose own times are kept rank by rank."""

    @field_validator("file")
    @classmethod
    def _names_a_file(cls, value: str) -> str:
        if not PurePath(value).name:
            raise ValueError(f"must be the path of a file, got {value!r}")
        return value
