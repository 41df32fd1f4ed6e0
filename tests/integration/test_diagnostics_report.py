"""What the diagnostics found is in the report, by its schema, and in the Markdown made of it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, RunHistory
from cmr_monitor_callbacks.examining import Examiner
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.markdown import to_markdown
from cmr_monitor_callbacks.reports.page import to_html
from tests.integration.test_diagnostics import FAULTS, diagnosed
from tests.memory_models.diagnosed import Diagnosed, batches, train
from tests.models import trainer


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
    assert "- **warning** dead_layer, layer 3: it holds 64 entries" in text
    assert model.training


def test_where_nobody_looked_a_report_has_none(schema: dict[str, object]) -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    with monitor.track_performance():
        pass
    for report in (monitor.generate_report(None), report_of(monitor.history)):
        jsonschema.validate(report, schema)
        assert report["diagnostics"] is None
        assert "Diagnostics" not in to_markdown(report)


class Faulty(pl.LightningModule):
    """Layer 3 of its memory is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Diagnosed(interventions=(1, 5))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def fitted(root: Path, **settings: Any) -> CMRMonitorCallback:
    torch.manual_seed(0)
    callback = CMRMonitorCallback(monitoring={"on_monitor_error": "raise", **settings})
    data = DataLoader(TensorDataset(torch.cat(batches(60))), 4)
    trainer(root, [callback], logger=CSVLogger(root)).fit(Faulty(), data)
    return callback


def test_a_finished_fit_has_them_in_every_report(tmp_path: Path, schema: dict[str, object]) -> None:
    callback = fitted(tmp_path)
    with RunHistory(tmp_path) as history:
        [kept] = history.diagnostics()
        report = report_of(history)
        lately = report_of(history, "1h")
        page = to_html(history)
    jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), schema)
    names = [one["name"] for one in kept["findings"]]
    assert {"dead_layer", "layer_not_worth_its_memory", "entries_never_read"} == set(names)
    assert kept["step"] == report["diagnostics"]["step"] == 59
    assert report["diagnostics"]["findings"] == kept["findings"]
    assert lately["diagnostics"] == report["diagnostics"]
    assert kept["memory_analysis"]["layers"]["3"]["entries"] == 64
    assert "dead_layer, layer 3: it holds 64 entries" in to_markdown(report)
    assert "<strong>dead_layer</strong>: it holds 64 entries" in page
    assert callback.monitor.failures == 0


def test_a_look_after_the_fit_leaves_the_finished_file_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, module = CMRMonitorCallback(), Faulty()
    data = DataLoader(TensorDataset(torch.cat(batches(60))), 4)
    trainer(tmp_path, [callback], logger=CSVLogger(tmp_path)).fit(module, data)
    [path] = tmp_path.rglob("history*")
    before = path.read_bytes()
    told = callback.monitor.generate_report(None)["diagnostics"]
    assert (
        module.net.training and told["findings"] == callback.monitor.run_diagnostics()["findings"]
    )
    callback.monitor.close_history("completed")
    assert list(tmp_path.rglob("history*")) == [path] and path.read_bytes() == before
    with RunHistory(path) as history:
        assert [s["outcome"] for s in history.sessions()] == ["completed"]


def test_at_the_end_it_may_be_left_out_or_asked_for_before(tmp_path: Path) -> None:
    fitted(tmp_path / "out", diagnostics={"at_end": False})
    with RunHistory(tmp_path / "out") as history:
        assert history.diagnostics() == []
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 5},
        model=(model := Diagnosed(interventions=(1, 5))),
        history={"file": str(tmp_path / "loop.sqlite")},
    )
    train(model, 20, monitor.track_performance)
    monitor.run_diagnostics()
    train(model, 10, monitor.track_performance)
    monitor.close_history("completed")  # the end of a plain loop's fit
    monitor.close_history("completed")
    with RunHistory(tmp_path / "loop.sqlite") as history:
        assert [one["step"] for one in history.diagnostics()] == [19, 29]
        assert len(history.sessions()) == 1


def test_a_look_at_the_end_repeats_none_that_was_made_there(tmp_path: Path) -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 5}, model=(model := Diagnosed()))
    train(model, 20, monitor.track_performance)
    found = monitor.run_diagnostics()
    found["findings"].append("changed afterwards")
    monitor.diagnose_at_end()
    with monitor.history as history:
        [kept] = history.diagnostics()
    assert kept["findings"] == []


class Breaks(Faulty):
    """Its training fails."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 40:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().training_step(batch, batch_idx)


def test_a_fit_that_fails_is_not_looked_at(tmp_path: Path) -> None:
    callback = CMRMonitorCallback()
    data = DataLoader(TensorDataset(torch.cat(batches(60))), 4)
    with pytest.raises(RuntimeError, match="device-side"):
        trainer(tmp_path, [callback], logger=CSVLogger(tmp_path)).fit(Breaks(), data)
    with RunHistory(tmp_path) as history:
        assert history.diagnostics() == [] and history.last() is not None


def test_a_look_that_fails_at_the_end_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are there, and the windows; the failure is counted."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("a memory that is not what it looks like")

    monkeypatch.setattr(Examiner, "examine", broken)
    callback = fitted(tmp_path, on_monitor_error="log")
    assert callback.monitor.failures == 1
    with RunHistory(tmp_path) as history:
        assert history.sessions()[0]["outcome"] == "completed"
        [error] = history.errors()
    assert error["message"] == "the diagnostics: a memory that is not what it looks like"
