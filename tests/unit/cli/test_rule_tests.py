"""Tests of rules: the shipped ones, the command, and what it says of files that are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cmr_monitor_callbacks.cli import app
from cmr_monitor_callbacks.config import config_root, preset_names
from cmr_monitor_callbacks.health.notation import expand
from cmr_monitor_callbacks.rule_tests import run_file
from tests.pages import snippets

FOLDER = config_root() / "rule_tests"
SHIPPED = sorted(FOLDER.glob("*.yaml"))
RULES = {"rules": {"slow": {"metric": "avg_latency", "condition": ">", "thresholds": {"error": 1}}}}


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["test-rules", *map(str, arguments)])
    return done.exit_code, done.output


def write(folder: Path, **changes: Any) -> Path:
    """A test that holds, with changes."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    test: dict[str, Any] = {
        "input_series": [{"series": "avg_latency", "values": "0.5 2x3"}],
        "alert_rule_test": [
            {"eval_time": "0s", "alertname": "slow"},
            {
                "eval_time": "1m",
                "alertname": "slow",
                "exp_alerts": [{"exp_labels": {"severity": "error"}}],
            },
        ],
    }
    test.update(changes.pop("test", {}))
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test], **changes}
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


def test_the_shipped_presets_have_tests_and_pass_them() -> None:
    assert {path.stem for path in SHIPPED} == set(preset_names()) - {"minimal"}  # it has no rules
    for path in SHIPPED:
        outcome = run_file(path)
        assert outcome.failures == []
        assert outcome.expectations >= 3


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path)
    code, output = run(path, *SHIPPED)
    assert code == 0
    assert output.count("SUCCESS") == 1 + len(SHIPPED)
    done = subprocess.run(
        [sys.executable, "-m", "cmr_monitor_callbacks.cli", "test-rules", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_not_as_expected_is_shown(tmp_path: Path) -> None:
    expected = {"exp_labels": {"severity": "error", "layer": "4"}}
    test = {"eval_time": "1m", "alertname": "slow", "exp_alerts": [expected]}
    path = write(tmp_path, test={"name": "[red]", "alert_rule_test": [test]})
    code, output = run(path)
    assert code == 1
    lines = [line.strip() for line in output.splitlines()]
    assert lines[0].endswith("tests.yaml: FAILED (0 of 1 as expected)")
    assert lines[1] == "[red]: slow at 1m"
    assert lines[2] == 'expected: firing {layer="4", severity="error"}'
    assert lines[3].startswith('got: firing {severity="error", component="timing"} summary: avg_la')


@pytest.mark.parametrize(
    "series",
    [
        {"exp_alerts": []},
        {"exp_alerts": [{"exp_labels": {"severity": "warning"}}]},
        {"exp_alerts": [{}, {}]},
        {"exp_alerts": [{"exp_annotations": {"summary": "something else"}}]},
        {"exp_alerts": [{"state": "pending"}]},
        {"exp_alerts": [{"exp_labels": {"severity": "error", "rank": "0"}}]},
    ],
)
def test_every_difference_fails(tmp_path: Path, series: Any) -> None:
    test = {"eval_time": "2m", "alertname": "slow", **series}
    assert run(write(tmp_path, test={"alert_rule_test": [test]}))[0] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule_files": ["away.yaml"]}, "away.yaml cannot be read"),
        ({"rule_files": []}, "rule_files or preset must say which rules are tested"),
        ({"preset": "defalt"}, "no preset is named 'defalt'; did you mean 'default'"),
        ({"testz": []}, "testz is not a setting; did you mean 'tests'"),
        (
            {"test": {"alert_rule_test": [{"eval_time": "1m", "alertname": "slwo"}]}},
            "no rule is named 'slwo'; did you mean 'slow'",
        ),
        (
            {"test": {"input_series": [{"series": "avg_latncy", "values": "1"}]}},
            "no metric is named 'avg_latncy'; did you mean 'avg_latency'",
        ),
        (
            {"test": {"input_series": [{"series": 'avg_latency{layr="4"}', "values": "1"}]}},
            "did you mean 'layer'",
        ),
        (
            {"test": {"input_series": [{"series": "avg_latency", "values": "1 2y3"}]}},
            "'2y3' is no part of a series",
        ),
        ({"evaluation_interval": "0s"}, "must be longer than 0 s"),
        (
            {"test": {"input_series": [{"series": 'avg_latency{rank="7"}', "values": "1"}]}},
            "rank must be less than ranks (1), got 7",
        ),
        (
            {"test": {"input_series": [{"series": "avg_latency", "values": "1"}] * 2}},
            "input_series.1: avg_latency is given twice",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, changes: Any, message: str) -> None:
    code, output = run(write(tmp_path, **changes))
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("tests: [")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("away.yaml", "broken.yaml", "binary.yaml", "."):
        code, output = run(tmp_path / name)
        assert code == 2
        assert "cannot be read" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alerts:\n", "has no mapping 'rules'"),
        ("alerts: [1]", "has no mapping 'rules'"),
        ("rules: {slow: 2026-13-45}", "cannot be read: month must be in 1..12"),
    ],
)
def test_rules_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path)
    (tmp_path / "rules.yaml").write_text(text)
    code, output = run(path)
    assert code == 2
    assert message in output


def test_an_empty_file_of_tests(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    code, output = run(tmp_path / "empty.yaml")
    assert code == 2
    assert "empty.yaml.tests is required" in output


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", []),
        ("1x0", [1.0]),
        ("-1.5e1-0.5x2", [-15.0, -15.5, -16.0]),
        ("_ _x2 stale NaN", [None] * 5),
        ("+Inf -Infx1", [float("inf"), float("-inf"), float("-inf")]),
    ],
)
def test_notation(text: str, values: list[float | None]) -> None:
    assert expand(text) == values


@pytest.mark.parametrize("text", ["1+2", "x3", "1x-1", "1x2x3", "_x", "1,2", "0x1F+1"])
def test_what_is_no_series(text: str) -> None:
    with pytest.raises(ValueError, match="is no part of a series"):
        expand(text)


def test_the_manuals_example(tmp_path: Path) -> None:
    rules, tests = snippets("docs/rule-tests.md", "yaml")
    (tmp_path / "rules.yaml").write_text(rules)
    (tmp_path / "rules_test.yaml").write_text(tests)
    code, output = run(tmp_path / "rules_test.yaml")
    assert code == 0, output


BASELINE = {
    "worse": {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "compare": {"vs": "baseline"},
        "condition": "<",
        "thresholds": {"error": 0.8},
    },
    "fewer": {
        "metric": "states_stored",
        "compare": {"vs": "baseline"},
        "condition": "<",
        "thresholds": {"error": 0.5},
    },
}


def write_baseline(folder: Path, recorded: list[dict[str, str]], *alerts: Any) -> Path:
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": BASELINE}))
    given = [
        {"series": 'storage_efficiency{layer="4"}', "values": "0.9x3 0.6x3"},
        {"series": "states_stored", "values": "100x3 40x3"},
    ]
    test = {"input_series": given, "baseline_series": recorded, "alert_rule_test": list(alerts)}
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump(file))
    return path


def test_a_recorded_run_is_made_up_in_the_file(tmp_path: Path) -> None:
    recorded = [
        {"series": 'storage_efficiency{layer="4"}', "values": "0.9 _ 0.9x5"},
        {"series": "states_stored", "values": "100x7"},
    ]
    fires = [{"exp_labels": {"severity": "error"}}]
    path = write_baseline(
        tmp_path,
        recorded,
        {"eval_time": "3m", "alertname": "worse"},
        {
            "eval_time": "4m",
            "alertname": "worse",
            "exp_alerts": [{"exp_labels": {"severity": "error", "layer": "4"}}],
        },
        {"eval_time": "3m", "alertname": "fewer"},
        {"eval_time": "4m", "alertname": "fewer", "exp_alerts": fires},
    )
    outcome = run_file(path)
    assert (outcome.expectations, outcome.failures) == (4, [])
    code, said = run(write_baseline(tmp_path, [], {"eval_time": "3m", "alertname": "worse"}))
    assert code == 2
    assert "test 1: worse compares with a recorded run; baseline_series must have its n" in said
    twice = [recorded[1], recorded[1]]
    code, said = run(write_baseline(tmp_path, twice, {"eval_time": "3m", "alertname": "worse"}))
    assert code == 2 and "baseline_series.1: states_stored is given twice" in said


def test_a_detector_is_tested_with_series_too(tmp_path: Path) -> None:
    rule = {
        "metric": "reconstruction_quality",
        "detector": {"channels": ["shift"]},
        "thresholds": {"error": 1},
        "summary": "{channel} from {before:.1f} to {now:.1f}",
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": {"fell": rule}}))
    file = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "input_series": [{"series": "reconstruction_quality", "values": "0.8x39 0.4x9"}],
                "alert_rule_test": [
                    {"eval_time": "39m", "alertname": "fell"},
                    {
                        "eval_time": "44m",
                        "alertname": "fell",
                        "exp_alerts": [{"exp_annotations": {"summary": "shift from 0.8 to 0.4"}}],
                    },
                ],
            }
        ],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(file))
    assert run_file(path).failures == []
