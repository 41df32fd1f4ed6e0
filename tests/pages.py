"""Pages of the documentation: their snippets, and the settings that these stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.config import (
    AlertConfig,
    MonitoringConfig,
    ProbesConfig,
    ResourcesConfig,
    SinksConfig,
    load_preset,
    parse,
)
from cmr_monitor_callbacks.layers import matches

ROOT = Path(__file__).resolve().parents[1]
NODES: Mapping[str, type[BaseModel]] = {
    "monitoring": MonitoringConfig,
    "alerts": AlertConfig,
    "probes": ProbesConfig,
    "resources": ResourcesConfig,
    "sinks": SinksConfig,
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def snippets(page: str, language: str) -> list[str]:
    """What stands between the fences of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def overrides(page: str) -> list[list[str]]:
    """Hydra's overrides of each line of a page's consoles that has any."""
    lines = "".join(snippets(page, "console")).splitlines()
    return [line.split()[2:] for line in lines if "+cmr_monitor=" in line]


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}.*$", text_of(page), flags=re.MULTILINE)[1]
    table = section[section.index("| --- |") :].split("\n\n")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in table.splitlines()[1:]
    ]


def merged(snippet: str) -> dict[str, Any]:
    """A YAML snippet over the preset `default`, as Hydra merges them."""
    given = yaml.safe_load(snippet)
    assert set(given) <= set(NODES), f"no nodes of the configuration: {sorted(given)}"
    together = OmegaConf.merge(load_preset("default"), given)
    plain = OmegaConf.to_container(together, resolve=True)
    assert isinstance(plain, dict)
    return {str(node): value for node, value in plain.items()}


def check_settings(snippet: str) -> CMRPerformanceMonitor:
    """A monitor with a snippet's settings, which are valid, differ from the preset and meet rules.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = merged(snippet)
    parsed = {name: parse(model, settings[name], name) for name, model in NODES.items()}
    preset = load_preset("default")
    for name in yaml.safe_load(snippet):
        assert parsed[name] != parse(NODES[name], preset[name], name), f"{name} says nothing new"
    monitor = CMRPerformanceMonitor(
        parsed["monitoring"],
        alert_config=parsed["alerts"],
        probes=parsed["probes"],
        resources=parsed["resources"],
    )
    check_globs(parsed["alerts"])
    return monitor


def check_globs(alerts: BaseModel) -> None:
    """Silences and inhibitions are of rules that there are."""
    assert isinstance(alerts, AlertConfig)
    labels = [silence.match for silence in alerts.silences]
    labels += [end for rule in alerts.inhibit for end in (rule.source, rule.target)]
    for glob in (given["alert"] for given in labels if "alert" in given):
        assert any(matches(glob, name) for name in alerts.rules), f"{glob} is no rule"


def check_tags(page: str) -> None:
    """Every tag of a page is of a metric that there is, and logged where nobody chose otherwise."""
    for tag in re.findall(r"\bcmr_\w+/[\w/]+", text_of(page)):
        _, name, *rest = tag.split("/")
        info = BY_NAME[name]
        assert tag.startswith(info.tag), tag
        if rest and rest[0].startswith("rank_"):
            assert tag == "cmr_timing/avg_forward_time/rank_003"
        elif rest:
            assert rest == ["layer_04"], tag
            assert info.layer_tag, f"{tag} is not logged by default"
        else:
            assert info.whole_tag, f"{tag} is not logged by default"
