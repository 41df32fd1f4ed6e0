"""`cmr-monitor ack`, `prune`, `report` and `export`: what changes a run or writes files."""

from __future__ import annotations

import csv
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, ConfigError, RunHistory
from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.health import Phase
from tests.histories import START, end, transition
from tests.runs import begin, command, make, write

RULE = {
    "metric": "storage_efficiency",
    "select": {"layer": "*"},
    "condition": "<",
    "thresholds": {"warning": 0.5},
}


class Loop:
    """A plain loop whose layer 4 stores too little; its history is a file."""

    def __init__(self, folder: Path) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.model.probe = CMRProbe(4)
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 1, "on_monitor_error": "raise"},
            alert_config={"rules": {"refused": RULE}, "alert_channels": ["log"]},
            model=self.model,
            history={"file": str(folder / "history.sqlite")},
        )

    def step(self) -> None:
        with self.monitor.track_performance():
            self.model.probe.capture(attempted=10, captured=10, stored=1)
        self.monitor._parts.keeper.flush()


def test_ack_of_a_running_job(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.step()
    late = command("ack", tmp_path, "refused", "--wait", "0")
    assert late.exit_code == 1 and "it takes it at the next" in late.stderr
    loop.step()
    loop.step()
    done: list[Any] = []
    asks = threading.Thread(
        target=lambda: done.append(command("ack", tmp_path, "ref*", "--layer", "4"))
    )
    asks.start()
    while asks.is_alive():
        loop.step()
        asks.join(0.01)
    assert done[0].exit_code == 0, done[0].output
    assert done[0].stdout == "Acknowledged: refused, layer 4\n"
    [alert] = loop.monitor.health.firing
    assert loop.monitor.alerts._manager.acked(alert.key)
    loop.monitor.close_history("completed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["refusd"], "no alert 'refusd' is firing; did you mean 'refused'?; firing: refused, lay"),
        (["slow"], "no alert 'slow' is firing; firing: refused, layer 4"),
        (["refused", "--layer", "6"], "no alert 'refused, layer 6' is firing; firing: refused"),
        (["[/]"], "no alert '[/]' is firing; firing: refused, layer 4"),
    ],
)
def test_ack_of_what_does_not_fire(tmp_path: Path, arguments: list[str], said: str) -> None:
    store = begin(tmp_path)
    write(store, range(3), transitions=[transition("refused", 2, Phase.FIRING, layer=4)])
    done = command("ack", tmp_path, *arguments)
    assert done.exit_code == 2 and said in done.stderr
    with RunHistory(tmp_path) as history:
        assert history._rows("SELECT count(*) FROM requests") == [(0,)]
    end(store)


def test_ack_of_a_run_that_is_over(tmp_path: Path) -> None:
    make(tmp_path, 3, transitions=[transition("refused", 2, Phase.FIRING, layer=4)])
    done = command("ack", tmp_path, "refused")
    assert done.exit_code == 2
    assert "the run has ended: there is nobody to acknowledge an alert to" in done.stderr


def test_the_monitor_says_that_there_is_nothing_to_acknowledge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(tmp_path)
    with pytest.raises(ConfigError, match="must be one of the run's, got 'refusd'; did you mean"):
        loop.monitor.acknowledge("refusd")
    with caplog.at_level(logging.WARNING):
        loop.monitor.acknowledge("refused")
    assert "nothing to acknowledge: no alert 'refused' is firing; firing: none" in caplog.text
    caplog.clear()
    loop.step()
    loop.monitor.acknowledge("ref*", layer=4)
    assert "nothing to acknowledge" not in caplog.text
    loop.monitor.set_alert("step_time", "> 1e9", print)
    loop.monitor.acknowledge("step_time:*")
    assert "no alert 'step_time:*' is firing; firing: refused" in caplog.text
    loop.monitor.close_history("completed")


# -- prune -----------------------------------------------------------------------------------------


def steps(folder: Path) -> list[int]:
    with RunHistory(folder) as history:
        return [int(step) for step in history.series("step_time").step]


def by_hand(step: int) -> float:
    """Old windows, and from step 2500 on those of a time far ahead."""
    return START + step if step < 2500 else START + 10**10


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = make(tmp_path_factory.mktemp("long"), 4 * BLOCK, time=by_hand)
    return (folder / "history.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("options", "said", "first", "left"),
    [
        # blocks are of windows 0..999 ..., the last 1000 are not packed: 2000..2999 is not all old
        (["--max-age", "1d"], "2,000 windows deleted, 0 more kept", 2000, 2000),
        (["--raw-windows", "1000"], "0 windows deleted, 2,000 more kept as a summary", 9, 2200),
        (["--max-size-mb", "0.01"], "4,000 windows deleted", 3000, 1000),
    ],
)
def test_prune(tmp_path: Path, long: bytes, options: list[str], said: str, first: int, left: int):  # type: ignore[no-untyped-def]
    path = tmp_path / "history.sqlite"
    path.write_bytes(long)
    assert len(steps(tmp_path)) == 4 * BLOCK
    stamp = path.stat().st_mtime_ns
    dry = command("prune", tmp_path, *options, "--dry-run")
    assert dry.exit_code == 0 and "would be" in dry.stdout
    assert path.read_bytes() == long and path.stat().st_mtime_ns == stamp
    done = command("prune", tmp_path, *options)
    assert done.exit_code == 0, done.output
    kept = steps(tmp_path)
    assert (kept[0], len(kept), kept[-1]) == (first, left, 4 * BLOCK - 1), done.stdout
    assert said in done.stdout or first == 3000
    assert dry.stdout.replace("would be ", "").split(";")[0] == done.stdout.split(";")[0]
    assert path.stat().st_size < len(long) and len(list(tmp_path.iterdir())) == 1
    assert command("status", tmp_path).exit_code == 0


def test_prune_of_a_running_job(tmp_path: Path) -> None:
    """The job goes on as if nothing had been."""
    store = begin(tmp_path)
    write(store, range(BLOCK + 500), time=lambda step: START + step)
    done = command("prune", tmp_path, "--max-age", "1d")
    assert done.exit_code == 0 and f"{BLOCK + 499:,} windows deleted" in done.stdout
    write(store, range(BLOCK + 500, 4 * BLOCK))
    with RunHistory(tmp_path) as history:
        assert history.windows() == 4 * BLOCK - (BLOCK + 499)
    end(store)
    assert steps(tmp_path) == list(range(BLOCK + 499, 4 * BLOCK))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "say what to delete: --raw-windows, --max-age or --max-size-mb"),
        (["--dry-run"], "say what to delete"),
        (["--max-age", "x"], "--max-age: must be a duration like '30s'"),
        (["--max-age", "0s"], "--max-age"),
        (["--raw-windows", "10"], "--raw-windows must be at least 1000, got 10"),
        (["--max-size-mb", "nan"], "--max-size-mb"),
        (["--max-size-mb", "-1"], "--max-size-mb"),
    ],
)
def test_prune_with_wrong_limits(tmp_path: Path, options: list[str], said: str) -> None:
    done = command("prune", make(tmp_path, 3), *options)
    assert done.exit_code == 2 and said in done.stderr and steps(tmp_path) == [0, 1, 2]


# -- report and export -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ([], "# "),
        (["--format", "json"], "{"),
        (["--format", "html"], "<!doctype html>"),
        (["--output", "r.md"], "# "),
        (["-o", "r.JSON"], "{"),
        (["-o", "r.html"], "<!doctype html>"),
        (["-o", "r.txt", "--format", "md"], "# "),
    ],
)
def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], begins: str
) -> None:
    make(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    done = command("report", "run", *options)
    assert done.exit_code == 0, done.output
    text = done.stdout
    if "-o" in options or "--output" in options:
        assert text == f"Wrote {options[1]}\n"
        text = Path(options[1]).read_text()
    assert text.lower().startswith(begins)
    if begins == "{":
        assert json.loads(text)["range"]["windows"] == 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "--format", "pdf"], "--format must be one of them, got 'pdf'"),
        (["report", "-o", "x.txt"], "--format must be one of them, got 'txt'"),
        (["report", "-o", "no/such/folder/x.md"], "x.md': No such file or directory"),
        (["report", "--range", "x"], "--range must be a length of time"),
        (["export", "--format", "xls"], "--format must be one of them, got 'xls'"),
        (["export", "--to", "run/history.sqlite"], "history.sqlite': File exists"),
    ],
)
def test_files_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    make(tmp_path / "run", 2)
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_export(tmp_path: Path, form: str) -> None:
    make(tmp_path / "run", layers=("[red]", 4))
    done = command("export", tmp_path / "run", "--to", tmp_path / "[out]", "--format", form)
    names = sorted(path.name for path in (tmp_path / "[out]").iterdir())
    assert done.exit_code == 0 and f"time_series.{form}" in names
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == names
    if form == "csv":
        with (tmp_path / "[out]" / "time_series.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["step"] for row in rows] == [str(step) for step in range(20)]
        assert rows[-1]["storage_efficiency/layer_04"] == "0.8"
