"""The manual of the machine: its table is the catalogue's, its settings and its snippet work."""

from __future__ import annotations

import re
from typing import Any

import yaml

from cmr_monitor_callbacks import ResourceMonitorCallback, ResourcesConfig
from cmr_monitor_callbacks.catalogue import OWN_METRICS, RESOURCE_NAMES
from cmr_monitor_callbacks.config import load_preset, parse
from cmr_monitor_callbacks.resources.samples import SAMPLED
from tests.pages import check_settings, rows, snippets, text_of

PAGE = "docs/resources.md"


def test_the_table_names_every_number() -> None:
    table = rows(PAGE, "What is sampled")
    named = [name for row in table for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(SAMPLED)
    greatest = [name for name in SAMPLED if f"{name}_max" in RESOURCE_NAMES]
    assert greatest == [
        *("cpu_percent", "process_rss_mb", "host_memory_percent"),
        *("gpu_utilization", "gpu_memory_used_mb", "gpu_memory_percent"),
        *("gpu_temperature", "gpu_power"),
    ]


def test_every_number_is_in_the_catalogue() -> None:
    own = {metric.name: metric for metric in OWN_METRICS}
    assert set(RESOURCE_NAMES) <= set(own)
    assert {own[name].component for name in RESOURCE_NAMES} == {"resources"}
    assert own["gpu_power_max"].over_ranks == "max"
    assert own["gpu_power"].over_ranks == "mean"
    assert own["disk_free_mb"].over_steps == "min of samples"


def test_the_settings_of_the_page() -> None:
    [snippet] = snippets(PAGE, "yaml")
    check_settings(snippet).detach()
    shown = yaml.safe_load(snippet)["resources"]
    assert set(shown) == set(ResourcesConfig.model_fields)
    given = parse(ResourcesConfig, shown, "resources")
    assert given == ResourcesConfig(disks=("/scratch",))  # all else as by default
    assert load_preset("minimal")["resources"]["enabled"] is False


def test_the_snippet_makes_a_trainer() -> None:
    names: dict[str, Any] = {}
    [snippet] = snippets(PAGE, "python")
    exec(compile(snippet, PAGE, "exec"), names)
    [ours] = [c for c in names["trainer"].callbacks if isinstance(c, ResourceMonitorCallback)]
    assert ours.config.interval == 5.0


def test_the_rules_of_the_page_are_the_presets() -> None:
    rules = load_preset("default")["alerts"]["rules"]
    of_the_machine = {name for name, rule in rules.items() if rule["metric"] in RESOURCE_NAMES}
    [section] = re.findall(r"## Rules\n\n(.*?)\n## ", text_of(PAGE), re.DOTALL)
    assert {*re.findall(r"`(\w+)`", section)} - {"default", "quiet", "strict"} == of_the_machine
