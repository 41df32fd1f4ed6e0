"""What the fields of ``alerts`` do that say who is told, when, and of what together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint

from cmr_monitor_callbacks import CMRMonitorCallback, ConfigError
from tests.contract.fields import BY_LAYER, REFUSED, Loop, shows, story
from tests.models import MemoryModule, loader, trainer

WORSE = REFUSED | {"thresholds": {"warning": 0.5, "error": 0.3}}


@shows("alerts.enable_alerts")
@pytest.mark.parametrize(("on", "told"), [(True, ["WARNING refused"]), (False, [])])
def test_enable_alerts(on: bool, told: list[str]) -> None:
    loop = story(enable_alerts=on)
    assert loop.steps(1) == told
    assert bool(loop.firing) is on


@shows("alerts.alert_channels")
def test_alert_channels(tmp_path: Path) -> None:
    heard: list[Any] = []
    channels = {"mine": heard.append, "jsonl": {"path": str(tmp_path / "alerts.jsonl")}}
    for chosen, told in ((["mine"], 1), (["jsonl"], 0), ([], 0)):
        heard.clear()
        settings = {"alert_channels": chosen, "channels": channels}
        loop = Loop(alerts={"rules": {"refused": REFUSED}, **settings})
        loop.steps(1)
        assert loop.monitor.alerts.delivery.flush()
        assert len(heard) == told
        assert (tmp_path / "alerts.jsonl").exists() is ("jsonl" in chosen)
        (tmp_path / "alerts.jsonl").unlink(missing_ok=True)


@shows("alerts.severity_levels")
def test_severity_levels() -> None:
    loop = story({"refused": WORSE}, severity_levels=["warning", "error"])
    assert loop.steps(1) == ["ERROR refused"]
    with pytest.raises(ConfigError, match="severity 'error', which severity_levels leaves out"):
        story({"refused": WORSE}, severity_levels=["warning"])


@shows("alerts.alert_cooldown")
@pytest.mark.parametrize(("cooldown", "told"), [(0, 2), (30, 1)])
def test_alert_cooldown(cooldown: float, told: int) -> None:
    loop = story(alert_cooldown=cooldown)
    assert loop.steps(1, 8, 1, seconds=10.0).count("WARNING refused") == told


@shows("alerts.escalation_rules.delay")
@pytest.mark.parametrize(("delay", "told"), [(0, [1, 0, 0]), ("40s", [0, 0, 1])])
def test_delay(delay: Any, told: list[int]) -> None:
    loop = story(escalation_rules={"warning": {"delay": delay}})
    assert [len(loop.steps(1)) for _ in range(3)] == told


@shows("alerts.escalation_rules.immediate")
@pytest.mark.parametrize(("at_once", "told"), [(True, 1), (False, 0)])
def test_immediate(at_once: bool, told: int) -> None:
    given = {"warning": {"immediate": at_once, "delay": "40s"}}
    loop = story(escalation_rules=given, route={"group_wait": "60s"})
    assert len(loop.steps(1)) == told


def rising(**step: Any) -> Loop:
    then = [{"after": "2 windows", "raise_to": "error", **step}]
    return story(escalation_rules={"warning": {"then": then}})


@shows("alerts.escalation_rules.then.after")
@pytest.mark.parametrize(("after", "at"), [("1 windows", 1), ("3 steps", 3), ("40s", 2)])
def test_after(after: str, at: int) -> None:
    told = [*map(rising(after=after).steps, [1] * 5)]
    assert [i for i, texts in enumerate(told) if texts == ["ERROR refused"]] == [at]
    assert story().steps(*[1] * 5) == ["WARNING refused"]


@shows("alerts.escalation_rules.then.raise_to")
@pytest.mark.parametrize("severity", ["error", "critical"])
def test_raise_to(severity: str) -> None:
    assert rising(raise_to=severity).steps(1, 1, 1)[1:] == [f"{severity.upper()} refused"]


@shows("alerts.escalation_rules.then.unless")
@pytest.mark.parametrize(("unless", "told"), [("acked", []), (None, ["ERROR refused"])])
def test_unless(unless: Any, told: list[str]) -> None:
    loop = rising(unless=unless)
    loop.steps(1)
    loop.monitor.acknowledge("refused")
    assert loop.steps(1, 1, 1) == told


@shows("alerts.warmup.steps")
@pytest.mark.parametrize(("steps", "told"), [(0, [1, 0, 0]), (3, [0, 0, 1])])
def test_warmup_steps(steps: int, told: list[int]) -> None:
    loop = story(warmup={"steps": steps})
    assert [len(loop.steps(1)) for _ in range(3)] == told


@shows("alerts.warmup.until")
@pytest.mark.parametrize(
    ("until", "told"), [(None, [1, 0, 0]), ("storage_efficiency < 0.25", [0, 0, 1])]
)
def test_warmup_until(until: Any, told: list[int]) -> None:
    loop = story(warmup={"until": until})
    assert [len(loop.steps(stored)) for stored in (4, 3, 2)] == told


@shows("alerts.mute")
@pytest.mark.parametrize("what", ["sanity_check", "validation", "checkpoint", "profile"])
def test_mute(tmp_path: Path, what: str) -> None:
    """A rule on times is not judged on a window in which that came between, unless it may be."""
    slow = {"slow": {"metric": "step_time", "thresholds": {"warning": 5.0}}}
    for mute, fires in (([what], []), ([], ["slow"])):
        loop = story(slow, mute=mute)
        if what in ("sanity_check", "validation"):
            loop.monitor.enter_stage({"sanity_check": "sanity", "validation": "val"}[what])
            loop.monitor.leave_stage(0)
        else:  # the callback says it
            loop.monitor.mute(what)
        loop.steps(8)
        assert loop.firing == fires


@pytest.mark.parametrize(("mute", "fires"), [(["checkpoint"], False), ([], True)])
def test_a_fit_says_that_a_checkpoint_is_written(
    tmp_path: Path, mute: list[str], fires: bool
) -> None:
    """After every step: two windows in a row that may be judged there are only where it may be."""
    limit = {"metric": "step_time", "thresholds": {"warning": 0.0}, "for": "1 windows"}
    alerts = {"rules": {"slow": limit}, "mute": mute}
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 1}, alerts=alerts)
    saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    fitter = trainer(
        tmp_path, [callback, saves], max_steps=4, logger=False, enable_checkpointing=True
    )
    fitter.fit(MemoryModule(), loader(4))
    assert any(t.name == "firing" for t in callback.monitor.alerts.transitions) is fires


@shows("alerts.rules_file")
def test_rules_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": {"mine": REFUSED}}))
    assert story(rules_file=str(path)).steps(1) == ["WARNING refused", "WARNING mine"]
    assert story().steps(1) == ["WARNING refused"]


@shows("alerts.route.group_by")
@pytest.mark.parametrize(("labels", "notices"), [(["alert"], 1), (["alert", "layer"], 2), ([], 1)])
def test_group_by(labels: list[str], notices: int) -> None:
    loop = story({"refused": BY_LAYER}, route={"group_by": labels})
    loop.steps(1)
    assert len(loop.ear.notices) == notices
    assert sum(len(notice.alerts) for notice in loop.ear.notices) == 2


@shows("alerts.route.group_wait")
@pytest.mark.parametrize(("wait", "told"), [(0, [1, 0, 0]), ("30s", [0, 0, 1])])
def test_group_wait(wait: Any, told: list[int]) -> None:
    loop = story(route={"group_wait": wait})
    assert [len(loop.steps(1)) for _ in range(3)] == told


@shows("alerts.route.group_interval")
@pytest.mark.parametrize(("interval", "told"), [(0, [1, 1, 0]), ("30s", [1, 0, 1])])
def test_group_interval(interval: Any, told: list[int]) -> None:
    """Layer 6 joins layer 4's group one window later."""
    loop = story({"refused": BY_LAYER}, route={"group_by": ["alert"], "group_interval": interval})
    found = []
    for other in (8, 1, 1):
        loop.probes[0].capture(10, 10, 1)
        loop.probes[1].capture(10, 10, other)
        found.append(len(loop.steps(None)))
    assert found == told


@shows("alerts.route.repeat_interval")
@pytest.mark.parametrize(("interval", "told"), [(None, [1, 0, 0, 0]), ("40s", [1, 0, 1, 0])])
def test_repeat_interval(interval: Any, told: list[int]) -> None:
    loop = story(route={"repeat_interval": interval})
    assert [len(loop.steps(1)) for _ in range(4)] == told


@shows("alerts.route.send_resolved")
@pytest.mark.parametrize(("sends", "told"), [(True, ["RESOLVED refused"]), (False, [])])
def test_send_resolved(sends: bool, told: list[str]) -> None:
    loop = story(route={"send_resolved": sends})
    loop.steps(1)
    assert loop.steps(8) == told


def flood(**limits: Any) -> list[list[str]]:
    """Six windows of 20 s in which one alert fires and ends again and again."""
    loop = story(route={"group_interval": 0, "max_per_window": limits})
    return [loop.steps(stored) for stored in (1, 8, 1, 8, 1, 8)]


@shows("alerts.route.max_per_window.n")
def test_most_notices() -> None:
    assert [len(told) for told in flood(n=20)] == [1] * 6
    assert [len(told) for told in flood(n=2, window="1h")] == [1, 1, 0, 0, 0, 0]


@shows("alerts.route.max_per_window.window")
def test_in_which_time() -> None:
    assert sum(map(len, flood(n=2, window="50s"))) > sum(map(len, flood(n=2, window="1h")))


@shows("alerts.route.max_per_window.overflow")
def test_what_comes_instead() -> None:
    loop = story(route={"group_interval": 0, "max_per_window": {"n": 1, "window": "50s"}})
    loop.steps(1, 8, 1, 8)
    summaries = [notice.summary for notice in loop.ear.notices if notice.summary]
    assert len(summaries) == 1 and "alerts in one notice" in summaries[0]
    with pytest.raises(ConfigError, match="must be 'summary', got 'drop'"):
        story(route={"max_per_window": {"overflow": "drop"}})


@shows("alerts.baseline")
def test_baseline(tmp_path: Path) -> None:
    recorded = Loop()
    recorded.monitor.open_history(tmp_path)
    recorded.steps(*[8] * 6)
    recorded.monitor.detach()
    recorded.monitor.close_history("completed")
    worse = REFUSED | {"compare": {"vs": "baseline"}, "thresholds": {"warning": 0.9}}
    beside = story({"worse": worse}, baseline=str(tmp_path))
    assert beside.steps(8, 8, 4) == ["WARNING worse"]
    with pytest.raises(ConfigError, match=r"alerts\.baseline"):
        story({"worse": worse})
