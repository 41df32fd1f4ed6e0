"""Runs that stand still, in a real Trainer: what blocks is let go by the watchdog's own word."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    RunHistory,
    StallReport,
    StallWatchdogCallback,
)
from tests.ear import Ear
from tests.models import MemoryModule, loader, trainer

QUICK = {
    "after": 0.2,
    "times_median": 0.001,
    "start": 0.2,
    "validation": 0.2,
    "checkpoint": 0.2,
    "compilation": 0.2,
}
LONG = 60.0


class Gate:
    """Blocks once, until the watchdog has told of it."""

    def __init__(self) -> None:
        self.told: list[StallReport] = []
        self._open = threading.Event()
        self._used = False

    def tell(self, report: StallReport) -> None:
        self.told.append(report)
        if not report.resumed and self._used:
            self._open.set()

    def wait(self) -> None:
        if not self._used:
            self._used = True
            assert self._open.wait(LONG), "nobody noticed"


class Blocks(MemoryModule):
    """Stands still in a phase of its fourth step."""

    def __init__(self, gate: Gate, phase: str) -> None:
        super().__init__()
        self.gate = gate
        self.phase = phase

    def _at(self, phase: str, step: int = 3) -> None:
        if self.phase == phase and self.global_step >= step:
            self.gate.wait()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._at("forward")
        loss = super().training_step(*args, **kwargs)
        if self.phase == "backward" and self.global_step >= 3:
            (loss["loss"] if isinstance(loss, dict) else loss).register_hook(self._in_backward)
        return loss

    def _in_backward(self, gradient: torch.Tensor) -> None:
        self.gate.wait()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self._at("optimizer")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self._at("validation", 0)
        return super().validation_step(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._at("checkpoint", 0)


class Slow(Dataset[Any]):
    """The loader's batches; the one numbered stands still."""

    def __init__(self, batches: list[Any], gate: Gate, number: int) -> None:
        self._batches, self._gate, self._number = batches, gate, number

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> Any:
        if i == self._number:
            self._gate.wait()
        return self._batches[i]


@pytest.mark.parametrize("phase", ["start", "data", "forward", "backward", "optimizer"])
def test_the_phase_is_named(tmp_path: Path, phase: str) -> None:
    gate = Gate()
    number = {"start": 0, "data": 3}.get(phase, -1)
    batches: Any = DataLoader(Slow(list(loader(8)), gate, number), batch_size=None)
    watchdog = StallWatchdogCallback(QUICK, notify=gate.tell)
    fitter = trainer(tmp_path, [watchdog], max_steps=8)
    fitter.fit(Blocks(gate, phase), batches)
    first, *_, last = gate.told
    assert (first.phase, first.resumed, first.rank) == (phase, False, 0)
    assert first.step == (0 if phase == "start" else 3)
    assert first.seconds >= 0.2
    assert (last.phase, last.resumed) == (phase, True)
    assert "test_stall.py" in first.where
    assert first.stacks is not None
    assert "in wait" in first.stacks.read_text()
    assert fitter.global_step == 8
    assert not [t for t in threading.enumerate() if t.name == "cmr-monitor-stall"]


@pytest.mark.parametrize("phase", ["validation", "checkpoint"])
def test_other_phases(tmp_path: Path, phase: str) -> None:
    gate = Gate()
    watchdog = StallWatchdogCallback(QUICK, notify=gate.tell)
    saves = pl.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4)
    fitter = trainer(
        tmp_path, [watchdog, saves], max_steps=8, val_check_interval=4, enable_checkpointing=True
    )
    fitter.fit(Blocks(gate, phase), loader(8), loader(2))
    assert gate.told[0].phase == phase
    assert gate.told[-1].resumed


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_other_functions_of_the_trainer(tmp_path: Path, what: str) -> None:
    gate = Gate()
    watchdog = StallWatchdogCallback(QUICK, notify=gate.tell)
    batches: Any = DataLoader(Slow(list(loader(3)), gate, 1), batch_size=None)
    module = MemoryModule()
    module.test_step = module.validation_step  # type: ignore[method-assign]
    getattr(trainer(tmp_path, [watchdog]), what)(module, batches)
    phases = {"validate": "validation", "test": "test", "predict": "prediction"}
    assert gate.told[0].phase == phases[what]


class Waits(pl.Callback):
    """Lets some time pass at each validation batch, or while something compiles."""

    def __init__(self, seconds: float) -> None:
        self._never = threading.Event()
        self._seconds = seconds

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._never.wait(self._seconds)


def test_a_long_validation_that_goes_on_is_no_stall(tmp_path: Path) -> None:
    told: list[StallReport] = []
    settings = QUICK | {"after": 0.4, "validation": 0.4, "start": 30.0}
    watchdog = StallWatchdogCallback(settings, notify=told.append)
    fitter = trainer(tmp_path, [watchdog, Waits(0.1)], max_steps=4, val_check_interval=4)
    fitter.fit(MemoryModule(), loader(4), loader(12))  # 1.2 s of validation
    assert told == []


def test_a_compile_is_no_stall(tmp_path: Path) -> None:
    import torch._dynamo  # loading it is no compile, and takes long on a busy machine

    told: list[StallReport] = []
    never = threading.Event()

    def slow_backend(graph: Any, inputs: Any) -> Any:
        never.wait(1.0)
        return graph.forward

    class Compiles(MemoryModule):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.global_step == 2:
                torch.compile(lambda x: x.sin() + 1, backend=slow_backend)(torch.ones(3))
            return super().training_step(*args, **kwargs)

    torch.compile(lambda x: x + 1, backend="eager")(
        torch.ones(1)
    )  # imports the compiler: no compile
    settings = QUICK | {"after": 0.4, "start": 30.0, "compilation": 30.0}
    watchdog = StallWatchdogCallback(settings, notify=told.append)
    trainer(tmp_path, [watchdog], max_steps=4).fit(Compiles(), loader(4))
    assert told == []


def test_the_monitor_tells_its_channels(tmp_path: Path) -> None:
    gate = Gate()
    ear = Ear()
    submit = ear.submit

    def hears(notice: Any) -> None:
        submit(notice)
        if not notice.resolved and gate._used:
            gate._open.set()

    ear.submit = hears  # type: ignore[method-assign]
    callback = CMRMonitorCallback(alerts={"rules": {}, "stall": QUICK})
    callback.monitor.alerts.delivery = ear  # type: ignore[assignment]
    trainer(tmp_path, [callback], max_steps=8).fit(Blocks(gate, "backward"), loader(8))
    first, *_, last = ear.notices
    assert first.title == "ERROR training_stalled"
    assert first.alerts[0].labels["phase"] == "backward"
    assert last.title == "RESOLVED training_stalled"
    assert "goes on at step 3" in last.text
    [stacks] = tmp_path.rglob("stacks-rank000.txt")
    assert stacks.parent.name == "version_0"
    with RunHistory(stacks.with_name("history.sqlite")) as history:
        kept = history.alerts()
        assert history.open_alerts() == []
    assert {row["rule"] for row in kept} == {"training_stalled"}
    assert [kept[0]["name"], kept[-1]["name"]] == ["firing", "resolved"]
    assert kept[0]["message"] == str(first.alerts[0].message)


def test_who_heard_of_the_worst_hears_that_it_is_over() -> None:
    desk = CMRMonitorCallback(alerts={"rules": {}}).monitor.alerts
    ear = desk.delivery = Ear()  # type: ignore[assignment]
    for again, resumed in ((False, False), (True, False), (False, True), (False, False)):
        desk.tell_of_stall(StallReport(0, 7, "data", 60.0, resumed, again=again), 0.0)
    severities = [notice.severity.value for notice in ear.notices]
    assert severities == ["error", "critical", "critical", "error"]


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_no_thread_is_left(tmp_path: Path, ends: str) -> None:
    class Fails(MemoryModule):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if ends == "badly" and self.global_step == 2:
                raise RuntimeError("on purpose")
            return super().training_step(*args, **kwargs)

    callbacks = [CMRMonitorCallback(), StallWatchdogCallback()]
    fitter = trainer(tmp_path, callbacks, max_steps=4)
    for _ in range(2):
        run: Callable[[], None] = lambda: fitter.fit(Fails(), loader(4))  # noqa: E731
        if ends == "badly":
            with pytest.raises(RuntimeError, match="on purpose"):
                run()
        else:
            run()
        assert not [t for t in threading.enumerate() if t.name == "cmr-monitor-stall"]


EXITS = """
import threading
import pytorch_lightning as pl
import time
from pathlib import Path
from cmr_monitor_callbacks import CMRMonitorCallback, StallWatchdogCallback
from tests.models import MemoryModule, loader, trainer

class Hangs(MemoryModule):
    def training_step(self, *args, **kwargs):
        threading.Event().wait(60)

def page(notice):
    time.sleep(0.5)
    Path({folder!r}, "paged").write_text(notice.title)

stall = {"after": 0.2, "start": 0.2, "action": "exit"}
if {alone!r}:
    watchdog = StallWatchdogCallback(stall)
else:
    alerts = {"stall": stall, "alert_channels": ["page"], "channels": {"page": page}}
    watchdog = CMRMonitorCallback(alerts=alerts)
trainer({folder!r}, [watchdog], max_steps=4).fit(Hangs(), loader(4))
"""


@pytest.mark.parametrize("alone", [True, False])
def test_exit_ends_the_process_where_that_is_asked_for(tmp_path: Path, alone: bool) -> None:
    """And not before its channels have told of it."""
    code = EXITS.replace("{folder!r}", repr(str(tmp_path))).replace("{alone!r}", repr(alone))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert "rank 0 has stood still for" in done.stderr
    if not alone:
        assert (tmp_path / "paged").read_text() == "ERROR training_stalled"
        [store] = tmp_path.rglob("history.sqlite")
        with RunHistory(store) as history:
            [alert] = history.open_alerts()
        assert (alert["rule"], alert["severity"]) == ("training_stalled", "error")
