"""The manual of the diagnostics says what the table does."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.config import DiagnosticsConfig
from cmr_monitor_callbacks.diagnostics import (
    DIAGNOSTICS,
    SECTIONS,
    buffers,
    cross_checks,
    diagnostics_table,
    holdings,
    reading_memory,
    setting_up,
)

MANUAL = (Path(__file__).parents[3] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
MODULES = (setting_up, buffers, holdings, reading_memory, cross_checks)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_diagnostic_is_in_the_manual_as_it_is_in_the_table() -> None:
    rows = [
        cells(line) for line in MANUAL.splitlines() if re.match(r"\| `\w+` \| \w+ \| \w+ \|", line)
    ]
    assert [(row[0].strip("`"), row[1], row[2], row[5]) for row in rows] == [
        (one.name, one.severity.value, one.component, one.advice) for one in DIAGNOSTICS
    ]


def test_every_threshold_in_the_manual_has_its_value() -> None:
    rows = [cells(line) for line in MANUAL.splitlines() if re.match(r"\| [A-Z_]+ \| ", line)]
    told = {name: float(value) for name, value, _ in rows}
    known = {
        name: float(value)
        for module in MODULES
        for name, value in vars(module).items()
        if re.fullmatch(r"[A-Z][A-Z_]+", name) and isinstance(value, (int, float))
    }
    assert told == known
    used = set(
        re.findall(r"\b[A-Z][A-Z_]{2,}\b", MANUAL.partition("## Every")[2].partition("## T")[0])
    )
    assert used - {"NaN"} <= known.keys()


def test_every_setting_and_every_section_is_in_the_manual() -> None:
    for name, field in DiagnosticsConfig.model_fields.items():
        assert f"| `{name}` | {json.dumps(field.default)} |" in MANUAL
    for section in SECTIONS:
        assert f"`{section}`" in MANUAL


def test_every_diagnostic_says_what_it_is_and_what_to_do() -> None:
    names = [one.name for one in DIAGNOSTICS]
    assert len(names) == len(set(names))
    for one in DIAGNOSTICS:
        assert one.run.__doc__ and one.advice.endswith(".") and one.section in SECTIONS


def test_the_terminal_shows_findings_and_what_was_not_looked_at() -> None:
    console = Console(width=120, file=io.StringIO())
    console.print(diagnostics_table(CMRPerformanceMonitor().run_diagnostics()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Diagnostics at step -1: warning" in text
    assert "no_memory_found" in text
    assert "the model is gone, or none was attached" in text
