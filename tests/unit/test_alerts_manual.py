"""The manual of rules and notices has every field, and its examples do what it says."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hydra import compose, initialize_config_dir
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, ConfigError
from cmr_monitor_callbacks.config import (
    AlertConfig,
    AlertThresholds,
    CompareConfig,
    DetectorConfig,
    EscalationConfig,
    InhibitConfig,
    NoDataConfig,
    ReduceConfig,
    RouteConfig,
    RuleConfig,
    SelectConfig,
    SilenceConfig,
    ThresholdConfig,
    WarmupConfig,
    config_root,
    parse,
)
from cmr_monitor_callbacks.config.alerts import MUTES, EscalationStep, OverflowConfig
from cmr_monitor_callbacks.config.channels import ChannelConfig
from cmr_monitor_callbacks.config.presets import load_preset
from cmr_monitor_callbacks.config.stall import StallConfig
from cmr_monitor_callbacks.health import HealthStatus, Phase
from cmr_monitor_callbacks.resources import ResourceWatch
from tests.pages import check_settings, check_tags, overrides, rows, snippets, text_of

PAGE = "docs/alerts.md"
TABLES: dict[str, type[BaseModel]] = {
    "RuleConfig": RuleConfig,
    "SelectConfig": SelectConfig,
    "ReduceConfig": ReduceConfig,
    "ThresholdConfig": ThresholdConfig,
    "CompareConfig": CompareConfig,
    "DetectorConfig": DetectorConfig,
    "Gaps and NoDataConfig": NoDataConfig,
    "WarmupConfig": WarmupConfig,
    "AlertConfig": AlertConfig,
    "EscalationConfig": EscalationConfig,
    "EscalationStep": EscalationStep,
    "RouteConfig": RouteConfig,
    "OverflowConfig": OverflowConfig,
    "InhibitConfig": InhibitConfig,
    "SilenceConfig": SilenceConfig,
    "StallConfig": StallConfig,
}


def default_of(field: FieldInfo) -> str:
    """A field's default as the manual's tables write it."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "none set"
    if field.default_factory is not None and value:
        return "the preset's"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    if value is None or isinstance(value, (bool, dict)):
        return f"`{json.dumps(value)}`"
    return {"": '`""`', ">": '`">"`'}.get(value, f"`{value}`")


@pytest.mark.parametrize("heading", TABLES)
def test_every_field_is_there_with_its_default(heading: str) -> None:
    fields = TABLES[heading].model_fields.items()
    expected = [(f"`{f.alias or name}`", default_of(f)) for name, f in fields]
    assert [(row[0], row[1]) for row in rows(PAGE, heading)] == expected


def test_every_model_of_the_settings_has_a_table() -> None:
    def models(model: type[BaseModel]) -> set[type[BaseModel]]:
        found = {model}
        for field in model.model_fields.values():
            waiting = [field.annotation]
            while waiting:
                annotation = waiting.pop()
                waiting.extend(get_args(annotation))
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    found |= models(annotation)
        return found

    assert models(AlertConfig) == {*TABLES.values(), ChannelConfig}  # docs/channels.md


def choices(model: type[BaseModel], name: str) -> set[str]:
    """Values of a `Literal`."""
    found: set[str] = set()
    waiting: list[Any] = [model.model_fields[name].annotation]
    while waiting:
        annotation = waiting.pop()
        inner = get_args(annotation)
        waiting.extend(inner)
        found |= {annotation} if isinstance(annotation, str) else set()
    return found


def in_code(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_choice_is_there() -> None:
    conditions = in_code([row[0] for row in rows(PAGE, "Conditions")])
    assert conditions == choices(RuleConfig, "condition")
    section = text_of(PAGE).split("### CompareConfig")[1].split("| `vs` | other |")[1]
    section = section.split("\n### ")[0]
    others = re.findall(r"^\| `([a-z]+(?:\.[a-z]+)?)` \|", section, re.MULTILINE)
    assert set(others) == choices(CompareConfig, "vs")
    section = text_of(PAGE).split("| channel | what is looked for |")[1].split("\n\n")[0]
    channels = re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE)
    assert set(channels) == choices(DetectorConfig, "channels")
    meaning = {row[0]: in_code(row[2:]) for row in rows(PAGE, "CompareConfig")}
    assert meaning["`as`"] == choices(CompareConfig, "as_")
    assert in_code([row[2] for row in rows(PAGE, "ReduceConfig")][:1]) == choices(
        ReduceConfig, "layer"
    )
    assert in_code([row[0] for row in rows(PAGE, "Actions")]) == choices(RuleConfig, "actions")
    [mode, _] = rows(PAGE, "Gaps and NoDataConfig")
    assert in_code(mode[2:]) == choices(NoDataConfig, "mode")
    over = {row[0]: in_code(row[2:]) for row in rows(PAGE, "RuleConfig")}["`over`"]
    assert over == choices(RuleConfig, "over")
    mute = {row[0]: row[1] for row in rows(PAGE, "AlertConfig")}["`mute`"]
    assert mute == f"`[{', '.join(MUTES)}]`"


def test_the_short_form_and_every_status_are_named() -> None:
    short = text_of(PAGE).split("- **The short form**")[1].split("- **A rules file**")[0]
    assert set(AlertThresholds.model_fields) <= in_code([short])
    verdict = text_of(PAGE).split("The **status** is")[1].split("## ")[0]
    for status in HealthStatus:
        assert re.search(rf"{status.value} \({status.color}\)", verdict), status


def test_the_diagram_has_every_state() -> None:
    [diagram] = snippets(PAGE, "mermaid")
    names = set(re.findall(r"^ +(\w+) -->", diagram, re.MULTILINE))
    assert names == {phase.value for phase in Phase}
    assert diagram.count("-->") == len(re.findall(r"--> \w+(: [^:;`]+)?$", diagram, re.MULTILINE))


def test_every_example_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # a sample of the machine would come in one window or the next: the page does not speak of it
    monkeypatch.setattr(ResourceWatch, "start", lambda *args: None)
    [_, *sessions] = re.split(r"```pycon\n", text_of(PAGE))
    text = "\n".join(session.split("```")[0] for session in sessions)
    parsed = doctest.DocTestParser().get_doctest(text, {}, PAGE, PAGE, 0)
    assert len(parsed.examples) > 30
    runner = doctest.DocTestRunner()
    runner.run(parsed)
    assert runner.failures == 0


def test_every_tag_exists_and_is_logged() -> None:
    check_tags(PAGE)


@pytest.mark.parametrize(
    "snippet", [s for s in snippets(PAGE, "yaml") if not s.startswith("# rules.yaml")]
)
def test_every_yaml_snippet_is_valid_and_says_something(snippet: str) -> None:
    check_settings(snippet).detach()


def test_the_rules_file_is_taken(tmp_path: Path) -> None:
    [file] = [s for s in snippets(PAGE, "yaml") if s.startswith("# rules.yaml")]
    path = tmp_path / "rules.yaml"
    path.write_text(file, encoding="utf-8")
    monitor = CMRPerformanceMonitor(alert_config={"rules_file": str(path)})
    rules = {rule.name: rule for rule in monitor.alerts.rules}
    assert set(rules) == set(load_preset("default")["alerts"]["rules"]), "others stay"
    assert [t.fire for t in rules["storage_refused"].thresholds] == [0.3], "replaced whole"


def test_a_summary_may_use_what_the_manual_lists() -> None:
    paragraph = text_of(PAGE).split("**The summary** may use")[1].split("\n\n")[0]
    listed = re.findall(r"\{[a-z]+\}", paragraph)
    rule = {"metric": "step_time", "thresholds": {"warning": 1}, "summary": "{hostname}"}
    with pytest.raises(ConfigError) as error:
        parse(AlertConfig, {"rules": {"slow": rule}}, "alerts")
    assert sorted(listed) == sorted(
        re.findall(r"\{[a-z]+\}", str(error.value).split("allowed:")[1])
    )


def test_the_presets_delays_are_as_it_says() -> None:
    def delays(preset: str) -> list[float]:
        alerts = parse(AlertConfig, load_preset(preset)["alerts"], "alerts")
        return [alerts.escalation_rules[name].delay for name in ("warning", "error", "critical")]

    assert delays("default") == [300, 30, 0]
    assert delays("strict") == [0, 0, 0]
    assert delays("quiet") == [1800, 300, 0]


@pytest.mark.parametrize("given", overrides(PAGE), ids=lambda given: given[-1])
def test_every_override_is_one(given: list[str]) -> None:
    with initialize_config_dir(str(config_root()), version_base="1.3"):
        config = compose(overrides=given)
        preset = compose(overrides=given[:1])
    assert config != preset
    callback = CMRMonitorCallback(**config.cmr_monitor)
    assert callback.monitor.alerts.rules


def test_the_short_form_is_as_it_says() -> None:
    rules = check_settings(
        "monitoring: {alert_thresholds: {high_latency: 1, low_efficiency: 0.5, high_error_rate: 1}}"
    ).alerts.rules
    [latency] = [rule for rule in rules if rule.name == "high_latency"]
    [threshold] = latency.thresholds
    assert (threshold.severity.value, threshold.fire, threshold.recover) == ("error", 1, 1)
    assert latency.hold[0] == 0


def test_the_readmes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://example.org/hook")
    [settings] = [text for text in snippets("README.md", "yaml") if "slow_retrieval" in text]
    monitor = check_settings(settings)
    assert "slow_retrieval_of_deep_layers" in {rule.name for rule in monitor.alerts.rules}
