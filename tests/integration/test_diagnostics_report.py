"""What the diagnostics found is in the report, by its schema, and in the Markdown made of it."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import pytest

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.markdown import to_markdown
from tests.integration.test_diagnostics import FAULTS, diagnosed


@pytest.fixture(scope="module")
def schema() -> dict[str, object]:
    text = files("cmr_monitor_callbacks").joinpath("reports/report.schema.json").read_text()
    found: dict[str, object] = json.loads(text)
    return found


def test_findings_are_in_the_report(schema: dict[str, object]) -> None:
    model, monitor = diagnosed(FAULTS["a layer that nobody reads"])
    report = monitor.generate_report(None)
    jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), schema)
    told = monitor.run_diagnostics()
    assert report["diagnostics"]["findings"] == told["findings"] != []
    assert report["diagnostics"]["status"] == "warning"
    text = to_markdown(report)
    assert "## Diagnostics at step 59: warning" in text
    assert "- **warning** `dead_layer`, layer 3: it holds 64 entries" in text
    assert model.training


def test_a_report_made_later_has_none(schema: dict[str, object]) -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    with monitor.track_performance():
        pass
    for report in (monitor.generate_report(None), report_of(monitor.history)):
        jsonschema.validate(report, schema)
        assert report["diagnostics"] is None
        assert "Diagnostics" not in to_markdown(report)
