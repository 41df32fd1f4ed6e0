"""A rules file that is edited while a run goes on: whatever is in it, the run goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import CMRPerformanceMonitor, ConfigError
from tests.unit.alerts.test_complaints import Story

RULE = (
    "{metric: storage_efficiency, select: {layer: '*'}, condition: '<', thresholds: {warning: 1}}"
)


class Edited(Story):
    """A run with a rules file."""

    def __init__(self, path: Path, **alerts: Any) -> None:
        self.path, self.edits = path, 0
        self.write(f"rules: {{edited: {RULE}}}")
        super().__init__(
            rules={"other": {"metric": "failures", "thresholds": {"error": 99}}},
            rules_file=str(path),
            **alerts,
        )

    def write(self, text: str) -> None:
        self.edits += 1
        new = self.path.with_suffix(".new")
        new.write_text(text)
        os.utime(new, (self.edits, self.edits))
        os.replace(new, self.path)


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    return Edited(tmp_path / "rules.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alerts:\n",
        "alerts: [1]\n",
        "alerts: text\n",
        "rules: {edited: !!int x}\n",
        "rules: &a {edited: *a}\n",
        "silences: [{match: {alert: x}, until: 2026-13-45}]\n",
        "[" * 5000,
        "1: 2\n",
        "\t- x\n",
        "rules: {edited: {metric: step_time, thresholds: {warning: !!set {a, b}}}}\n",
        "rules: {edited: {metric: step_time, thresholds: {warning: 1}, summary: '{threshold[0]}'}}",
        "rules: {edited: {metric: step_time, thresholds: {2026-01-31: 1}}}\n",
        "rules: {2026-01-31: {metric: step_time}}\n",
    ],
)
def test_rubbish_leaves_the_rules_as_they_were_and_the_run_goes_on(
    edited: Edited, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert edited.windows(0.4) == ["WARNING edited"]
    edited.write(text)
    assert edited.windows(0.4, 0.4) == []
    assert caplog.text.count("the rules stay as they were") == 1, "said once, and why"
    assert edited.firing == ["edited"]
    assert edited.monitor.windows == 3
    edited.write("rules: {}")
    assert edited.windows(0.4) == ["RESOLVED edited"]


@pytest.mark.parametrize(
    "until", ["2026-01-31", "2026-01-31 12:00:00", "2026-01-31T12:00:00+01:00"]
)
def test_a_silence_may_end_at_a_date_as_yaml_has_it(edited: Edited, until: str) -> None:
    """The edit travels as JSON, which has no dates."""
    edited.write(
        f"rules: {{edited: {RULE}}}\nsilences: [{{match: {{alert: edited}}, until: {until}}}]"
    )
    assert edited.windows(0.4) == []
    assert edited.firing == ["edited"], "the clock of the test is in 1970"
    edited.clock.advance(2e9)
    assert edited.windows(0.4) == ["WARNING edited"]


def test_an_edit_that_does_not_go_with_the_short_form_leaves_the_rules_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(f"rules: {{edited: {RULE}}}")
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1, "on_monitor_error": "raise", "alert_thresholds": {"edited": 0.3}},
        alert_config={"rules": {}, "rules_file": str(path)},
    )
    path.write_text("rules: {}")
    monitor.step()
    assert "the rules stay as they were: monitoring.alert_thresholds.edited" in caplog.text
    assert [rule.name for rule in monitor.alerts.rules] == ["edited"]


def test_a_file_that_is_gone_is_said_to_be(
    edited: Edited, caplog: pytest.LogCaptureFixture
) -> None:
    edited.windows(0.4)
    edited.path.unlink()
    edited.windows(0.4)
    assert caplog.text == "", "an editor takes a file away for a moment"
    edited.windows(0.4, 0.4)
    assert caplog.text.count("the rules stay as they were") == 1
    assert edited.firing == ["edited"]


def test_a_renamed_rule_is_another(edited: Edited) -> None:
    assert edited.windows(0.4) == ["WARNING edited"]
    edited.write(f"rules: {{renamed: {RULE}}}")
    assert edited.windows(0.4) == ["RESOLVED edited", "WARNING renamed"]


def test_a_rules_file_beside_a_function_as_channel(tmp_path: Path) -> None:
    edited = Edited(tmp_path / "rules.yaml", channels={"page": print}, alert_channels=["page"])
    edited.write("rules: {}")
    edited.windows(0.4)
    assert [rule.name for rule in edited.monitor.alerts.rules] == ["other"]


@pytest.mark.parametrize("text", ["alerts:\n", "silences: [{until: 2026-13-45}]\n"])
def test_rubbish_at_the_start_is_an_error_of_the_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"alerts\.rules_file .* (must be|cannot be read)"):
        CMRPerformanceMonitor(alert_config={"rules_file": str(path)})
