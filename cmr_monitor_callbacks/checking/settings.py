"""Settings from a file or a preset, as the callback would take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel

from cmr_monitor_callbacks.alerts import AlertDesk
from cmr_monitor_callbacks.checking.report import Channel, SettingsPart
from cmr_monitor_callbacks.config import (
    AlertConfig,
    HistoryConfig,
    MonitoringConfig,
    ProbesConfig,
    ProfilingConfig,
    ResourcesConfig,
    SinksConfig,
    load_preset,
    parse,
    preset_names,
)
from cmr_monitor_callbacks.config.channels import WITHOUT_SETTINGS
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.health import AlertRule
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.profiling import check_profiling

NODES: Final[Mapping[str, type[BaseModel]]] = {
    "monitoring": MonitoringConfig,
    "alerts": AlertConfig,
    "probes": ProbesConfig,
    "history": HistoryConfig,
    "profiling": ProfilingConfig,
    "resources": ResourcesConfig,
    "sinks": SinksConfig,
}
"""Arguments of `CMRMonitorCallback` that a file can set."""
_ROOT: Final = "cmr_monitor"
_ALSO_RULES: Final = ("training_stalled",)
"""Alerts that no rule raises."""


@dataclass(frozen=True)
class Settings:
    """Checked settings.

    Attributes:
        source: the file, or the name of the preset.
        monitoring: what is collected.
        alerts: rules and notifications, those of the rules file included.
        probes: how numbers leave the model.
        history: how much is kept of the windows.
        profiling: which steps are profiled.
        resources: what is sampled of the machine.
        sinks: where numbers go.
        rules: the rules in force.
        without_baseline: those that the recorded run they compare with has no number for.
    """

    source: str
    monitoring: MonitoringConfig
    alerts: AlertConfig
    probes: ProbesConfig
    history: HistoryConfig
    profiling: ProfilingConfig
    resources: ResourcesConfig
    sinks: SinksConfig
    rules: tuple[AlertRule, ...]
    without_baseline: tuple[str, ...] = ()

    def describe(self) -> SettingsPart:
        """What they say, secrets masked."""
        alerts = self.alerts
        channels = tuple(_channel(name, alerts) for name in alerts.alert_channels)
        rules = len(self.rules) if alerts.enable_alerts else 0
        return SettingsPart(self.source, rules, channels, tuple(_notes(self)))


def load_settings(source: str | None, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a file or a preset.

    Args:
        source: a YAML file with the arguments of `CMRMonitorCallback` as nodes, at the top or under
            ``cmr_monitor``; or the name of a preset; None: the preset ``default``.
        overrides: changes of single settings, in Hydra's notation.

    Raises:
        ConfigError: the file cannot be read, or a setting is wrong; the message names field, value
            and what is allowed.
    """
    name = "default" if source is None else source
    root = _read(name)
    for text in overrides:
        _override(root, text)
    try:
        given = OmegaConf.to_container(root[_ROOT], resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {_first_line(error)}") from None
    assert isinstance(given, dict)
    return _checked(name, {str(key): value for key, value in given.items()})


def _read(name: str) -> DictConfig:
    """The file's nodes under ``cmr_monitor``, beside what else is in the file."""
    path = Path(name)
    if not path.exists() and path.suffix not in (".yaml", ".yml") and path.name == name:
        if name not in preset_names():
            hint = nearest(name, preset_names())
            raise ConfigError(f"there is no file {name!r}, and no preset of that name; {hint}")
        return OmegaConf.create({_ROOT: load_preset(name)})
    try:
        loaded = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{name} must be a mapping, got a list")
    if _ROOT not in loaded:
        return OmegaConf.create({_ROOT: loaded})
    if not isinstance(loaded[_ROOT], DictConfig):
        raise ConfigError(f"{_ROOT} in {name} must be a mapping, got {loaded[_ROOT]!r}")
    return loaded


def _override(root: DictConfig, text: str) -> None:
    key = text.partition("=")[0]
    try:
        change = OverridesParser.create().parse_override(text)
    except HydraException:
        # its message repeats the value, which may be a secret
        raise ConfigError(
            f"override {key!r} cannot be read; write it as Hydra takes it, such as "
            "monitoring.log_every_n_steps=10"
        ) from None
    if change.is_sweep_override():
        raise ConfigError(f"override {key!r} must have one value, not several to choose from")
    path = change.key_or_group
    path = path if path.startswith(f"{_ROOT}.") else f"{_ROOT}.{path}"
    try:
        _apply(root, path, change)
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"override {key!r}: {_first_line(error)}") from None


def _apply(root: DictConfig, path: str, change: Override) -> None:
    if not change.is_delete():
        OmegaConf.update(root, path, change.value(), force_add=True)
        return
    above, _, leaf = path.rpartition(".")
    holder = OmegaConf.select(root, above)
    if not isinstance(holder, DictConfig) or leaf not in holder:
        raise ConfigError(f"override '~{path.partition('.')[2]}': there is no such setting")
    del holder[leaf]


def _checked(name: str, given: dict[str, Any]) -> Settings:
    given.pop("_target_", None)
    unknown = [key for key in given if key not in NODES]
    if "defaults" in unknown:
        raise ConfigError(
            f"{name} has a list of defaults, which Hydra composes; have it composed first "
            "(python train.py --cfg job) and check what comes out"
        )
    lines = [f"{key} is not a node of {name}; {nearest(key, NODES)}" for key in unknown]
    nodes: dict[str, Any] = {}
    for node, model in NODES.items():
        try:
            nodes[node] = parse(model, given.get(node), node)
        except ConfigError as error:
            lines.append(str(error))
    if lines:
        raise ConfigError("\n".join(lines))
    # as the run will: what it refuses, such as a rules file that is away, is refused here
    desk = AlertDesk(nodes["alerts"], nodes["monitoring"].alert_thresholds, 0.0, 1)
    nodes["alerts"] = desk.config
    names, more = [rule.name for rule in desk.rules], bool(desk.config.rules_file)
    check_profiling(nodes["monitoring"], nodes["profiling"], names, more)
    return Settings(name, rules=desk.rules, without_baseline=desk.without_baseline, **nodes)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _channel(name: str, alerts: AlertConfig) -> Channel:
    config = alerts.channels[name]
    settings = config.model_dump(mode="json", exclude={"type", "min_severity", "function"})
    return Channel(name, config.kind, config.min_severity, settings)


def _notes(settings: Settings) -> list[str]:
    """What may not be meant."""
    alerts, notes = settings.alerts, []
    if not alerts.enable_alerts:
        notes.append("enable_alerts is false: no rule is judged")
    elif not alerts.alert_channels:
        notes.append("alert_channels is empty: nobody is told of alerts")
    notes += [
        f"channel {name!r} has settings, but is not in alert_channels: it is told of nothing"
        for name in alerts.channels
        if name not in (*WITHOUT_SETTINGS, *alerts.alert_channels)
    ]
    notes += [f"rule {name!r} is disabled" for name, r in alerts.rules.items() if not r.enabled]
    notes += [
        f"rule {name!r} compares with {alerts.baseline}, which has no {alerts.rules[name].metric}: "
        "it never has data"
        for name in settings.without_baseline
    ]
    names = [*(rule.name for rule in settings.rules), *_ALSO_RULES]
    globs = [(f"silences[{i}].match", one.match) for i, one in enumerate(alerts.silences)]
    for i, one in enumerate(alerts.inhibit):
        globs += [(f"inhibit[{i}].source", one.source), (f"inhibit[{i}].target", one.target)]
    for where, labels in globs:
        glob = labels.get("alert", "*")
        if not any(matches(glob, name) for name in names):
            notes.append(f"{where}: no rule in force is named {glob!r}")
    sinks = settings.sinks
    if not sinks.loggers and not sinks.callback_metrics:
        notes.append("sinks.loggers and sinks.callback_metrics are false: numbers go to no logger")
    return notes
