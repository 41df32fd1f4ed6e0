"""What each setting of a channel does: it is there where it is set, and not where it is not."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks.alerts import Delivery, Surroundings
from cmr_monitor_callbacks.config.channels import parse_channels
from tests.contract.fields import REFUSED, Loop, shows
from tests.integration.test_webhook import says, serving
from tests.unit.alerts.test_channels import notice


def told(steps: tuple[int, ...] = (1,), **channels: Any) -> Loop:
    """A run whose alerts are told to these channels alone."""
    rules = {"mild": REFUSED, "grave": REFUSED | {"thresholds": {"critical": 0.2}}}
    settings = {"rules": rules, "inhibit": [], "alert_channels": list(channels)}
    loop = Loop(alerts={**settings, "channels": channels})
    loop.steps(*steps)
    assert loop.monitor.alerts.delivery.flush()
    return loop


@shows("alerts.channels.*.type")
def test_type(tmp_path: Path) -> None:
    """Two files, told apart by names of one's own."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    told(one={"type": "jsonl", "path": str(paths[0])}, two={"type": "jsonl", "path": str(paths[1])})
    assert all(path.exists() for path in paths)
    with pytest.raises(ValueError, match="no channel is of type 'one'"):
        parse_channels({"one": {}})


@shows("alerts.channels.*.min_severity")
@pytest.mark.parametrize(("least", "heard"), [(None, ["grave", "mild"]), ("critical", ["grave"])])
def test_min_severity(tmp_path: Path, least: Any, heard: list[str]) -> None:
    path = tmp_path / "alerts.jsonl"
    told(jsonl={"path": str(path)} | ({} if least is None else {"min_severity": least}))
    assert sorted(json.loads(line)["rule"] for line in path.read_text().splitlines()) == heard


@shows("alerts.channels.console.color")
@pytest.mark.parametrize(("color", "code"), [(True, True), (False, False), (None, False)])
def test_color(capsys: pytest.CaptureFixture[str], color: Any, code: bool) -> None:
    told(console={"color": color})
    said = capsys.readouterr().err  # no terminal
    assert "WARNING mild" in said and ("\x1b[33m" in said) is code


@shows("alerts.channels.jsonl.path")
def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told(jsonl={})
    told(jsonl={"path": "in/other.jsonl"})
    found = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert found == [Path("alerts.jsonl"), Path("in/other.jsonl")]


@shows("alerts.channels.tensorboard.rows")
@pytest.mark.parametrize(("rows", "kept"), [(20, 4), (3, 3)])
def test_rows(rows: int, kept: int) -> None:
    texts: list[str] = []
    rules = {"mild": REFUSED}
    given = {"alert_channels": ["tensorboard"], "channels": {"tensorboard": {"rows": rows}}}
    loop = Loop(alerts={"rules": rules, **given})
    around = Surroundings(add_text=lambda tag, text, step: texts.append(text))
    vars(loop.monitor.alerts.delivery.around).update(vars(around))
    loop.steps(1, 8, 1, 8)
    assert loop.monitor.alerts.delivery.flush()
    assert len(texts[-1].splitlines()) == 2 + kept  # below the table's head


# Channels that may be slow, or away: a real server on loopback.


@shows("alerts.channels.webhook.url")
def test_url() -> None:
    with serving(says(200)) as one, serving(says(200)) as other:
        told(webhook={"url": one.url})
        assert (len(one.bodies), len(other.bodies)) == (2, 0)


@shows("alerts.channels.webhook.format")
@pytest.mark.parametrize("form", ["json", "slack"])
def test_format(form: str) -> None:
    with serving(says(200)) as server:
        told(webhook={"url": server.url, "format": form})
        assert len(server.bodies) == 2
        assert all(("attachments" in body) is (form == "slack") for body in server.bodies)
        assert all(("alerts" in body) is (form == "json") for body in server.bodies)


@shows("alerts.channels.webhook.headers")
@pytest.mark.parametrize("headers", [{}, {"X-Team": "memory"}])
def test_headers(headers: dict[str, str]) -> None:
    came: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        came.append(handler.headers["X-Team"])
        says(200)(handler, number)

    with serving(answer) as server:
        told(webhook={"url": server.url, "headers": headers})
    assert came == [headers.get("X-Team")] * 2


def delivered(server: Any, **settings: Any) -> dict[str, int]:
    """What became of one notice."""
    quick = {"url": server.url, "backoff": 0.01, **settings}
    delivery = Delivery({"webhook": parse_channels({"webhook": quick})["webhook"]})
    delivery.submit(notice())
    assert delivery.flush(30.0)
    return delivery.counts["webhook"]


@shows("alerts.channels.webhook.timeout")
def test_timeout() -> None:
    """A server that answers only when it is let go."""
    gate = threading.Event()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        gate.wait(30.0)
        says(200)(handler, number)

    with serving(answer) as server:
        assert delivered(server, timeout=0.1, retries=0)["lost"] == 1
        gate.set()
        assert delivered(server, timeout=30.0, retries=0)["sent"] == 1


@shows("alerts.channels.remote.retries")
@pytest.mark.parametrize("retries", [0, 3])
def test_retries(retries: int) -> None:
    with serving(says(503)) as server:
        assert delivered(server, retries=retries) == {"sent": 0, "lost": 1, "retried": retries}
        assert len(server.bodies) == 1 + retries


class Pauses(threading.Event):
    """Waits for nothing, and remembers for how long it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout)
        return False


@shows("alerts.channels.remote.backoff")
@pytest.mark.parametrize("backoff", [1.0, 10.0])
def test_backoff(backoff: float) -> None:
    """Twice as long each time, up to a minute, give or take a fifth."""
    with serving(says(503)) as server:
        given = {"url": server.url, "backoff": backoff, "retries": 4}
        delivery = Delivery({"webhook": parse_channels({"webhook": given})["webhook"]})
        delivery._lines[0]._hurry = pauses = Pauses()
        delivery.submit(notice())
        assert delivery.flush(30.0)
    asked = [seconds for seconds in pauses.asked if seconds is not None]
    wanted = [min(60.0, backoff * 2**i) for i in range(4)]
    assert asked == [pytest.approx(seconds, rel=0.2) for seconds in wanted]


@shows("alerts.channels.remote.queue")
@pytest.mark.parametrize(("queue", "lost"), [(256, 0), (2, 3)])
def test_queue(queue: int, lost: int) -> None:
    """Six notices, of which the first is under way when the others come."""
    gate, begun = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        begun.set()
        gate.wait(30.0)
        says(200)(handler, number)

    with serving(answer) as server:
        given = {"url": server.url, "queue": queue, "timeout": 60.0}
        delivery = Delivery({"webhook": parse_channels({"webhook": given})["webhook"]})
        delivery.submit(notice())
        assert begun.wait(30.0)
        for _ in range(5):
            delivery.submit(notice())
        assert delivery.dropped == lost
        gate.set()
        assert delivery.flush(30.0)


@shows("alerts.channels.apprise.urls")
def test_urls() -> None:
    with serving(says(200)) as server:
        address = server.url.partition("?")[0].replace("http://", "json://")
        told(apprise={"urls": [address]})
        assert len(server.bodies) == 2
    assert "apprise" not in parse_channels({"apprise": {"urls": []}})
    with pytest.raises(ValueError, match=r"apprise needs channels\.apprise\.urls"):
        told(apprise={"urls": []})


@pytest.mark.parametrize(
    ("kind", "field", "none"), [("webhook", "url", None), ("apprise", "urls", [])]
)
def test_without_an_address_there_is_no_such_channel(kind: str, field: str, none: Any) -> None:
    """As the presets list them, so that an override of their fields needs no ``+``."""
    assert kind not in parse_channels({kind: {field: none}})
    with pytest.raises(ValueError, match=f"{kind} needs channels.{kind}.{field}"):
        told(**{kind: {field: none}})
    with pytest.raises(ValueError, match="did you mean 'retries'"):
        parse_channels({kind: {field: none, "retrys": 3}})
    with pytest.raises(ValueError, match=f"{kind}.{field} is required"):
        parse_channels({kind: {}})  # forgotten, not left out
    with pytest.raises(ValueError, match=f"oncall.{field} is required"):
        parse_channels({"oncall": {"type": kind, field: none}})


@shows("alerts.channels.callback.function")
def test_function() -> None:
    heard: list[Any] = []
    told(mine={"type": "callback", "function": heard.append})
    assert sorted(one.alerts[0].rule for one in heard) == ["grave", "mild"]
