"""Settings: what is accepted, and what an error says."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    CMRPerformanceMonitor,
    ConfigError,
    ResourceMonitorCallback,
    StallWatchdogCallback,
)
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
    RuleConfig,
    SinksConfig,
    config_root,
    load_preset,
    parse,
    preset_names,
)
from cmr_monitor_callbacks.config.channels import _KINDS
from cmr_monitor_callbacks.huggingface import CMRTrainerCallback

MONITORING = {
    "enable_real_time": True,
    "enable_profiling": False,
    "metric_collection_interval": 1.0,
    "health_check_interval": 5.0,
    "max_history_size": 1000,
    "alert_thresholds": {"high_latency": 0.1, "low_efficiency": 0.7, "high_error_rate": 0.05},
}
ALERTS = {
    "enable_alerts": True,
    "alert_channels": ["console", "log"],
    "severity_levels": ["warning", "error", "critical"],
    "alert_cooldown": 60.0,
    "escalation_rules": {
        "critical": {"immediate": True},
        "error": {"delay": 30.0},
        "warning": {"delay": 300.0},
    },
}


def test_the_specifications_dictionaries_work_verbatim() -> None:
    monitor = CMRPerformanceMonitor(MONITORING, alert_config=ALERTS)
    rules = {rule.name: rule for rule in monitor.alerts.rules}
    assert rules["high_latency"].metrics == ("avg_latency",)
    assert rules["high_latency"].thresholds[0].fire == 0.1
    assert rules["low_efficiency:capture_efficiency"].condition == "<"
    assert rules["low_efficiency:storage_efficiency"].thresholds[0].fire == 0.7
    assert rules["high_error_rate"].thresholds[0].severity.value == "error"
    assert monitor.config.metric_collection_interval == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"log_every_n_steps": 0}, "monitoring.log_every_n_steps must be at least 1, got 0"),
        ({"sample_every": 0}, "monitoring.sample_every must be at least 1, got 0"),
        ({"sample_every": 2.5}, "monitoring.sample_every must be"),
        ({"overhead_budget": 0}, "monitoring.overhead_budget must be greater than 0.0, got 0"),
        ({"overhead_budget": 1.5}, "monitoring.overhead_budget must be at most 1.0, got 1.5"),
        ({"adaptive": True, "components": ["capture"]}, "adaptive needs the component timing"),
        (
            {"log_every_n_steps": 2.5},
            "monitoring.log_every_n_steps must be a whole number, got 2.5",
        ),
        (
            {"metric_collection_interval": -1},
            "monitoring.metric_collection_interval must be greater than 0.0, got -1",
        ),
        ({"enable_real_time": "perhaps"}, "monitoring.enable_real_time must be true or false"),
        (
            {"alert_thresholds": {"low_efficiency": 1.5}},
            "monitoring.alert_thresholds.low_efficiency must be at most 1.0, got 1.5",
        ),
        (
            {"on_monitor_error": "rais"},
            "must be 'log' or 'raise', got 'rais'; did you mean 'raise'?",
        ),
        ({"components": ["captur"]}, "'captur' names no component; did you mean 'capture'?"),
        ({"layer_metrics": ["states_stord"]}, "did you mean 'states_stored'?"),
        ({"log_evry_n_steps": 5}, "monitoring.log_evry_n_steps is not a setting; did you mean"),
        ({"alert_thresholds": {"low_efficency": 0.5}}, "did you mean 'low_efficiency'?"),
        (
            {"enable_profiling": "perhaps"},
            "monitoring.enable_profiling must be true or false, got 'perhaps'",
        ),
    ],
)
def test_a_wrong_monitoring_setting_names_field_value_and_what_is_allowed(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        CMRMonitorCallback(monitoring=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alert_channels": ["consol"]}, "no channel is named 'consol'; did you mean 'console'"),
        ({"alert_cooldown": -1}, "alerts.alert_cooldown must be at least 0.0, got -1"),
        ({"severity_levels": ["error", "warning"]}, "must be an ordered subset of"),
        ({"escalation_rules": {"error": {"dellay": 3}}}, "did you mean 'delay'?"),
        (
            {"rules": {"x": {"metric": "storage_eficiency", "condition": "<", "thresholds": {}}}},
            "did you mean 'storage_efficiency'?",
        ),
        (
            {
                "rules": {
                    "x": {
                        "metric": "error_rate",
                        "condition": ">",
                        "thresholds": {"warning": {"fire": 0.1, "recover": 0.2}},
                    }
                }
            },
            "must lie on the good side of fire",
        ),
        (
            {
                "rules": {
                    "x": {
                        "metric": "error_rate",
                        "condition": "=>",
                        "thresholds": {"warning": 0.1},
                    }
                }
            },
            "alerts.rules.x.condition must be",
        ),
        (
            {
                "rules": {
                    "x": {
                        "metric": "error_rate",
                        "condition": ">",
                        "thresholds": {"warning": 0.1},
                        "for": "3 parsecs",
                    }
                }
            },
            "must be like '50 steps'",
        ),
        (
            {
                "severity_levels": ["error"],
                "rules": {
                    "x": {"metric": "error_rate", "condition": ">", "thresholds": {"warning": 1}}
                },
            },
            "rules.x uses severity 'warning'",
        ),
        (
            {"warmup": {"until": "whole.utilization_rate >= 0.95"}},
            "alerts.warmup.until: whole.utilization_rate: numbers are of the whole here",
        ),
        (
            {
                "rules": {
                    "x": {
                        "metric": "error_rate",
                        "condition": "outside",
                        "thresholds": {"warning": [0, 1]},
                        "summary": "{threshold[0]}",
                    }
                }
            },
            "alerts.rules.x.summary: cannot be filled in",
        ),
    ],
)
def test_a_wrong_alert_setting_names_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        CMRMonitorCallback(alerts=settings)


@pytest.mark.parametrize(
    ("made", "given", "message"),
    [
        (
            CMRMonitorCallback,
            "monitorng",
            "did you mean 'monitoring'? (allowed: monitoring, alerts, ",
        ),
        (CMRPerformanceMonitor, "alert_confg", "did you mean 'alert_config'? (allowed: config, "),
        (CMRTrainerCallback, "tensorbord", "did you mean 'tensorboard'? (allowed: monitoring, "),
        (ResourceMonitorCallback, "resource", "did you mean 'resources'? (allowed: resources)"),
        (StallWatchdogCallback, "notfy", "did you mean 'notify'? (allowed: stall, notify)"),
        (CMRMonitorCallback, "zzz", "allowed: monitoring, alerts, probes, history, profiling"),
    ],
)
def test_an_unknown_argument_is_an_error_as_an_unknown_field_is(
    made: Any, given: str, message: str
) -> None:
    start = f"{made.__name__} has no argument '{given}'; {message}"
    with pytest.raises(ConfigError, match="^" + re.escape(start)):
        made(**{given: {}})


def test_each_unknown_argument_is_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'monitorng'.*\n.*'alert'; did you mean 'alerts'"):
        CMRMonitorCallback(monitorng={}, sinks={}, alert={})  # type: ignore[call-arg]


def test_signatures_are_as_they_are_written() -> None:
    """Editors, the docs and LightningCLI read the arguments' names, kinds and defaults there."""
    signature = inspect.signature(CMRMonitorCallback)
    names = ["monitoring", "alerts", "probes", "history", "profiling", "resources", "sinks"]
    assert list(signature.parameters) == [*names, "monitor"]
    assert {one.kind for one in signature.parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert CMRMonitorCallback.__init__.__name__ == "__init__"
    with pytest.raises(TypeError, match="positional"):
        CMRMonitorCallback({})  # type: ignore[misc]


def test_a_callback_of_ones_own_may_have_more_arguments() -> None:
    class Mine(CMRMonitorCallback):
        def __init__(self, team: str, **settings: Any) -> None:
            super().__init__(**settings)
            self.team = team

    assert Mine("memory", monitoring={"log_every_n_steps": 3}).team == "memory"
    with pytest.raises(ConfigError, match="Mine has no argument 'alert'; did you mean 'alerts'"):
        Mine("memory", alert={})


def test_a_threshold_set_in_two_places_is_an_error() -> None:
    rule = {"metric": "avg_latency", "condition": ">", "thresholds": {"error": 0.2}}
    with pytest.raises(ConfigError, match="keep one"):
        CMRMonitorCallback(
            monitoring={"alert_thresholds": {"high_latency": 0.1}},
            alerts={"rules": {"high_latency": rule}},
        )


def test_a_threshold_may_be_set_by_the_name_of_a_rule() -> None:
    rule = {"metric": "avg_latency", "condition": ">", "thresholds": {"error": 0.2}}
    callback = CMRMonitorCallback(
        monitoring={"alert_thresholds": {"slow": 0.3}}, alerts={"rules": {"slow": rule}}
    )
    assert [t.fire for t in callback.monitor.alerts.rules[0].thresholds] == [0.3]


def test_monitor_and_settings_together_are_an_error() -> None:
    with pytest.raises(ConfigError, match="monitoring must be set on the monitor"):
        CMRMonitorCallback(monitoring={}, monitor=CMRPerformanceMonitor())


def test_a_dictconfig_is_accepted_and_resolved() -> None:
    node = OmegaConf.create({"n": 7, "monitoring": {"log_every_n_steps": "${n}"}})
    callback = CMRMonitorCallback(monitoring=node.monitoring)
    assert callback.monitor.config.log_every_n_steps == 7


def test_a_model_is_taken_as_it_is_and_others_are_refused() -> None:
    config = MonitoringConfig(log_every_n_steps=3)
    assert parse(MonitoringConfig, config, "monitoring") is config
    with pytest.raises(ConfigError, match="monitoring must be a MonitoringConfig or a mapping"):
        parse(MonitoringConfig, 3, "monitoring")


def test_omegaconf_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "omegaconf")
    assert parse(MonitoringConfig, {"log_every_n_steps": 3}, "monitoring").log_every_n_steps == 3


TOP: dict[str, type[BaseModel]] = {
    "monitoring": MonitoringConfig,
    "alerts": AlertConfig,
    "probes": ProbesConfig,
    "history": HistoryConfig,
    "profiling": ProfilingConfig,
    "resources": ResourcesConfig,
    "sinks": SinksConfig,
}
FROM_CODE = {"callback"}
"""Kinds of channels that no file can name: a function."""


def fields_of(model: type[BaseModel]) -> dict[str, Any]:
    """What a field may hold, by its name in files."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The settings that a field holds: itself, or beside null."""
    beside = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    for one in (annotation, *beside):
        if isinstance(one, type) and not get_args(one) and issubclass(one, BaseModel):
            return one
    return None


def by_name(annotation: Any) -> type[BaseModel] | None:
    """The settings that a mapping holds for each of its names."""
    arguments = get_args(annotation)
    return settings_in(arguments[1]) if get_origin(annotation) is dict else None


def not_listed(given: Any, model: type[BaseModel], where: str) -> Iterator[str]:
    """Fields that an override would need a ``+`` for, through all that is nested."""
    fields = fields_of(model)
    yield from (f"{where}.{name}" for name in fields if name not in given)
    for name, value in given.items():
        path, inner, named = f"{where}.{name}", settings_in(fields[name]), by_name(fields[name])
        if path == "alerts.channels":
            for channel in _KINDS.keys() - FROM_CODE:
                yield from not_listed(value.get(channel, {}), _KINDS[channel], f"{path}.{channel}")
        elif inner is not None and value is not None:
            yield from not_listed(value, inner, path)
        elif named is not None:
            for key, item in value.items():
                yield from not_listed(item, named, f"{path}.{key}")


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_valid_and_lists_every_field(name: str) -> None:
    preset = load_preset(name)
    CMRMonitorCallback(**preset)
    assert set(preset) == set(TOP)
    assert [path for key in TOP for path in not_listed(preset[key], TOP[key], key)] == []


def test_a_field_that_is_not_listed_is_found_wherever_it_is() -> None:
    alerts = load_preset("default")["alerts"]
    del alerts["route"]["max_per_window"]["n"]
    del alerts["rules"]["ranks_unbalanced"]["compare"]["as"]
    del alerts["rules"]["straggler"]["thresholds"]["warning"]["recover"]
    del alerts["rules"]["dead_layer"]["m_of_n"]
    del alerts["escalation_rules"]["error"]["delay"]
    del alerts["channels"]["webhook"]["timeout"]
    del alerts["channels"]["apprise"]
    assert set(not_listed(alerts, AlertConfig, "alerts")) == {
        "alerts.route.max_per_window.n",
        "alerts.rules.ranks_unbalanced.compare.as",
        "alerts.rules.straggler.thresholds.warning.recover",
        "alerts.rules.dead_layer.m_of_n",
        "alerts.escalation_rules.error.delay",
        "alerts.channels.webhook.timeout",
        *(f"alerts.channels.apprise.{name}" for name in _KINDS["apprise"].model_fields),
    }


def test_the_rules_of_a_preset_share_nothing_once_it_is_loaded() -> None:
    rules = load_preset("default")["alerts"]["rules"]
    rules["straggler"]["no_data"]["mode"] = "ok"
    assert rules["step_outliers"]["no_data"]["mode"] == "keep"
    assert load_preset("default")["alerts"]["rules"]["straggler"]["no_data"]["mode"] == "keep"


def own_lines(node: yaml.MappingNode, model: type[BaseModel]) -> Iterator[int]:
    """Lines of the options that have one to themselves, through all that is nested."""
    fields = fields_of(model)
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":  # what rules share: commented where it is written
            if key.start_mark.line <= value.start_mark.line:
                yield from own_lines(value, model)
            continue
        yield key.start_mark.line
        if not isinstance(value, yaml.MappingNode) or value.flow_style:
            continue
        inner, named = settings_in(fields[key.value]), by_name(fields[key.value])
        if inner is not None:
            yield from own_lines(value, inner)
        elif named is RuleConfig:
            for _, rule in value.value:
                merged = [pair for pair in rule.value if pair[0].value == "<<"]
                yield from own_lines(yaml.MappingNode(rule.tag, merged), RuleConfig)


@pytest.mark.parametrize("name", preset_names())
def test_every_option_of_a_preset_is_commented(name: str) -> None:
    text = (config_root() / "cmr_monitor" / f"{name}.yaml").read_text()
    lines = text.splitlines()
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    found = [line for key, node in top.value for line in own_lines(node, TOP[key.value])]
    assert len(found) > (90 if name == "minimal" else 105), "those of rules are found"
    assert [lines[n] for n in found if not lines[n - 1].strip().startswith("#")] == []


def test_the_preset_default_is_what_no_arguments_give() -> None:
    plain, preset = CMRMonitorCallback(), CMRMonitorCallback(**load_preset("default"))
    assert plain.monitor.config == preset.monitor.config
    assert plain.monitor.alert_config == preset.monitor.alert_config
    assert plain.monitor.history_config == preset.monitor.history_config
    assert plain.monitor.profiling_config == preset.monitor.profiling_config
    assert plain.monitor.resources_config == preset.monitor.resources_config
    assert plain.sinks_config == preset.sinks_config


def test_there_are_four_presets() -> None:
    assert preset_names() == ("default", "minimal", "quiet", "strict")
    with pytest.raises(ConfigError, match="did you mean 'strict'"):
        load_preset("strickt")


def test_the_callbacks_group_holds_a_target() -> None:
    group = yaml.safe_load((config_root() / "callbacks" / "cmr_monitor.yaml").read_text())
    assert group["cmr_monitor"]["_target_"] == "cmr_monitor_callbacks.CMRMonitorCallback"


def test_a_layer_may_be_named_by_its_number() -> None:
    config = parse(MonitoringConfig, {"layers": [2, "encoder.*"]}, "monitoring")
    assert config.layers == ("2", "encoder.*")
    assert config.watches_layer(2) and not config.watches_layer(12)
    for wrong in (True, 2.5, None):
        with pytest.raises(ConfigError, match=r"monitoring\.layers\.1 must be a string"):
            parse(MonitoringConfig, {"layers": [2, wrong]}, "monitoring")
    with pytest.raises(ConfigError, match=r"monitoring\.layers must be a list, got 2"):
        parse(MonitoringConfig, {"layers": 2}, "monitoring")
