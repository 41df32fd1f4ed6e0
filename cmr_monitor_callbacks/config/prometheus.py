"""Settings of the exporter that Prometheus scrapes."""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field, field_validator

from cmr_monitor_callbacks.config.loading import Settings

OWN_LABELS: Final = (
    "alert",
    "component",
    "layer",
    "le",
    "metric",
    "quantile",
    "rank",
    "severity",
    "stage",
    "version",
    "world_size",
)
"""Labels that the exporter sets itself, or that Prometheus gives a meaning."""

_LABEL: Final = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")


class PrometheusConfig(Settings):
    """An HTTP server with the newest numbers, for Prometheus to scrape (extra ``prometheus``).

    >>> PrometheusConfig().address
    '127.0.0.1'
    """

    port: int = Field(default=9400, ge=0, le=65535)
    """Port that it listens at; 0: a free one."""
    address: str = "127.0.0.1"
    """Address that it listens at; ``0.0.0.0``: everybody who reaches this machine can read."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of every series, such as the name of the experiment."""

    @field_validator("address")
    @classmethod
    def _an_address(cls, address: str) -> str:
        if not address.strip() or "/" in address:
            raise ValueError(
                f"must be an IP address or the name of a host, such as 127.0.0.1, got {address!r}"
            )
        return address

    @field_validator("labels")
    @classmethod
    def _labels_of_ones_own(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            if not _LABEL.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name of a label: allowed are letters, digits and _, not a "
                    "digit first, nor __"
                )
            if name in OWN_LABELS:
                raise ValueError(
                    f"{name!r} is a label of the exporter's own; allowed is any other than "
                    f"{', '.join(OWN_LABELS)}"
                )
        return labels
