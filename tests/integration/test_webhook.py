"""A webhook whose server hangs, refuses, fails or dies: training waits for none of it."""

from __future__ import annotations

import base64
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from cmr_monitor_callbacks import CMRMonitorCallback
from cmr_monitor_callbacks.alerts import Delivery
from cmr_monitor_callbacks.config.channels import parse_channels
from tests.models import MemoryModule, loader, trainer
from tests.unit.alerts.test_channels import SECRET, alert, notice

Answer = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """A server on loopback that answers as a function says; the number of the request is passed."""

    def __init__(self, answer: Answer) -> None:
        self.bodies: list[Any] = []
        self.came = threading.Semaphore(0)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer.bodies.append(json.loads(self.rfile.read(length)))
                number = len(outer.bodies)
                outer.came.release()
                answer(self, number)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{SECRET}?key={SECRET}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.end()


def says(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def first(number: int, then: Answer, before: Answer) -> Answer:
    """``before`` for so many requests, then ``then``."""
    return lambda handler, n: (before if n <= number else then)(handler, n)


def only_webhook(url: str, **settings: Any) -> Delivery:
    quick = {"timeout": 0.3, "backoff": 0.01, "retries": 2} | settings
    channels = parse_channels({"webhook": {"url": url, **quick}})
    return Delivery({"webhook": channels["webhook"]})


def dies(handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.wfile.write(b"HTTP/1.1 2")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def babbles(handler: BaseHTTPRequestHandler, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**40))
    handler.end_headers()
    handler.wfile.write(b"x" * 2**16)


@pytest.mark.parametrize(
    ("answer", "counts", "requests"),
    [
        (says(200), {"sent": 1, "lost": 0, "retried": 0}, 1),
        (babbles, {"sent": 1, "lost": 0, "retried": 0}, 1),
        (first(1, says(204), says(500)), {"sent": 1, "lost": 0, "retried": 1}, 2),
        (first(2, says(200), dies), {"sent": 1, "lost": 0, "retried": 2}, 3),
        (says(503), {"sent": 0, "lost": 1, "retried": 2}, 3),
        (says(404), {"sent": 0, "lost": 1, "retried": 0}, 1),
        (says(302, Location="http://127.0.0.1:1/"), {"sent": 0, "lost": 1, "retried": 0}, 1),
        (first(1, says(200), says(429, Retry_After="0")), {"sent": 1, "lost": 0, "retried": 1}, 2),
    ],
    ids=["fine", "huge answer", "500 once", "dies twice", "503", "404", "redirect", "429"],
)
def test_answers(answer: Answer, counts: dict[str, int], requests: int) -> None:
    with serving(answer) as server:
        one = only_webhook(server.url)
        one.submit(notice())
        assert one.flush(10)
        assert one.counts == {"webhook": counts}
        assert len(server.bodies) == requests
        assert all(body["title"] == "WARNING storage_refused" for body in server.bodies)
        one.close()


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    one = only_webhook(f"http://127.0.0.1:{port}/{SECRET}")
    one.submit(notice())
    assert one.flush(10)
    assert one.counts["webhook"] == {"sent": 0, "lost": 1, "retried": 2}
    failures = one.take_failures()
    assert [name for name, _ in failures] == ["channel webhook"] * 3
    assert SECRET not in str(failures)
    assert "not reached" in str(failures[0][1])
    one.close()


def test_a_secret_that_ends_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """As one that is read from a file does: it is sent, and no error shows it."""
    headers: list[str] = []

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        headers.append(handler.headers["Authorization"])
        says(200)(handler, number)

    with serving(answer) as server:
        one = only_webhook(f"{server.url}\n", headers={"Authorization": f"Bearer {SECRET}\n"})
        one.submit(notice())
        assert one.flush(10)
        assert one.take_failures() == []
        one.close()
    assert headers == [f"Bearer {SECRET}"]


def test_a_name_and_a_password_in_the_address() -> None:
    headers: list[str] = []

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        headers.append(handler.headers["Authorization"])
        says(200)(handler, number)

    with serving(answer) as server:
        one = only_webhook(server.url.replace("://", "://me:a%40b@"))
        one.submit(notice())
        assert one.flush(10)
        assert one.counts["webhook"] == {"sent": 1, "lost": 0, "retried": 0}
        one.close()
    assert headers == ["Basic " + base64.b64encode(b"me:a@b").decode()]


def page_and_file(tmp_path: Path, page: Callable[[Any], None]) -> Delivery:
    given = {"page": page, "jsonl": {"path": str(tmp_path / "alerts.jsonl")}}
    channels = parse_channels(given)
    return Delivery({name: channels[name] for name in given})


def test_a_function_that_hangs_costs_its_own_thread_only(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def page(notice: Any) -> None:
        entered.set()
        release.wait(30)

    one = page_and_file(tmp_path, page)
    try:
        one.submit(notice())
        assert entered.wait(10)
        one.submit(notice())
        assert not one.flush(2.0)
        assert one.counts["jsonl"] == {"sent": 2, "lost": 0, "retried": 0}
    finally:
        release.set()
    assert one.flush(10)
    assert one.counts["page"] == {"sent": 2, "lost": 0, "retried": 0}
    one.close()


def test_a_function_that_hangs_has_five_seconds_at_the_end_of_a_fit(tmp_path: Path) -> None:
    release = threading.Event()

    def page(notice: Any) -> None:
        release.wait(60)

    rules = {"slow": {"metric": "step_time", "thresholds": {"critical": 0.0}}}
    alerts = {"rules": rules, "alert_channels": ["page"], "channels": {"page": page}}
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 1}, alerts=alerts)
    ends: list[float] = []

    class Ends(pl.Callback):
        def on_train_epoch_end(self, *args: Any) -> None:
            ends.append(time.monotonic())

    try:
        trainer(tmp_path, [callback, Ends()], max_steps=3).fit(MemoryModule(), loader(3))
        assert time.monotonic() - ends[0] < 9, "not once more for each hook of the end"
    finally:
        release.set()
    assert callback.monitor.alerts.delivery.counts["page"]["lost"] == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_function_that_raises_is_told_of_what_follows(
    tmp_path: Path, error: type[BaseException]
) -> None:
    heard: list[Any] = []

    def page(notice: Any) -> None:
        heard.append(notice)
        if len(heard) == 1:
            raise error("no")

    one = page_and_file(tmp_path, page)
    one.submit(notice())
    one.submit(notice())
    assert one.flush(10)
    assert len(heard) == 2
    assert one.counts["page"] == {"sent": 1, "lost": 1, "retried": 0}
    [(where, failure)] = one.take_failures()
    assert where == "channel page"
    assert error.__name__ in repr(failure)
    one.close()


class Hanging:
    """Accepts and never answers."""

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/{SECRET}"

    def __exit__(self, *_: Any) -> None:
        self._socket.close()


def test_a_server_that_hangs_costs_its_own_thread_only() -> None:
    with Hanging() as url, serving(says(200)) as alive:
        channels = parse_channels(
            {
                "dead": {"type": "webhook", "url": url, "timeout": 60, "queue": 3},
                "alive": {"type": "webhook", "url": alive.url},
            }
        )
        one = Delivery({name: channels[name] for name in ("dead", "alive")})
        for _ in range(10):
            one.submit(notice())
        for _ in range(10):
            assert alive.came.acquire(timeout=10)
        one.close(0.5)
        counts = one.counts
        assert counts["alive"]["sent"] == 10
        assert counts["dead"] == {"sent": 0, "lost": 10, "retried": 0}


def test_what_is_too_much_is_lost_the_oldest_first_and_counted() -> None:
    release = threading.Event()

    def waits(handler: BaseHTTPRequestHandler, number: int) -> None:
        release.wait(10)
        says(200)(handler, number)

    with serving(waits) as server:
        one = only_webhook(server.url, queue=4, timeout=20)
        one.submit(notice(step=0))
        assert server.came.acquire(timeout=10)  # in hand, not in the queue
        for step in range(1, 11):
            one.submit(notice(step=step))
        release.set()
        assert one.flush(10)
        assert [body["step"] for body in server.bodies] == [0, 7, 8, 9, 10]
        assert one.counts["webhook"] == {"sent": 5, "lost": 6, "retried": 0}
        one.close()


def test_a_severe_channel_hears_only_what_is_severe() -> None:
    with serving(says(200)) as server:
        one = only_webhook(server.url, min_severity="critical")
        one.submit(notice())
        critical = alert().severity.__class__("critical")
        one.submit(notice(alert(severity=critical), severity=critical))
        assert one.flush(10)
        assert [body["severity"] for body in server.bodies] == ["critical"]
        assert one.counts["webhook"] == {"sent": 1, "lost": 0, "retried": 0}
        one.close()


@pytest.fixture
def training_thread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sockets that the training thread opens, and waits in which it ends up."""
    found: list[str] = []
    training = threading.get_ident()
    connect, wait = socket.socket.connect, threading.Event.wait

    def connects(self: socket.socket, address: Any) -> Any:
        if threading.get_ident() == training:
            found.append(f"connect {address}")
        return connect(self, address)

    def waits(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.get_ident() == training and not self.is_set():
            found.append(f"wait {timeout}")
        return wait(self, timeout)

    monkeypatch.setattr(socket.socket, "connect", connects)
    monkeypatch.setattr(threading.Event, "wait", waits)
    return found


def test_the_training_thread_neither_connects_nor_waits(training_thread: list[str]) -> None:
    with Hanging() as url:
        one = only_webhook(url, timeout=60, queue=2)
        training_thread.clear()  # a thread that starts is waited for, once
        one.submit(notice())
        started = [entry for entry in training_thread if entry == "wait None"]
        assert training_thread == started
        training_thread.clear()
        for _ in range(100):
            one.submit(notice())
        assert training_thread == []
        one.close(0.1)


@pytest.mark.parametrize("kind", ["json", "slack"])
def test_a_fit_tells_its_webhook(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"metric": "states_captured", "condition": ">", "thresholds": {"error": 0}}
    threads = set(threading.enumerate())
    with serving(says(200)) as server, caplog.at_level(logging.DEBUG):
        callback = CMRMonitorCallback(
            monitoring={"log_every_n_steps": 5},
            alerts={
                "rules": {"busy": rule},
                "escalation_rules": {},
                "alert_channels": ["hook", "jsonl", "tensorboard"],
                "channels": {
                    "hook": {"type": "webhook", "url": server.url, "format": kind},
                },
            },
        )
        trainer(tmp_path, [callback], max_steps=12).fit(MemoryModule(), loader(12))
    [body] = server.bodies
    if kind == "json":
        assert (body["status"], body["step"], body["run"]) == ("firing", 4, "version_0")
        assert [one["rule"] for one in body["alerts"]] == ["busy"]
    else:
        assert body["text"] == "ERROR busy at step 4"
    assert SECRET not in caplog.text
    [file] = tmp_path.rglob("alerts.jsonl")
    assert file.parent.name == "version_0"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    left = set(threading.enumerate()) - threads
    assert not [thread for thread in left if thread.name.startswith("cmr-monitor-")]


def test_a_fit_that_fails_has_told_its_webhook(tmp_path: Path) -> None:
    class Fails(MemoryModule):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.global_step == 7:
                raise RuntimeError("on purpose")
            return super().training_step(*args, **kwargs)

    rule = {"metric": "states_captured", "condition": ">", "thresholds": {"error": 0}}
    with serving(first(1, says(200), says(503))) as server:
        callback = CMRMonitorCallback(
            monitoring={"log_every_n_steps": 5},
            alerts={
                "rules": {"busy": rule},
                "escalation_rules": {},
                "alert_channels": ["webhook"],
                "channels": {"webhook": {"url": server.url, "backoff": 3600}},
            },
        )
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer(tmp_path, [callback], max_steps=12).fit(Fails(), loader(12))
        assert len(server.bodies) == 2  # at the end the next try comes at once
        counts = callback.monitor.alerts.delivery.counts["webhook"]
        assert counts == {"sent": 1, "lost": 0, "retried": 1}


def test_a_dead_webhook_is_itself_visible(tmp_path: Path) -> None:
    rule = {"metric": "states_captured", "condition": ">", "thresholds": {"error": 0}}
    failing = {"metric": "failures", "over": "run", "thresholds": {"warning": 0}}
    with serving(says(400)) as server:
        callback = CMRMonitorCallback(
            monitoring={"log_every_n_steps": 1},
            alerts={
                "rules": {"busy": rule, "failing": failing},
                "escalation_rules": {},
                "alert_channels": ["webhook"],
                "channels": {"webhook": {"url": server.url}},
            },
        )

        class Waits(pl.Callback):
            def on_train_batch_end(self, *args: Any) -> None:
                callback.monitor.alerts.delivery.flush(10)

        trainer(tmp_path, [callback, Waits()], max_steps=6).fit(MemoryModule(), loader(6))
    assert {state.rule for state in callback.health.firing} == {"busy", "failing"}
    assert "channel webhook: RuntimeError: the server answered 400" in callback.monitor.error_log
    assert SECRET not in str(list(callback.monitor.error_log))


ENDS = """
from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from torch import nn
model = nn.Linear(1, 1)
model.probe = CMRProbe(4)
rule = {{"metric": "states_captured", "condition": ">", "thresholds": {{"error": 0}}}}
monitor = CMRPerformanceMonitor(
    {{"log_every_n_steps": 1}},
    alert_config={{
        "rules": {{"busy": rule}},
        "escalation_rules": {{}},
        "alert_channels": ["webhook", "console"],
        "channels": {{"webhook": {{"url": {url!r}, "timeout": 600}}}},
    }},
    model=model,
)
model.probe.capture(attempted=1, captured=1, stored=1)
monitor.step()
print("the end")
{last}
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_a_process_ends_though_its_webhook_hangs(last: str, code: int) -> None:
    with Hanging() as url:
        done = subprocess.run(
            [sys.executable, "-c", ENDS.format(url=url, last=last)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == code, done.stderr
    assert done.stdout == "the end\n"
    assert "ERROR busy at step 0" in done.stderr  # the console is not the webhook's business
    assert SECRET not in done.stderr


def test_apprise_delivers_and_tries_again() -> None:
    with serving(first(1, says(200), says(500))) as server:
        port = server.url.split(":")[2].split("/")[0]
        channels = parse_channels(
            {"apprise": {"urls": [f"json://127.0.0.1:{port}"], "backoff": 0.01}}
        )
        one = Delivery({"apprise": channels["apprise"]})
        one.submit(notice())
        assert one.flush(20)
        assert one.counts["apprise"] == {"sent": 1, "lost": 0, "retried": 1}
        assert server.bodies[-1]["title"] == "WARNING storage_refused at step 39"
        one.close()
