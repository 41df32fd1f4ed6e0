"""docs/reports.md does what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from typer.testing import CliRunner

from cmr_monitor_callbacks.cli import app
from cmr_monitor_callbacks.reports import contents, tables
from tests.pages import rows, snippets, text_of
from tests.reported import filled

PAGE = "docs/reports.md"
SCHEMA = json.loads(Path(contents.__file__).with_name("report.schema.json").read_text("utf-8"))


def is_part(part: Any, whole: Any) -> bool:
    """Whether all that one says is in the other."""
    if isinstance(part, dict):
        return all(key in whole and is_part(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) <= len(whole) and all(
            any(is_part(item, other) for other in whole) for item in part
        )
    return bool(part == (pytest.approx(whole) if isinstance(whole, float) else whole))


def test_the_example_is_the_report_of_the_loop() -> None:
    names: dict[str, Any] = {"model": torch.nn.Linear(1, 1)}
    exec(snippets(PAGE, "python")[0], names)
    report = names["report"]
    jsonschema.Draft202012Validator(SCHEMA).validate(report)
    [example] = snippets(PAGE, "json")
    shown = json.loads(example)
    # steps that do nothing: whether the monitor's share of them is too much, the machine decides
    assert {shown.pop("system_health"), report["system_health"]} <= {"healthy", "warning"}
    for key, value in shown.items():
        assert is_part(value, report[key]), (key, report[key])
    assert report["alerts"]["firing"], "the example has an alert"


def test_a_report_of_a_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "lightning_logs" / "version_0" / "history.sqlite")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippets(PAGE, "python")[1], names)
    assert names["report"]["run"]["folder"] == "version_0"


def test_every_command_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "RUN" / "history.sqlite")
    monkeypatch.chdir(tmp_path)
    [console] = snippets(PAGE, "console")
    for line in console.splitlines():
        name, *arguments = line.split()
        assert name == "cmr-monitor"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"{line}: {done.output}"
        if arguments == ["report", "RUN"]:
            assert done.output.startswith("# CMR run RUN\n")
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(Path("report.json").read_text()))
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    written = {path.name for path in Path("export").iterdir()}
    told = {row[0].strip("`") for row in rows(PAGE, "CSV and Parquet")} - {"time_series_val`, …"}
    assert written == {f"{name}.{form}" for name in told for form in ("csv", "parquet")}
    shutil.rmtree("export")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "RUN", "--range", "soon"], "--range must be a length of time such as 90s"),
        (["report", "RUN", "--format", "pdf"], "got 'pdf'"),
        (["report", "nowhere"], "there is no history at 'nowhere'"),
        (["export", "RUN", "--format", "xlsx"], "--format must be one of them, got 'xlsx'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "RUN" / "history.sqlite", 5)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_every_key_of_the_report_is_described() -> None:
    text = text_of(PAGE)
    for key in SCHEMA["required"]:
        assert f"`{key}`" in text, key


def test_the_columns_of_the_tables_are_those_of_the_files(tmp_path: Path) -> None:
    by_file = {row[0].strip("`"): row[2] for row in rows(PAGE, "CSV and Parquet")}
    for name, columns in (("alerts", tables._ALERTS), ("health", tables._HEALTH)):
        told = [part for part in by_file[name].split("`")[1::2] if part != "system"]
        assert set(told) <= set(columns) and len(told) >= 5
