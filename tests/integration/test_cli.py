"""Both import names of Lightning, its CLI, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor
from tests.integration.event_files import series
from tests.models import DIM, MemoryModule, loader, rows
from tests.needed import needed

STRICT = {"on_monitor_error": "raise"}
CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {root}
  callbacks:
    - class_path: cmr_monitor_callbacks.CMRMonitorCallback
      init_args:
        {settings}
"""


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(10)


def run_cli(root: Path, settings: str) -> LightningCLI:
    path = root / "config.yaml"
    path.write_text(CONFIG.format(root=root, settings=settings))
    return LightningCLI(MemoryModule, Data, args=["fit", "--config", str(path)])


def callback_of(cli: LightningCLI) -> CMRMonitorCallback:
    [callback] = [c for c in cli.trainer.callbacks if isinstance(c, CMRMonitorCallback)]
    return callback


def test_lightning_cli_sets_a_window(tmp_path: Path) -> None:
    cli = run_cli(
        tmp_path, "monitoring: {log_every_n_steps: 2, on_monitor_error: raise, layers: ['4']}"
    )
    callback = callback_of(cli)
    assert callback.monitor.windows == 5
    assert list(series(tmp_path)["cmr_capture/states_stored/layer_04"]) == [1, 3, 5, 7, 9]
    assert list(callback.snapshot.layers("states_stored")) == [4]


def test_lightning_cli_takes_every_argument(tmp_path: Path) -> None:
    cli = run_cli(
        tmp_path,
        "\n        ".join(
            [
                "monitoring: {log_every_n_steps: 5, alert_thresholds: {low_efficiency: 0.99}}",
                "alerts: {alert_cooldown: 5.0, alert_channels: [log]}",
                "probes: {explicit: true}",
                "sinks: {loggers: false}",
            ]
        ),
    )
    callback = callback_of(cli)
    assert callback.monitor.config.alert_thresholds.low_efficiency == 0.99
    assert callback.monitor.alert_config.alert_cooldown == 5.0
    assert callback.sinks_config.loggers is False
    assert not [tag for tag in series(tmp_path) if tag.startswith("cmr_")]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "monitoring: {log_evry_n_steps: 2}",
            ["monitoring.log_evry_n_steps is not a setting; did you mean 'log_every_n_steps'"],
        ),
        ("monitoring: {log_every_n_steps: 0}", ["monitoring.log_every_n_steps must be", "got 0"]),
        ("sinks: {logger: false}", ["sinks.logger is not a setting; did you mean 'loggers'"]),
        # jsonargparse's own words: it knows the arguments, and refuses others before we are asked
        ("monitorng: {log_every_n_steps: 2}", ["Option 'monitorng.log_every_n_steps' is not acc"]),
    ],
    ids=["unknown field", "value not allowed", "unknown field of another", "unknown argument"],
)
def test_lightning_cli_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, said: list[str]
) -> None:
    # jsonargparse prints our error within its own, or raises it
    with pytest.raises((SystemExit, ValueError)) as caught:
        run_cli(tmp_path, settings)
    text = capsys.readouterr().err + str(caught.value)
    assert [part for part in said if part not in text] == []


@pytest.mark.filterwarnings("error:.*Unable to serialize")
def test_what_the_cli_saved_makes_the_same_callback(tmp_path: Path) -> None:
    first = run_cli(
        tmp_path,
        "monitoring: {log_every_n_steps: 2}\n        alerts: {alert_cooldown: 5.0}",
    )
    [saved] = tmp_path.glob("lightning_logs/*/config.yaml")
    again = LightningCLI(
        MemoryModule,
        Data,
        args=["fit", "--config", str(saved)],
        save_config_kwargs={"overwrite": True},
    )
    assert callback_of(again).monitor.config == callback_of(first).monitor.config
    assert callback_of(again).monitor.alert_config == callback_of(first).monitor.alert_config


def test_lightning_pytorch_takes_the_same_callback(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    lightning = needed("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = MemoryModule()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.inner(*batch).square().mean()
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.inner(*batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    assert isinstance(strict, pl.Callback)
    assert isinstance(strict, lightning.Callback)
    stop = lightning.callbacks.EarlyStopping("cmr_health/score", mode="max", patience=2)
    fitter = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=5,
        callbacks=[strict, stop],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fitter.fit(Module(), loader(12), loader(2))
    assert strict.snapshot.layers("capture_calls") == {2: 12.0, 4: 12.0, 6: 12.0}
    assert strict.snapshots["val"].layers("capture_calls") == {2: 2.0, 4: 2.0, 6: 2.0}
    logged = series(tmp_path)
    assert list(logged["cmr_capture/states_stored/layer_02"]) == [4, 9, 11]
    assert list(logged["train/loss"]) == [4, 9]
    [path] = tmp_path.rglob("*.ckpt")
    assert "CMRMonitorCallback" in torch.load(path, weights_only=False)["callbacks"]


def test_the_state_key_does_not_depend_on_settings() -> None:
    # a resumed run may log more often than the one that made the checkpoint
    one = CMRMonitorCallback(monitoring={"log_every_n_steps": 2})
    other = CMRMonitorCallback(monitor=CMRPerformanceMonitor({"layers": ["4"]}))
    assert one.state_key == other.state_key == "CMRMonitorCallback"


def loaded_by(code: str, packages: str) -> str:
    listing = (
        f"import sys; print(sorted({{m.split('.')[0] for m in sys.modules}} & {{{packages}}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


HEAVY = "'pytorch_lightning', 'lightning', 'lightning_fabric', 'torchmetrics', 'tensorboard'"


def test_a_model_that_holds_a_probe_loads_no_lightning() -> None:
    code = (
        "from cmr_monitor_callbacks import CMRProbe\n"
        "probe = CMRProbe(1); probe.capture(3, 2, 1); probe.buffer(1, 2)"
    )
    assert loaded_by(code, HEAVY) == "[]"


def test_a_monitor_without_a_trainer_loads_no_lightning() -> None:
    code = (
        "import torch\n"
        "from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe\n"
        "model = torch.nn.Linear(1, 1); model.probe = CMRProbe(1)\n"
        "monitor = CMRPerformanceMonitor(model=model)\n"
        "with monitor.track_performance(): model.probe.capture(3, 2, 1)\n"
        "monitor.flush(); assert monitor.snapshot.value('states_stored') == 1"
    )
    assert loaded_by(code, "'pytorch_lightning', 'lightning', 'lightning_fabric'") == "[]"


def test_the_models_of_these_tests_have_rows_of_the_right_width() -> None:
    states, keys = rows(2)[0]
    assert states.shape == (DIM,) and keys.ndim == 0
