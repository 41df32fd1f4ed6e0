"""Mail, chat and phones, by way of Apprise."""

from __future__ import annotations

import importlib.util
from typing import Any

from cmr_monitor_callbacks.alerts.channels.base import Retry, Surroundings, plain
from cmr_monitor_callbacks.alerts.notice import Notice
from cmr_monitor_callbacks.config.channels import AppriseConfig
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import Severity


class AppriseChannel:
    """Hands each notice to Apprise.

    Args:
        config: addresses.
        around: name of the run.

    Raises:
        ConfigError: Apprise is not installed, or does not understand an address.
    """

    def __init__(self, config: AppriseConfig, around: Surroundings) -> None:
        if importlib.util.find_spec("apprise") is None:
            raise ConfigError(
                "the channel apprise needs Apprise: pip install 'cmr-monitor-callbacks[notify]'"
            )
        import apprise

        self._around = around
        self._types: Any = apprise.NotifyType
        self._all = apprise.Apprise()
        for i, url in enumerate(config.urls):
            if not self._all.add(url.get_secret_value()):
                raise ConfigError(
                    f"alerts.channels.apprise.urls.{i} is no address that Apprise understands (it "
                    "is not shown: a secret)"
                )

    def send(self, notice: Notice) -> None:
        """Hand it over.

        Raises:
            Retry: some address could not be reached.
        """
        kind = self._types.SUCCESS if notice.resolved else self._types.FAILURE
        if not notice.resolved and notice.severity is Severity.WARNING:
            kind = self._types.WARNING
        run = f" ({self._around.run})" if self._around.run else ""
        title = plain(f"{notice.title} at step {notice.step}{run}")
        body = "\n".join(plain(sentence) for sentence in notice.sentences)
        if not self._all.notify(title=title, body=body, notify_type=kind):
            raise Retry("Apprise could not deliver to every address")

    def close(self) -> None:
        """Nothing is open."""
