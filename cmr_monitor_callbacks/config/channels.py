"""Who is told of alerts: the settings of each channel."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from cmr_monitor_callbacks.config.loading import Settings, parse
from cmr_monitor_callbacks.config.rules import Severity
from cmr_monitor_callbacks.config.spans import Duration, PositiveDuration
from cmr_monitor_callbacks.errors import ConfigError, nearest

_NO_ADDRESS: Final = re.compile(r"[^\x21-\x7e]")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER: Final = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


class ChannelConfig(Settings):
    """What all channels have."""

    kind: ClassVar[str] = ""
    address: ClassVar[str] = ""
    """The field without which there is no such channel."""
    type: str | None = None
    """What kind of channel it is; null: the kind that its name says."""
    min_severity: Severity = "warning"
    """Least severity that is told of here."""


class ConsoleConfig(ChannelConfig):
    """The terminal, above the progress bar where there is one."""

    kind: ClassVar[str] = "console"
    color: bool | None = None
    """Whether lines are coloured; null: where the terminal can."""


class LogConfig(ChannelConfig):
    """Python's logging: logger ``cmr_monitor_callbacks.alerts``, at the alert's own level."""

    kind: ClassVar[str] = "log"


class JsonlConfig(ChannelConfig):
    """A file with one JSON object for each alert of each notice."""

    kind: ClassVar[str] = "jsonl"
    path: str = "alerts.jsonl"
    """Where; relative to the run's log directory."""


class TensorBoardConfig(ChannelConfig):
    """A table of the newest notices under TensorBoard's Text."""

    kind: ClassVar[str] = "tensorboard"
    rows: int = Field(default=20, ge=1, le=1000)
    """So many notices."""


class RemoteConfig(ChannelConfig):
    """What channels have that may be slow, or away."""

    queue: int = Field(default=256, ge=1)
    """Notices that wait at most; what is more is lost, the oldest first, and counted."""
    retries: int = Field(default=5, ge=0)
    """How often a notice that could not be delivered is tried again."""
    backoff: PositiveDuration = 1.0
    """Seconds before the first of them; each next one waits twice as long, up to a minute."""


class WebhookConfig(RemoteConfig):
    """An HTTP request (POST, JSON) for each notice."""

    kind: ClassVar[str] = "webhook"
    address: ClassVar[str] = "url"
    url: SecretStr | None = None
    """Where to; ``${oc.env:HOOK}`` keeps it out of files. Never written anywhere. Null: there is no
    such channel."""
    format: Literal["json", "slack"] = "json"
    """The project's own JSON, or what Slack and those like it take."""
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Sent with it; never written anywhere."""
    timeout: PositiveDuration = 3.0
    """Seconds that the server has for each step of its answer."""

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        text = url.get_secret_value().strip()
        try:
            parts = urlsplit(text)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname)
            fine = fine and (parts.port is None or parts.port > 0)
        except ValueError:
            fine = False
        if not fine or _NO_ADDRESS.search(text):
            raise ValueError("must be an http:// or https:// address")
        return SecretStr(text)

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        """A secret that was read from a file often ends with a line's end."""
        found = {name: value.get_secret_value().strip() for name, value in headers.items()}
        for name, text in found.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER.fullmatch(text):
                raise ValueError("must be names and values of HTTP headers, each in one line")
        return {name: SecretStr(text) for name, text in found.items()}


class AppriseConfig(RemoteConfig):
    """Whatever Apprise can reach: mail, chat, phones (extra ``notify``)."""

    kind: ClassVar[str] = "apprise"
    address: ClassVar[str] = "urls"
    urls: tuple[SecretStr, ...] = ()
    """Addresses as Apprise has them; never written anywhere. Empty: there is no such channel."""


class CallbackConfig(ChannelConfig):
    """A Python function, from code only; it is given the `Notice`, on a thread of the monitor's."""

    kind: ClassVar[str] = "callback"
    function: Callable[[Any], Any]
    """Called with each notice."""


_KINDS: Final[Mapping[str, type[ChannelConfig]]] = {
    model.kind: model
    for model in (
        ConsoleConfig,
        LogConfig,
        JsonlConfig,
        TensorBoardConfig,
        WebhookConfig,
        AppriseConfig,
        CallbackConfig,
    )
}
WITHOUT_SETTINGS: Final = ("console", "log", "jsonl", "tensorboard")
"""Channels that need none."""


def parse_channels(value: Any) -> dict[str, ChannelConfig]:
    """Channels by name; those that need no settings are always there.

    ``webhook`` and ``apprise`` may be listed with an address that is null or empty, as the presets
    do: they are not there then. One with a name of its own is somebody's, and must have one.

    Raises:
        ValueError: a channel is of no known kind, or a setting of it is wrong.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping by name, got {type(value).__name__}")
    given = {**{name: {} for name in WITHOUT_SETTINGS}, **value}
    found = {str(name): _parse_channel(str(name), settings) for name, settings in given.items()}
    for name, config in found.items():
        unsaid = config.address not in config.model_fields_set
        if _is_nowhere(config) and (unsaid or name != config.kind):
            raise ConfigError(f"{name}.{config.address} is required")
    return {name: config for name, config in found.items() if not _is_nowhere(config)}


def _is_nowhere(config: ChannelConfig) -> bool:
    return config.address != "" and not getattr(config, config.address)


def _parse_channel(name: str, settings: Any) -> ChannelConfig:
    if isinstance(settings, ChannelConfig):
        return settings
    if callable(settings) and not isinstance(settings, Mapping):
        return CallbackConfig(function=settings)
    settings = {} if settings is None else settings
    kind = settings.get("type") or name if isinstance(settings, Mapping) else name
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"{name}: no channel is of type {kind!r}; {nearest(kind, _KINDS)}")
    return parse(_KINDS[kind], settings, name)


def check_names(names: Sequence[str], channels: Mapping[str, ChannelConfig]) -> None:
    """Every name must be a channel's.

    Raises:
        ValueError: one is not; the message names the nearest.
    """
    for name in names:
        if name not in channels:
            if name in _KINDS and _KINDS[name].address:
                raise ValueError(f"{name} needs channels.{name}.{_KINDS[name].address}")
            shown = "by an address (it is not shown: a secret)" if "://" in name else repr(name)
            raise ValueError(f"no channel is named {shown}; {nearest(name, channels)}")


__all__ = [
    "AppriseConfig",
    "CallbackConfig",
    "ChannelConfig",
    "ConsoleConfig",
    "Duration",
    "JsonlConfig",
    "LogConfig",
    "RemoteConfig",
    "TensorBoardConfig",
    "WebhookConfig",
    "check_names",
    "parse_channels",
]
