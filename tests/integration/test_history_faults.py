"""What happens to the history: SIGKILL, a full disk, a folder that cannot be written, two jobs."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, RunHistory
from cmr_monitor_callbacks.reports import report_of
from tests.models import MemoryModule, loader, trainer
from tests.runs import exit_code, forked

KILLS = 50
NOBODY = 65534


def loop(
    path: Path, steps: int, said: Callable[[int], None] = lambda step: None, *, real: bool = False
) -> int:
    """A plain training loop with windows of one step; gives back the monitor's failures.

    ``real``: a step lasts longer than a window takes to be written, as it does where models train.
    """
    model = torch.nn.Linear(2, 2)
    model.probe = CMRProbe(4)
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1}, model=model, history={"file": str(path)}
    )
    for step in range(steps):
        with monitor.track_performance():
            model.probe.capture(attempted=4, captured=4, stored=step % 4)
            if real:
                monitor._parts.keeper.flush()
        said(step)
    monitor.flush()
    monitor.close_history("completed")
    return monitor.failures


def test_a_run_killed_at_any_moment_leaves_a_store_that_opens(tmp_path: Path) -> None:
    """At each kill the process has said how far it was; at most the last window is
    missing."""
    rng = random.Random(0)
    missing = []
    for kill in range(KILLS):
        path = tmp_path / str(kill) / "history.sqlite"
        read, write = os.pipe()

        def say(step: int, write: int = write) -> None:
            os.write(write, f"{step}\n".encode())

        def train(path: Path = path, say: Callable[[int], None] = say) -> int:
            return loop(path, 10**9, say, real=True)

        child = forked(train)
        os.close(write)
        with os.fdopen(read) as words:
            target = rng.randrange(3, 60)
            last = next(int(word) for word in words if int(word) >= target)
            if kill % 2:  # in the middle of a step, and not only at its end
                time.sleep(rng.uniform(0, 0.003))
            os.kill(child, signal.SIGKILL)
            said = [*(int(word) for word in words.read().split("\n")[:-1]), last]
        assert exit_code(child) == -signal.SIGKILL
        with RunHistory(path) as history:
            steps = history.series("step_time").step.tolist()
            assert steps == list(range(len(steps)))
            missing.append(max(said) - steps[-1])
            report = report_of(history)
            assert history.sessions()[0]["state"] == "died"
        json.dumps(report, allow_nan=False)
        assert report["range"]["last_step"] == steps[-1]
    assert max(missing) <= 1, missing


def test_a_full_disk(tmp_path: Path) -> None:
    """The system refuses to let files grow: training goes on, what was written stays."""
    path = tmp_path / "history.sqlite"
    assert exit_code(forked(lambda: loop(path, 20))) == 0
    size = path.stat().st_size

    def in_little_room() -> bool:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4096 * 4096, size // 4096 * 4096))
        failures = loop(path, 200)
        return not failures > 0

    assert exit_code(forked(in_little_room)) == 0
    with RunHistory(path, session=1) as history:
        assert history.series("step_time").step.tolist() == list(range(20))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"cmr-read-only-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:

        def as_nobody() -> bool:
            os.setuid(NOBODY)
            return not loop(folder / "history.sqlite", 20) > 0

        assert exit_code(forked(as_nobody)) == 0
        assert not list(folder.iterdir())
        # somebody else's store there can be read, and stays as it is
        assert exit_code(forked(lambda: loop(folder / "history.sqlite", 5))) == 0

        def reads() -> bool:
            os.setuid(NOBODY)
            with RunHistory(folder) as history:
                return history.series("step_time").step.tolist() != list(range(5))

        assert exit_code(forked(reads)) == 0
        assert [p.name for p in folder.iterdir()] == ["history.sqlite"]
    finally:
        shutil.rmtree(folder)


def test_two_jobs_in_one_folder(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    met = [os.pipe() for _ in range(2)]

    def job(mine: int) -> bool:
        def meet(step: int) -> None:
            if step == 5:  # both have begun before either ends
                os.write(met[mine][1], b"x")
                os.read(met[1 - mine][0], 1)

        failures = loop(path, 60, meet)
        return failures > 1  # one of them finds the other there

    children = [forked(lambda mine=mine: job(mine)) for mine in range(2)]  # type: ignore[misc]
    assert [exit_code(child) for child in children] == [0, 0]
    for session in (1, 2):
        with RunHistory(path, session=session) as history:
            assert history.series("step_time").step.tolist() == list(range(60))


class Jumps:
    """A wall clock that somebody sets back in the middle of a run, and then far ahead."""

    def __init__(self) -> None:
        self.readings = 0

    def monotonic(self) -> float:
        return time.perf_counter()

    def wall(self) -> float:
        self.readings += 1
        return time.time() + {0: 0.0, 1: -86400.0, 2: 86400.0}[self.readings // 20 % 3]


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    settings = {"log_every_n_steps": 1, "on_monitor_error": "raise"}
    monitor = CMRPerformanceMonitor(settings, history={"file": str(path)}, clock=Jumps())
    for _ in range(100):
        with monitor.track_performance():
            pass
    monitor.close_history("completed")
    with RunHistory(path) as history:
        assert history.series("step_time").step.tolist() == list(range(100))
        json.dumps(report_of(history, "1h"), allow_nan=False)


def test_a_history_that_cannot_be_written_is_seen_in_health(tmp_path: Path) -> None:
    from cmr_monitor_callbacks import CMRMonitorCallback

    blocked = tmp_path / "file"
    blocked.write_text("where a folder should be")
    callback = CMRMonitorCallback(history={"file": str(blocked / "history.sqlite")})
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(40))
    assert callback.snapshot.step == 39 and callback.snapshot.value("failures") >= 1
    assert callback.health.components["monitor"].status.value == "warning"
    assert "the history: " in "".join(callback.monitor.error_log)
