"""Ways to tell people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cmr_monitor_callbacks.alerts.channels.apprise import AppriseChannel
from cmr_monitor_callbacks.alerts.channels.base import Channel, Retry, Surroundings
from cmr_monitor_callbacks.alerts.channels.local import (
    CallbackChannel,
    ConsoleChannel,
    JsonlChannel,
    LogChannel,
    TensorBoardChannel,
)
from cmr_monitor_callbacks.alerts.channels.webhook import WebhookChannel
from cmr_monitor_callbacks.config.channels import ChannelConfig

_MADE_BY: Final[Mapping[str, Callable[[Any, Surroundings], Channel]]] = {
    "console": ConsoleChannel,
    "log": LogChannel,
    "jsonl": JsonlChannel,
    "tensorboard": TensorBoardChannel,
    "webhook": WebhookChannel,
    "apprise": AppriseChannel,
    "callback": CallbackChannel,
}


def make_channel(config: ChannelConfig, around: Surroundings) -> Channel:
    """The channel that settings describe.

    Raises:
        ConfigError: it cannot be made.
    """
    return _MADE_BY[config.kind](config, around)


__all__ = [
    "AppriseChannel",
    "CallbackChannel",
    "Channel",
    "ConsoleChannel",
    "JsonlChannel",
    "LogChannel",
    "Retry",
    "Surroundings",
    "TensorBoardChannel",
    "WebhookChannel",
    "make_channel",
]
