"""An HTTP request for each notice."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from cmr_monitor_callbacks.alerts.channels.base import Retry, Surroundings, plain
from cmr_monitor_callbacks.alerts.channels.local import as_json, iso
from cmr_monitor_callbacks.alerts.notice import Notice
from cmr_monitor_callbacks.config.channels import WebhookConfig
from cmr_monitor_callbacks.health import Severity

_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which a notice is tried again."""
_COLORS: Final = {Severity.WARNING: "#e0a000", Severity.ERROR: "#d00000"}
_LONGEST: Final = 3000
"""Signs of a Slack message; Slack refuses long ones."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as an empty GET somewhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class WebhookChannel:
    """Posts each notice as JSON.

    Args:
        config: where to, and how.
        around: name of the run.
    """

    def __init__(self, config: WebhookConfig, around: Surroundings) -> None:
        self._config = config
        self._around = around
        self._opener = urllib.request.build_opener(_NoRedirect)

    def send(self, notice: Notice) -> None:
        """Post the notice.

        Raises:
            Retry: the server is away, busy or failed.
            RuntimeError: it refuses the notice. No message names the address.
        """
        config = self._config
        assert config.url is not None, "one without an address is no channel"
        body = payload(notice, self._around.run) if config.format == "json" else slack(notice)
        headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        url, user = _apart(config.url.get_secret_value())
        request = urllib.request.Request(
            url,
            data=json.dumps(body, allow_nan=False).encode(),
            headers={
                "Content-Type": "application/json",
                "User-Agent": "cmr-monitor",
                **user,
                **headers,
            },
            method="POST",
        )
        try:
            with self._opener.open(request, timeout=config.timeout) as answer:
                answer.read(1)  # what it says does not matter
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _AGAIN:
                raise Retry(f"the server answered {error.code}", _wait(error)) from None
            raise RuntimeError(f"the server answered {error.code}") from None
        except urllib.error.URLError as error:
            raise Retry(f"the server was not reached ({_why(error.reason)})") from None
        except (http.client.InvalidURL, ValueError) as error:
            # their own messages show what they refuse, which may be the secret
            raise RuntimeError(
                f"no request can be made of the address and the headers ({type(error).__name__})"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Retry(f"the server did not answer ({_why(error)})") from None

    def close(self) -> None:
        """Nothing is open between two notices."""


def _apart(url: str) -> tuple[str, dict[str, str]]:
    """An address, and the header for the name and password in it: urllib takes none there."""
    parts = urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    word = base64.b64encode(unquote(who).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {word}"}


def _why(reason: object) -> str:
    """A reason without anything of the address in it."""
    if isinstance(reason, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(reason, ssl.SSLError):  # what it says may name the host
        return f"{type(reason).__name__} {reason.reason or ''}".strip()
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason).__name__


def _wait(error: urllib.error.HTTPError) -> float | None:
    text = error.headers.get("Retry-After", "") if error.headers else ""
    return float(text) if text.isdecimal() else None


def payload(notice: Notice, run: str) -> dict[str, Any]:
    """What is posted: the notice and its alerts."""
    return {
        "version": 1,
        "status": "resolved" if notice.resolved else "firing",
        "severity": notice.severity.value,
        "title": plain(notice.title),
        "text": plain(notice.text),
        "run": run,
        "host": socket.gethostname(),
        "step": notice.step,
        "time": iso(notice.time),
        "group": dict(notice.group),
        "alerts": [as_json(alert) for alert in notice.alerts],
    }


def slack(notice: Notice) -> dict[str, Any]:
    """What Slack's incoming webhooks take."""
    color = "#2e9e48" if notice.resolved else _COLORS.get(notice.severity, "#8b0000")
    title = _escaped(plain(notice.title))
    text = "\n".join(_escaped(plain(sentence)) for sentence in notice.sentences)
    books = dict.fromkeys(alert.runbook for alert in notice.alerts if alert.runbook)
    text += "".join(f"\n{_escaped(book)}" for book in books)
    return {
        "text": f"{title} at step {notice.step}",
        "attachments": [{"color": color, "text": text[:_LONGEST]}],
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
