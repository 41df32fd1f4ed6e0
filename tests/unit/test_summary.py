"""The summary at the end of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.reports import run_summary


@pytest.mark.parametrize("name", ["[/red]", "[red]x", "blocks[0]", "a\nb", "🦊 [link=x]", "[bold"])
def test_a_summary_shows_names_as_they_are(name: str) -> None:
    """Brackets in the name of a layer or a rule are no markup."""
    model = nn.Module()
    model.probe = CMRProbe(name)
    rule = {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "condition": "<",
        "thresholds": {"warning": 0.5},
    }
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1}, alert_config={"rules": {name: rule}, "alert_channels": []}
    )
    monitor.attach(model)
    model.probe.capture(attempted=10, captured=10, stored=1)
    monitor.step()
    console = Console(file=io.StringIO(), width=200)
    console.print(
        run_summary(monitor.snapshot, monitor.health, list(monitor.alerts.transitions), name)
    )
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    first = name.split("\n")[0]
    assert shown.count(first) >= 4, "the layer, the rule, the message, the folder"
    monitor.detach()
