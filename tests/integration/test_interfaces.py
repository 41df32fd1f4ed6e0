"""Both import names, LightningCLI, torch.compile, plain loops, what an import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    CMRMonitorError,
    CMRPerformanceMonitor,
    CMRProbe,
    InMemorySink,
)
from cmr_monitor_callbacks.clock import ManualClock
from tests.memory_model import MemoryModule, loader, trainer

STRICT = {"on_monitor_error": "raise"}


def test_importing_the_probe_loads_neither_lightning_nor_torchmetrics() -> None:
    code = (
        "import sys; from cmr_monitor_callbacks import CMRProbe; CMRProbe(1); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('pytorch_lightning', 'lightning', 'torchmetrics', 'tensorboard', 'pydantic')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_the_monitor_loads_no_lightning() -> None:
    code = (
        "import sys; from cmr_monitor_callbacks import CMRPerformanceMonitor; "
        "CMRPerformanceMonitor(); print([m for m in sys.modules if m.split('.')[0] in "
        "('pytorch_lightning', 'lightning')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_lightning_pytorch_takes_the_same_callback(tmp_path: Path) -> None:
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MemoryModule()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.inner(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = CMRMonitorCallback(monitoring=STRICT)
    assert isinstance(callback, pl.Callback)
    assert isinstance(callback, lightning.Callback)
    fitter = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=5,
        callbacks=[callback],
        enable_progress_bar=False,
    )
    fitter.fit(Module(), loader(10))
    assert callback.snapshot.layers("states_captured") == {2: 30.0, 4: 30.0, 6: 30.0}
    assert list(tmp_path.glob("lightning_logs/*/events*"))


def cli(root: Path, config: str) -> Any:
    from pytorch_lightning.cli import LightningCLI

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(10)

    path = root / "config.yaml"
    path.write_text(config)
    return LightningCLI(
        MemoryModule,
        Data,
        args=["fit", "--config", str(path)],
        save_config_kwargs={"overwrite": True},
    )


CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 1
  enable_progress_bar: false
  default_root_dir: {root}
  callbacks:
    - class_path: cmr_monitor_callbacks.CMRMonitorCallback
      init_args:
        monitoring:
          {setting}
"""


def test_lightning_cli(tmp_path: Path) -> None:
    app = cli(tmp_path, CONFIG.format(root=tmp_path, setting="log_every_n_steps: 2"))
    [callback] = [c for c in app.trainer.callbacks if isinstance(c, CMRMonitorCallback)]
    assert callback.monitor.windows == 5


def test_lightning_cli_names_a_wrong_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # jsonargparse wraps our error in its own
    with pytest.raises((SystemExit, ValueError)) as caught:
        cli(tmp_path, CONFIG.format(root=tmp_path, setting="log_evry_n_steps: 2"))
    said = capsys.readouterr().err + str(caught.value)
    assert "monitoring.log_evry_n_steps is not a setting; did you mean 'log_every_n_steps'" in said


class CompiledLayer(nn.Module):
    """A layer that is compiled whole, its probe calls with it."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.probe = CMRProbe(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.probe.timer() as timer:
            y = self.linear(x)
        over = y > 0
        self.probe.capture(x.numel(), over.sum(), (y > 1).sum(), timer.seconds)
        self.probe.reconstruction(over.sum(), quality=y.sigmoid().mean())
        return torch.relu(y)


class CompiledModule(pl.LightningModule):
    def __init__(self, *, recompute: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CompiledLayer(layer) for layer in (1, 2))
        self.recompute = recompute
        self.compiled = [torch.compile(layer, fullgraph=True) for layer in self.layers]
        self.expected = 0
        self.graphs: list[int] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x = batch[0].requires_grad_()
        self.expected += int((self.layers[0].linear(x) > 0).sum())  # type: ignore[operator,union-attr]
        for layer in self.compiled:
            if self.recompute:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return x.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "checkpointed"])
def test_compiled_code_counts_without_graph_breaks(tmp_path: Path, recompute: bool) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = CompiledModule(recompute=recompute)
    callback = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [callback], logger=False).fit(module, loader(12, batch_size=4))
    assert callback.snapshot.value("capture_calls", layer=1) == 12
    assert callback.snapshot.value("states_attempted", layer=1) == 12 * 32
    assert callback.snapshot.value("states_captured", layer=1) == module.expected
    assert 0 < callback.snapshot.value("reconstruction_quality", layer=2) < 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert module.graphs[1:] == module.graphs[1:2] * 11  # nothing is compiled after the second step


def test_windows_in_seconds_and_a_sink_of_ones_own() -> None:
    clock = ManualClock(100.0)
    model = nn.Module()
    model.probe = CMRProbe("encoder")
    monitor = CMRPerformanceMonitor({"metric_collection_interval": 10.0}, model=model, clock=clock)
    sink = InMemorySink()
    monitor.sinks.append(sink)
    for _ in range(25):
        with monitor.track_performance():
            model.probe.capture(4, 3, 2, 0.5)
            clock.advance(1.0)
    assert [report.snapshot.step for report in sink.reports] == [9, 19]
    assert sink.reports[-1].scalars()["cmr_capture/states_stored"] == 40
    assert monitor.snapshot.value("step_time", over="window") == 1.0
    monitor.flush()
    assert monitor.snapshot.value("states_stored", layer="encoder") == 50


def test_the_specifications_record_calls() -> None:
    monitor = CMRPerformanceMonitor()
    monitor.record_capture(4, 45, 0.001)
    monitor.record_capture(6, 90, 0.002, states_captured=100, states_attempted=105)
    monitor.record_reconstruction(6, 8, 0.003)
    monitor.flush()
    snapshot = monitor.snapshot
    assert snapshot.layers("states_stored") == {4: 45.0, 6: 90.0}
    assert snapshot.value("storage_efficiency") == pytest.approx(
        0.9
    )  # of layer 6, which gives both
    assert snapshot.layers("capture_calls") == {4: 1.0, 6: 1.0}
    assert monitor.get_stats()["metrics"]["capture_times"] == [0.001, 0.002]


def test_live_statistics_see_the_window_begun_and_change_nothing() -> None:
    monitor = CMRPerformanceMonitor({"enable_real_time": False})
    with pytest.raises(CMRMonitorError, match="enable_real_time"):
        monitor.get_live_stats()
    monitor.enable_real_time_monitoring()
    for stored in (45, 90):
        monitor.record_capture(4, stored, 0.001, states_captured=100)
        live = monitor.get_live_stats()
    assert live["metrics"]["states_stored_per_layer"] == {4: 135}
    assert live["health"]["score"] == 100.0
    model = nn.Module()
    model.probe = CMRProbe(6)
    monitor.attach(model)
    model.probe.capture(10, torch.tensor(9), torch.tensor(8))
    for _ in range(2):  # looking twice counts once
        live = monitor.get_live_stats()
        assert live["metrics"]["states_stored_per_layer"] == {4: 135, 6: 8}
    assert monitor.windows == 0
    monitor.flush()
    assert monitor.snapshot.value("states_stored") == 143


def test_two_optimizers_by_hand_are_one_step_a_batch(tmp_path: Path) -> None:
    class Manual(MemoryModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(self(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.blocks.parameters(), lr=0.01),
                torch.optim.SGD(self.head.parameters(), lr=0.01),
            ]

    callback = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [callback]).fit(Manual(), loader(10))
    assert callback.monitor.windows == 2
    assert callback.snapshot.step == 9
    assert callback.snapshot.value("capture_calls") == 2 * 3 * 10
    assert callback.snapshot.value("backward_time") > 0
    assert callback.snapshot.value("optimizer_time") > 0
