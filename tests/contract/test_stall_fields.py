"""What each field of ``alerts.stall`` does, by a watchdog to which time is passed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import CMRMonitorCallback, StallReport
from cmr_monitor_callbacks.config import parse
from cmr_monitor_callbacks.config.stall import StallConfig
from cmr_monitor_callbacks.stall import StallWatchdog, Stand, limit_of
from cmr_monitor_callbacks.stall import watchdog as watchdog_module
from tests.contract.fields import shows
from tests.models import MemoryModule, loader, trainer


def config(**settings: Any) -> StallConfig:
    return parse(StallConfig, settings, "alerts.stall")


def limit(phase: str = "forward", seconds: tuple[float, ...] = (1.0,), **settings: Any) -> float:
    """Seconds without progress that a phase may go."""
    compiling = phase == "compilation"
    return limit_of(Stand(phase, 0.0, 3), seconds, config(**settings), compiling=compiling)


@shows("alerts.stall.after")
def test_after() -> None:
    assert (limit(), limit(after="90s")) == (60.0, 90.0)
    told: list[StallReport] = []
    dog = StallWatchdog(config(after="90s"), lambda: Stand("data", 0.0, 7), told.append)
    dog.steps.append(1.0)
    dog.look(89.0)
    assert told == []
    dog.look(91.0)
    assert [report.phase for report in told] == ["data"]


@shows("alerts.stall.times_median")
def test_times_median() -> None:
    assert (limit(seconds=(9.0,)), limit(seconds=(9.0,), times_median=100)) == (180.0, 900.0)


@shows("alerts.stall.start")
def test_start() -> None:
    assert (limit("start"), limit("start", start="20m")) == (600.0, 1200.0)
    assert (limit(seconds=()), limit(seconds=(), start="20m")) == (600.0, 1200.0)
    assert limit(start="20m") == 60.0


@shows("alerts.stall.validation")
@pytest.mark.parametrize("phase", ["validation", "sanity check", "test", "prediction"])
def test_validation(phase: str) -> None:
    assert (limit(phase), limit(phase, validation="10m")) == (300.0, 600.0)
    assert limit(validation="10m") == 60.0


@shows("alerts.stall.checkpoint")
def test_checkpoint() -> None:
    assert (limit("checkpoint"), limit("checkpoint", checkpoint="1h")) == (600.0, 3600.0)
    assert limit(checkpoint="1h") == 60.0


@shows("alerts.stall.compilation")
def test_compilation() -> None:
    assert (limit("compilation"), limit("compilation", compilation="1h")) == (1800.0, 3600.0)
    assert limit(compilation="1h") == 60.0


def stalled(run: Path | None, **settings: Any) -> StallReport:
    """What is told of a stall, the first time."""
    told: list[StallReport] = []
    stand = Stand("data", 0.0, 7)
    dog = StallWatchdog(config(**settings), lambda: stand, told.append, folder=run)
    dog.look(601.0)
    assert len(told) == 1
    return told[0]


@shows("alerts.stall.dump_stacks")
@pytest.mark.parametrize("dumps", [True, False])
def test_dump_stacks(tmp_path: Path, dumps: bool) -> None:
    report = stalled(tmp_path, dump_stacks=dumps)
    assert (report.stacks is not None) is dumps
    assert bool(list(tmp_path.iterdir())) is dumps


@shows("alerts.stall.folder")
def test_folder(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
    assert stalled(run).stacks == run / "stacks-rank000.txt"
    assert stalled(run, folder=str(other)).stacks == other / "stacks-rank000.txt"


@shows("alerts.stall.action")
@pytest.mark.parametrize("action", ["none", "interrupt", "exit"])
def test_action(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """What would end this process is only noted; tests of stalls in a fit let it end one."""
    done: list[str] = []
    monkeypatch.setattr(watchdog_module._thread, "interrupt_main", lambda: done.append("interrupt"))
    monkeypatch.setattr(watchdog_module.os, "_exit", lambda status: done.append(f"exit {status}"))
    stalled(None, action=action)
    assert done == {"none": [], "interrupt": ["interrupt"], "exit": ["exit 75"]}[action]


class Seen(MemoryModule):
    """Sees whether the watchdog's thread runs while it trains."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.watched = self.watch.watches
        return super().training_step(batch, batch_idx)


@shows("alerts.stall.enabled")
@pytest.mark.parametrize("enabled", [True, False])
def test_enabled(tmp_path: Path, enabled: bool) -> None:
    callback = CMRMonitorCallback(alerts={"stall": {"enabled": enabled}})
    module = Seen()
    module.watch = callback._watch  # type: ignore[assignment]
    trainer(tmp_path, [callback], logger=False).fit(module, loader(3))
    assert module.watched is enabled
    assert not callback._watch.watches
