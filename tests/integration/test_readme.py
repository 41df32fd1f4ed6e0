"""What the README says of the history and of the command line, done with a real run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import pytorch_lightning as pl
from typer.testing import CliRunner

from cmr_monitor_callbacks import CMRMonitorCallback
from cmr_monitor_callbacks.cli import app
from tests.models import LAYERS, MemoryModule, loader, trainer
from tests.pages import snippets


def _train(folder: Path) -> CMRMonitorCallback:
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 2})
    logger = pl.loggers.TensorBoardLogger(str(folder), name="", version="")
    trainer(folder, [callback], max_steps=12, logger=logger).fit(MemoryModule(), loader(12))
    return callback


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CMRMonitorCallback:
    """Two runs under runs/, of which this is the newer one."""
    monkeypatch.chdir(tmp_path)
    _train(Path("runs/base"))
    return _train(Path("runs/x"))


COMMANDS = [
    line.split("#")[0]
    for snippet in snippets("README.md", "console")
    for line in snippet.splitlines()
    if line.startswith("cmr-monitor")
]


def test_the_commands_run(ran: CMRMonitorCallback, tmp_path: Path) -> None:
    assert len(COMMANDS) >= 7
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "watch":
            arguments.append("--once")
        result = CliRunner().invoke(app, arguments)
        allowed = (0, 1) if arguments[0] == "compare" else (0,)  # two runs of a moment may differ
        assert result.exit_code in allowed, f"{command}: {result.output}"
        assert result.output.strip(), command
    assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list((tmp_path / "tables").glob("*.csv"))


def test_the_snippet_reads_the_history(ran: CMRMonitorCallback) -> None:
    [snippet] = [text for text in snippets("README.md", "python") if "generate_report" in text]
    names: dict[str, object] = {"callback": ran}
    exec(snippet.replace("layer=4", f"layer={LAYERS[0]!r}"), names)
    report = names["report"]
    assert isinstance(report, dict)
    assert set(report) >= {"system_health", "performance_metrics", "component_status"}


def test_the_snippet_runs_diagnostics(ran: CMRMonitorCallback) -> None:
    [snippet] = [text for text in snippets("README.md", "python") if "run_diagnostics" in text]
    names: dict[str, object] = {"callback": ran}
    exec(snippet, names)
    diagnostics = names["diagnostics"]
    assert isinstance(diagnostics, dict)
    assert diagnostics["status"] in ("healthy", "warning", "critical")
