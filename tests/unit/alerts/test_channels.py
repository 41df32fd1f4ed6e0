"""Channels: what reaches people, and docs/channels.md."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cmr_monitor_callbacks import (
    Alert,
    AlertConfig,
    CMRMonitorCallback,
    ConfigError,
    Notice,
    Severity,
)
from cmr_monitor_callbacks.alerts.channels import Retry, Surroundings, make_channel
from cmr_monitor_callbacks.alerts.channels.webhook import payload, slack
from cmr_monitor_callbacks.alerts.delivery import Delivery
from cmr_monitor_callbacks.config import parse
from cmr_monitor_callbacks.config.channels import (
    AppriseConfig,
    ChannelConfig,
    ConsoleConfig,
    JsonlConfig,
    RemoteConfig,
    TensorBoardConfig,
    WebhookConfig,
    parse_channels,
)
from tests.pages import check_settings, rows, snippets

PAGE = "docs/channels.md"
SECRET = "s3cr3t"
TABLES: dict[str, type[ChannelConfig]] = {
    "console": ConsoleConfig,
    "jsonl": JsonlConfig,
    "tensorboard": TensorBoardConfig,
    "webhook": WebhookConfig,
    "apprise": AppriseConfig,
}


def alert(**other: Any) -> Alert:
    labels = {"alert": "storage_refused", "component": "capture", "layer": "6"}
    one = Alert(
        "storage_refused",
        labels | {"severity": "warning"},
        Severity.WARNING,
        False,
        "layer 6: its buffer took 22% of the captured states (under 50%)",
        0.22,
        0.5,
        39,
        1769850722.004,
        "docs/runbooks/storage_refused.md",
    )
    return replace(one, **other)


def notice(*alerts: Alert, **other: Any) -> Notice:
    group = {"alert": "storage_refused", "component": "capture"}
    one = Notice(alerts or (alert(),), Severity.WARNING, False, 39, 1769850724.12, group)
    return replace(one, **other)


def channel(name: str, around: Surroundings | None = None, **settings: Any) -> Any:
    return make_channel(parse_channels({name: settings})[name], around or Surroundings())


# The page.


def fields(model: type[BaseModel]) -> dict[str, Any]:
    return dict(model.model_fields)


@pytest.mark.parametrize("kind", TABLES)
def test_every_setting_is_on_the_page(kind: str) -> None:
    own = set(fields(TABLES[kind])) - set(fields(ChannelConfig))
    if kind == "apprise":
        own -= set(fields(RemoteConfig))  # "as above"
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows(PAGE, kind)}
    assert set(documented) == own
    for name, default in documented.items():
        field = TABLES[kind].model_fields[name]
        value = field.get_default(call_default_factory=True)
        shown = {(): "[]", None: "null"}.get(value if value != {} else None, str(value))
        assert default == ("required" if field.is_required() else "{}" if value == {} else shown)


def test_what_all_channels_have_is_on_the_page() -> None:
    assert {row[0].strip("`") for row in rows(PAGE, "Channels")} == set(fields(ChannelConfig))


def test_the_pages_settings_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://example.org/hook")
    [settings] = snippets(PAGE, "yaml")
    monitor = check_settings(settings)
    assert set(monitor.alerts.delivery.counts) == {
        "console",
        "log",
        "tensorboard",
        "jsonl",
        "oncall",
    }


def test_the_pages_function_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = snippets(PAGE, "python")
    found: dict[str, Any] = {}
    exec(compile(code, PAGE, "exec"), found)
    callback = found["callback"]
    assert isinstance(callback, CMRMonitorCallback)
    callback.monitor.alerts.delivery.submit(notice())
    callback.monitor.alerts.delivery.close()
    assert capsys.readouterr().out.startswith("WARNING storage_refused 39 [{'alert'")


def test_the_pages_json_is_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    [shown] = snippets(PAGE, "json")
    assert payload(notice(), "version_3") == json.loads(shown)


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alert_channels": ["slack"]}, "no channel is named 'slack'; allowed: console, log"),
        (
            {"channels": {"oncall": {}}},
            "alerts.channels: oncall: no channel is of type 'oncall'; allowed: console",
        ),
        ({"channels": {"webhook": {}}}, "alerts.channels.webhook.url is required"),
        (
            {"channels": {"webhook": {"url": "http://a/b", "retry": 1}}},
            "webhook.retry is not a setting; did you mean 'retries'",
        ),
        (
            {"channels": {"tensorboard": {"rows": 0}}},
            "tensorboard.rows must be at least 1, got 0",
        ),
        (
            {"channels": {"log": {"min_severity": "eror"}}},
            "log.min_severity must be 'warning', 'error' or 'critical', got 'eror'",
        ),
    ],
)
def test_a_wrong_setting_is_named(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AlertConfig, {"rules": {}, **settings}, "alerts")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"ftp://{SECRET}@host/",
        f"{SECRET}",
        f"https:///{SECRET}",
        f"http://host:{SECRET}/x",
        f"http://host/{SECRET} x",
        f"http://host/{SECRET}\nx",
        f"http://host/é{SECRET}",
        [SECRET],
        {"a": SECRET},
    ],
)
def test_a_wrong_address_is_not_shown(url: Any) -> None:
    for settings in (
        {"channels": {"hook": {"type": "webhook", "url": url}}},
        {"channels": {"webhook": {"url": "http://a/", "headers": {"A": [SECRET]}}}},
    ):
        with pytest.raises(ConfigError) as caught:
            parse(AlertConfig, settings, "alerts")
        assert SECRET not in str(caught.value)
        assert "it is not shown: a secret" in str(caught.value)
        assert SECRET not in repr(caught.value.__cause__) + repr(caught.value.__context__)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": {"webhook": f"https://host/{SECRET}"}},
        {"channels": {"apprise": [f"mailto://u:{SECRET}@host"]}},
        {
            "channels": {
                "hook": {"type": "webhook", "url": "http://a/", "headers": {"A": f"{SECRET}\nB"}}
            }
        },
        {"channels": {"webhook": {"url": "http://a/", "headers": {"A": f"{SECRET}\u2026"}}}},
        {"channels": {"webhook": {"url": "http://a/", "headers": {f"A {SECRET}": "x"}}}},
        {"alert_channels": [f"https://host/{SECRET}"]},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(settings: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(AlertConfig, settings, "alerts")
    assert SECRET not in str(caught.value)
    assert "it is not shown: a secret" in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__) + repr(caught.value.__context__)


def test_secrets_are_in_no_repr_or_dump() -> None:
    settings = {
        "webhook": {"url": f"https://u:{SECRET}@h/{SECRET}?k={SECRET}", "headers": {"A": SECRET}},
        "apprise": {"urls": [f"json://h/{SECRET}"]},
    }
    config = parse(AlertConfig, {"channels": settings}, "alerts")
    for text in (repr(config), str(config.model_dump()), config.model_dump_json()):
        assert SECRET not in text
    again = parse(AlertConfig, config.model_dump(by_alias=True), "alerts")
    assert again.channels == config.channels


def test_apprise_does_not_understand_an_address() -> None:
    with pytest.raises(ConfigError, match=r"apprise\.urls\.1 is no address") as caught:
        channel("apprise", urls=["json://127.0.0.1", f"nonsense{SECRET}"])
    assert SECRET not in str(caught.value)


# What people see.

HOSTILE = "bad\x1b[2J\x07\x9b\nline `|*_<b>&\u202e é 漢"


def test_console_prints_a_line_for_each_alert(capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(alert(message=f"layer {i}: too full") for i in range(11))
    channel("console", color=False).send(notice(*many))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[cmr-monitor] WARNING storage_refused at step 39: 11 alerts"
    assert lines[1:] == [f"    layer {i}: too full" for i in range(8)] + ["    and 3 more"]
    channel("console", color=True).send(notice(resolved=True))
    assert capsys.readouterr().err.startswith("\x1b[32m[cmr-monitor] RESOLVED ")


def test_console_prints_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []
    channel("console", Surroundings(emit=printed.append), color=False).send(notice())
    assert printed == [str(notice())]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["console", "log"])
def test_a_hostile_text_stays_on_its_line(
    name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks.alerts"):
        channel(name).send(notice(alert(message=HOSTILE)))
    text = capsys.readouterr().err.rstrip("\n") if name == "console" else caplog.messages[0]
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert len(text.splitlines()) == 1


def test_the_log_has_the_alerts_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cmr_monitor_callbacks.alerts"):
        for severity in Severity:
            channel("log").send(notice(severity=severity))
        channel("log").send(notice(resolved=True))
    assert [record.levelname for record in caplog.records] == [
        "WARNING",
        "ERROR",
        "CRITICAL",
        "INFO",
    ]


def test_jsonl_appends_an_object_for_each_alert(tmp_path: Path) -> None:
    one = channel("jsonl", Surroundings(folder=tmp_path / "new"), path="a/b.jsonl")
    one.send(notice(alert(value=float("nan"), message=HOSTILE), alert(threshold=float("inf"))))
    one.send(notice(alert(resolved=True)))
    lines = (tmp_path / "new" / "a" / "b.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [(x["state"], x["value"], x["threshold"]) for x in found] == [
        ("firing", None, 0.5),
        ("firing", 0.22, None),
        ("resolved", 0.22, 0.5),
    ]


def test_tensorboard_has_a_rolling_table() -> None:
    written: list[tuple[str, str, int]] = []
    around = Surroundings(add_text=lambda tag, text, step: written.append((tag, text, step)))
    one = channel("tensorboard", around, rows=2)
    for step in (1, 2, 3):
        one.send(notice(alert(message=HOSTILE), step=step))
    tags = {tag for tag, _, _ in written}
    assert (tags, [step for _, _, step in written]) == ({"cmr_health/alerts"}, [1, 2, 3])
    head, rule, *table = written[-1][1].splitlines()
    assert head.count("|") == rule.count("|") == 6
    assert [line.split(" | ")[0] for line in table] == ["| 3", "| 2"]
    for line in table:
        assert line.replace("\\|", "").count("|") == 6
        assert "<b>" not in line


def test_the_tables_sentences_have_lines_of_their_own_and_leave_room_to_the_other_columns() -> None:
    written: list[str] = []
    around = Surroundings(add_text=lambda tag, text, step: written.append(text))
    one = channel("tensorboard", around)
    one.send(notice(alert(message="layer 2 is full"), alert(message="layer 4 " + "refuses " * 20)))
    row = written[0].splitlines()[2]
    lines = row.split(" | ")[-1].removesuffix(" |").split("<br>")
    assert lines[0] == "layer 2 is full" and lines[1].startswith("layer 4 refuses")
    assert len(lines) == 4 and all(len(line) <= 80 for line in lines)


def test_slack_has_no_markup_of_ours() -> None:
    sent = slack(notice(alert(message="<!channel> & <http://x|y>" + "z" * 5000)))
    assert sent["text"] == "WARNING storage_refused at step 39"
    text = sent["attachments"][0]["text"]
    assert text.startswith("&lt;!channel&gt; &amp; &lt;http://x|y&gt;")
    assert len(text) <= 3000


def test_a_summary_is_told_as_such() -> None:
    one = notice(summary="20 alerts in one notice", alerts=(alert(), alert()))
    assert payload(one, "")["text"] == "20 alerts in one notice"
    assert len(payload(one, "")["alerts"]) == 2
    assert str(one).endswith(": 20 alerts in one notice")


class Waits(threading.Event):
    """Notes for how long it is waited, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout)
        return True


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [(120.0, 120.0, 120.0), (3600.0, 900.0, 900.0), (None, 0.8, 1.2), (0.0, 0.8, 1.2)],
)
def test_a_server_that_asks_for_time_is_given_it(
    after: float | None, least: float, most: float
) -> None:
    class Busy:
        def send(self, notice: Notice) -> None:
            raise Retry("busy", after)

        def close(self) -> None: ...

    delivery = Delivery({"hook": WebhookConfig(url="http://127.0.0.1:9/", retries=1)})
    [line] = delivery._lines
    waits = Waits()
    line._deliver("hook", Busy(), Notice((alert(),), Severity.WARNING, False, 1, 0.0, {}), waits)
    [pause] = waits.asked
    assert pause is not None and least <= pause <= most
    assert delivery.counts["hook"] == {"sent": 0, "lost": 1, "retried": 1}


def test_the_end_of_a_run_does_not_wait_for_a_server_that_asked_for_time() -> None:
    """Two tries without a pause between them: the second comes when the run ends."""
    tried = threading.Event()

    class Busy:
        tries = 0

        def send(self, notice: Notice) -> None:
            self.tries += 1
            tried.set()
            raise Retry("busy", 900.0)

        def close(self) -> None: ...

    busy = Busy()
    delivery = Delivery({"hook": WebhookConfig(url="http://127.0.0.1:9/", retries=1)})
    [line] = delivery._lines
    line._channels = {"hook": (busy, line._channels["hook"][1])}
    delivery.submit(Notice((alert(),), Severity.WARNING, False, 1, 0.0, {}))
    assert tried.wait(30.0)
    delivery.close(30.0)
    assert busy.tries == 2
    assert delivery.counts["hook"]["lost"] == 1
