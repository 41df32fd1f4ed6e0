"""A Trainer's run beside a run that a Trainer recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRProbe
from cmr_monitor_callbacks.config import config_root
from tests.models import DIM, loader, trainer

RULES: dict[str, Any] = {
    "stores_less": {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "compare": {"vs": "baseline"},
        "condition": "<",
        "thresholds": {"error": {"fire": 0.9, "recover": 0.95}},
    },
    "stores_fewer": {
        "metric": "states_stored",
        "compare": {"vs": "baseline", "as": "difference"},
        "condition": "<",
        "thresholds": {"warning": -1.0},
    },
}


class Storing(pl.LightningModule):
    """Two layers, of which layer 4 stores a share of its states; more as training goes on."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.head = nn.Linear(DIM, 1)
        self.probes = [CMRProbe(2), CMRProbe(4)]
        self.share = share

    def training_step(self, batch: Any, index: int) -> Tensor:
        stored = round(60 + self.global_step / 2)
        self.probes[0].capture(attempted=100, captured=100, stored=stored)
        self.probes[1].capture(attempted=100, captured=100, stored=round(self.share * stored))
        return self.head(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root: Path, share: float, *, every: int = 5, **alerts: Any) -> CMRMonitorCallback:
    """40 steps in windows of 5."""
    callback = CMRMonitorCallback(
        monitoring={"on_monitor_error": "raise"}, alerts={"alert_channels": [], **alerts}
    )
    fitted = trainer(root, [callback], logger=CSVLogger(root), log_every_n_steps=every)
    fitted.fit(Storing(share), loader(40))
    return callback


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded")
    fit(root, 1.0)
    [store] = root.rglob("history.sqlite")
    return store.parent


def fired(callback: CMRMonitorCallback) -> set[tuple[str, Any]]:
    changes = callback.monitor.alerts.transitions
    return {(c.state.rule, c.state.layer) for c in changes if c.name == "firing"}


def test_a_run_like_the_recorded_one_is_well(recorded: Path, tmp_path: Path) -> None:
    callback = fit(tmp_path, 1.0, rules=RULES, baseline=str(recorded))
    assert not callback.monitor.alerts.transitions


def test_it_is_well_with_windows_of_another_length_too(recorded: Path, tmp_path: Path) -> None:
    rules = {**RULES, "stores_fewer": {**RULES["stores_fewer"], "thresholds": {"warning": -40.0}}}
    callback = fit(tmp_path, 1.0, every=8, rules=rules, baseline=str(recorded))
    assert not callback.monitor.alerts.transitions


def test_a_run_that_is_worse_fires_where_it_is(recorded: Path, tmp_path: Path) -> None:
    callback = fit(tmp_path, 0.8, rules=RULES, baseline=str(recorded))
    assert fired(callback) == {("stores_less", 4), ("stores_fewer", None)}
    first = callback.monitor.alerts.transitions[0]
    assert first.step == 4
    assert first.message == "layer 4: storage_efficiency is 0.803 times baseline (< 0.9)"


def test_a_preset_takes_it_from_the_command_line(recorded: Path) -> None:
    with initialize_config_dir(str(config_root()), version_base="1.3"):
        config = compose(
            overrides=["+cmr_monitor=default", f"cmr_monitor.alerts.baseline='{recorded}'"]
        )
    callback = CMRMonitorCallback(**config.cmr_monitor)
    assert callback.monitor.alert_config.baseline == str(recorded)
