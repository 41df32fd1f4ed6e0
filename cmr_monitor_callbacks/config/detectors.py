"""Detectors of anomalies: what a rule asks of one."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.errors import nearest

DETECTORS: Final = ("telemetry",)
DETECTOR_CHANNELS: Final = ("shift", "drift", "regression")
Channel = Literal["shift", "drift", "regression"]
DIRECTED: Final = frozenset({"regression"})
"""Channels that need a direction that is bad."""


class DetectorConfig(Settings):
    """A detector of anomalies: the rule judges its score, where 1.0 is clear, not the value.

    >>> DetectorConfig(channels=["drift"]).min_windows
    30
    """

    name: Literal["telemetry"] = "telemetry"
    """Which detector; there is one."""
    channels: tuple[Channel, ...] = Field(default=DETECTOR_CHANNELS, min_length=1)
    """What it looks for; the greatest of their scores counts. ``shift``: the level changed at once,
    either way; ``drift``: it moves slowly, in the bad direction (either, where none is);
    ``regression``: it is worse than the best level that was held."""
    min_windows: int = Field(default=30, ge=10, le=100_000)
    """Windows with data that are only learned from: the score is 0 in them."""

    @field_validator("name", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in DETECTORS:
            raise ValueError(f"got {value!r}; {nearest(value, DETECTORS)}")
        return value

    @field_validator("channels", mode="before")
    @classmethod
    def _known_channels(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        for name in value:
            if name not in DETECTOR_CHANNELS:
                raise ValueError(f"got {name!r}; {nearest(name, DETECTOR_CHANNELS)}")
        return tuple(dict.fromkeys(value))
