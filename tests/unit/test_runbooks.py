"""Runbooks: one for every rule of every preset; what they name exists, what they show works."""

from __future__ import annotations

import faulthandler
import re
import signal
from collections.abc import Iterator

import pytest
from torch import nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.catalogue import COMPONENTS, RECORDS, known_names
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.config import (
    AlertConfig,
    AlertThresholds,
    DetectorConfig,
    EscalationConfig,
    HistoryConfig,
    InhibitConfig,
    MonitoringConfig,
    ProbesConfig,
    ResourcesConfig,
    RouteConfig,
    RuleConfig,
    SilenceConfig,
    load_preset,
    parse,
    preset_names,
)
from tests.pages import ROOT, check_settings, check_tags, rows, snippets, text_of

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/runbooks/*.md"))
WITHOUT_RULE = {"docs/runbooks/training_stalled.md"}
"""No window ends there, so no rule can run."""
RULES = {
    (preset, name): rule
    for preset in preset_names()
    for name, rule in parse(AlertConfig, load_preset(preset)["alerts"], "alerts").rules.items()
}
DEFAULT = {name: rule for (preset, name), rule in RULES.items() if preset == "default"}
SETTINGS = {
    field
    for model in (
        AlertConfig,
        AlertThresholds,
        DetectorConfig,
        EscalationConfig,
        HistoryConfig,
        InhibitConfig,
        MonitoringConfig,
        ProbesConfig,
        ResourcesConfig,
        RouteConfig,
        RuleConfig,
        SilenceConfig,
    )
    for field in model.model_fields
}
FIELDS = {field for fields in RECORDS.values() for field in fields}
READ = {"error_log", "world_size", "since_step", "on_monitor_error"}
"""Attributes of the monitor, its snapshot and its alerts."""
ELSEWHERE = {
    "all_reduce",
    "collate_fn",
    "configure_model",
    "drop_last",
    "expandable_segments",
    "num_alloc_retries",
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "prefetch_factor",
    "record_capture",
    "save_checkpoint",
    "save_top_k",
    "save_weights_only",
    "set_alert",
    "validation_step",
}
"""Names of torch and Lightning, and calls of the monitor."""


def prose(page: str) -> str:
    return re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)


def rule_row(name: str, rule: RuleConfig) -> list[str]:
    """What a page's table says of a rule."""

    def shown(value: float | tuple[float, float] | None) -> str:
        if value is None:
            return ""
        return f"[{value[0]:g}, {value[1]:g}] " if isinstance(value, tuple) else f"{value:g} "

    condition = "is not finite" if rule.condition == "nonfinite" else rule.condition
    limits = ", ".join(f"{shown(t.fire)}({s})" for s, t in rule.thresholds.items())
    beside = "" if rule.compare is None else f" / `{rule.compare.vs}`"
    when = "" if rule.when is None else f", while `{rule.when}`"
    of = "layer" if rule.select.layer else "rank" if rule.select.rank else "model"
    hold = "–" if rule.for_ == 0 else str(rule.for_)
    return [f"`{name}`", f"`{rule.metric}`{beside} {condition} {limits}{when}", of, hold]


def test_every_rule_of_every_preset_has_a_page() -> None:
    assert {preset for preset, _ in RULES} >= {"default", "strict", "quiet"}
    named = {rule.runbook for rule in RULES.values()}
    assert named == set(PAGES) - WITHOUT_RULE


@pytest.mark.parametrize("page", [page for page in PAGES if page not in WITHOUT_RULE])
def test_a_page_begins_with_the_rules_that_lead_there(page: str) -> None:
    table = rows(page, text_of(page).splitlines()[0].removeprefix("# "))
    assert table == [rule_row(n, rule) for n, rule in DEFAULT.items() if rule.runbook == page]
    for (preset, name), rule in RULES.items():
        assert rule.runbook != page or f"`{name}`" in text_of(page), (preset, name)


@pytest.mark.parametrize("page", PAGES)
def test_every_tag_exists_and_is_logged(page: str) -> None:
    check_tags(page)


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_a_page_is_one(page: str) -> None:
    known = {
        *known_names(),
        *(name for _, name in RULES),
        *SETTINGS,
        *FIELDS,
        *COMPONENTS,
        *READ,
        *ELSEWHERE,
    }
    known |= {path.split("/")[-1].removesuffix(".md") for path in PAGES}
    spans = re.findall(r"`([^`]+)`", prose(page))
    names = {n for span in spans for n in re.findall(r"(?<![\w./])[a-z]+(?:_[a-z0-9]+)+\b", span)}
    names = {n for n in names if not n.startswith("cmr_")}
    assert names <= known, sorted(names - known)


@pytest.mark.parametrize("page", PAGES)
def test_every_yaml_snippet_is_valid_and_says_something(page: str) -> None:
    found = snippets(page, "yaml")
    assert found
    for snippet in found:
        check_settings(snippet).detach()


def test_a_wrong_snippet_is_found() -> None:
    with pytest.raises(AssertionError, match="says nothing new"):
        check_settings("alerts: {rules: {straggler: {enabled: true}}}")
    with pytest.raises(AssertionError, match="stragler is no rule"):
        check_settings("alerts: {silences: [{match: {alert: stragler}}]}")
    with pytest.raises(ValueError, match=r"rules\.stragler\.metric is required"):
        check_settings("alerts: {rules: {stragler: {enabled: false}}}")


@pytest.fixture(scope="module")
def callback() -> Iterator[CMRMonitorCallback]:
    """A run of two layers, six windows of two steps; layer 6's buffer refuses, one value is bad."""
    model, clock = nn.Module(), ManualClock()
    model.four, model.six = CMRProbe(4), CMRProbe(6)
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 2}, alert_config={"alert_channels": []}, model=model, clock=clock
    )
    for step in range(12):
        with monitor.track_performance():
            for probe, stored in ((model.four, 10), (model.six, 3)):
                probe.capture(12, 10, stored, 0.001, considered=40)
                probe.buffer(10 * step, 200, 40 * step, evicted=2)
                probe.retrieval(1, 8, 0, 0.002, 0.5)
                probe.reconstruction(8, 1.5 if step == 3 else 0.9, 0.001)
            if step == 11:
                model.four.error(RuntimeError("no room"))
            clock.advance(0.1)
        clock.advance(0.05)
    yield CMRMonitorCallback(monitor=monitor)
    monitor.detach()


@pytest.mark.parametrize("page", PAGES)
def test_every_python_snippet_runs(
    page: str, callback: CMRMonitorCallback, capfd: pytest.CaptureFixture[str]
) -> None:
    found = snippets(page, "python")
    assert found
    try:
        for snippet in found:
            exec(compile(snippet, page, "exec"), {"callback": callback})
    finally:
        faulthandler.unregister(signal.SIGUSR1)
    prints = any("print(" in snippet for snippet in found)
    assert bool(capfd.readouterr().out) is prints


def test_what_the_snippets_print_shows_the_fault(
    callback: CMRMonitorCallback, capfd: pytest.CaptureFixture[str]
) -> None:
    def shown(name: str) -> str:
        [snippet] = snippets(f"docs/runbooks/{name}.md", "python")
        exec(snippet, {"callback": callback})
        return capfd.readouterr().out

    assert "layer 6: took 30%, 55% full" in shown("storage_refused")
    assert "('reconstruction.quality', 2)" in shown("samples_rejected")
    assert "layer 4: RuntimeError: no room" in shown("memory_errors")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_and_in_order(page: str) -> None:
    text = text_of(page)
    assert 40 <= len(text.splitlines()) <= 80
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[:3] == ["Usual causes", "How to look", "What to do"]
    assert len(headings) == 4


def test_no_name_is_allowed_that_no_page_uses() -> None:
    everything = "".join(prose(page) for page in PAGES)
    unused = [name for name in (*READ, *ELSEWHERE) if name not in everything]
    assert not unused
