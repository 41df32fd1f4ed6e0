"""A rank that is late, lost or out of step: the others go on alone, say so once, and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.processes import Job, Outcome, Rank, start

pytestmark = pytest.mark.distributed

TIMEOUT = 2.0
WINDOW, STEPS, AT = 5, 40, 19
"""The fault is in the fourth window's last step; the third has been taken by then."""
LONG = 40.0
"""Seconds that nothing here may take."""


class _Sink:
    def __init__(self) -> None:
        self.worlds: dict[int, int] = {}

    def write(self, report: Any) -> None:
        self.worlds[report.snapshot.step] = report.snapshot.world_size

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def _threads() -> int:
    """Threads of this process, those of C++ included."""
    return len(list(Path("/proc/self/task").iterdir()))


def _loop(rank: Rank, fault: str) -> dict[str, Any]:
    with rank.together():
        if fault == "no monitor" and rank.rank == 1:
            rank.wait_for("end", 0)
            return {}
        before = _threads()
        mine = rank.rank == 1
        window = 2 * WINDOW if fault == "other window" and mine else WINDOW
        settings = {"log_every_n_steps": window, "reduction_timeout": TIMEOUT}
        monitor = CMRPerformanceMonitor(settings, alert_config={"enable_alerts": False})
        sink, decisions = _Sink(), []
        monitor.sinks.append(sink)
        monitor.on_decision = lambda kind, why: decisions.append((monitor.current_step, kind, why))
        start = time.monotonic()
        monitor.join_ranks()
        first = OWN_LAYERS.get(fault, 4) if mine else 4
        monitor.record_capture(first, 1, 0.001)
        monitor.agree_on_layers()
        own = 1
        for step in range(STEPS):
            monitor.record_capture(first, 1, 0.001)
            own += 1
            if step == AT and mine and _fails(monitor, fault, rank):
                return {"rank": rank.rank}
            if step == AT and not mine:
                monitor.request_stop("rank 0 wants it")  # goes with the window that fails
            if step == 30:
                monitor.request_checkpoint("later")
            if not (fault == "skips" and mine and AT <= step < AT + WINDOW):
                monitor.step(step)
        monitor.flush()
        said = {
            "stored": monitor.snapshot.layers("states_stored"),
            "own": own,
            "step": monitor.snapshot.step,
            "worlds": sink.worlds,
            "failures": monitor.failures,
            "shown failures": monitor.snapshot.value("failures"),
            "errors": list(monitor.error_log),
            "decisions": decisions,
            "lost": monitor._ranks.lost,
        }
        monitor.leave_ranks()
        said["groups"] = len(dist.distributed_c10d._world.pg_map)
        rank.say("end")
        said["seconds"] = time.monotonic() - start
        end = time.monotonic() + 10
        while _threads() > before and time.monotonic() < end:
            time.sleep(0.02)  # C++ threads end on their own
        said["threads"] = _threads() - before
        return said


def _fails(monitor: CMRPerformanceMonitor, fault: str, rank: Rank) -> bool:
    """Do what is wrong; True: leave without a word."""
    if fault == "late a little":
        time.sleep(TIMEOUT / 4)
    elif fault == "late too much":
        time.sleep(2 * TIMEOUT)
    elif fault == "raises":
        raise RuntimeError("this rank is broken")
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stopped":
        rank.say("stopped")
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "ends early":
        monitor.leave_ranks()
        return True
    elif fault == "ends early after a flush":
        monitor.flush()
        monitor.leave_ranks()
        return True
    elif fault == "alike later":
        monitor.record_capture("04", 1000, 0.001)
    return False


OWN_LAYERS: dict[str, int | str] = {"alike at first": "04", "alike later": 6}
"""Rank 1's, where it is not the same as rank 0's."""


def _run(fault: str, folder: Path) -> list[Outcome]:
    if fault != "stopped":
        return start(_loop, 2, folder, fault, limit=LONG)
    job = Job(_loop, 2, folder, fault)
    try:
        job.join(LONG, ranks=[0])
        job.signal(1, signal.SIGCONT)  # it finds itself alone
        job.join(LONG)
    finally:
        job.kill()
    return job.outcomes()


GONE = {"raises": 1, "killed": -signal.SIGKILL}
NO_MORE = {"raises", "killed", "ends early", "ends early after a flush", "no monitor"}
FAULTS = (
    "late too much",
    "skips",
    "raises",
    "killed",
    "stopped",
    "ends early",
    "ends early after a flush",
    "other window",
    "no monitor",
    "alike at first",
    "alike later",
)


@pytest.fixture(scope="module", params=FAULTS)
def faulty(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[Outcome]]]:
    """A fault, and what became of the ranks that had to go on."""
    fault: str = request.param
    outcomes = _run(fault, tmp_path_factory.mktemp("fault") / "job")
    codes = [outcome.code for outcome in outcomes]
    assert codes == [0, GONE.get(fault, 0)], outcomes[0].output
    yield fault, [outcome for i, outcome in enumerate(outcomes) if not (i and fault in NO_MORE)]


Faulty = tuple[str, list[Outcome]]


def _good_windows(fault: str) -> int:
    """Windows that all ranks put together before the fault."""
    at_once = ("other window", "no monitor", "alike at first")
    return 0 if fault in at_once else 4 if fault == "alike later" else 3


def test_the_others_go_on_with_their_own_numbers(faulty: Faulty) -> None:
    fault, outcomes = faulty
    shared = _good_windows(fault)
    for outcome in outcomes:
        said = outcome.result
        assert said["step"] == STEPS - 1
        worlds = said["worlds"]
        window = 2 * WINDOW if fault == "other window" and outcome is outcomes[-1] else WINDOW
        assert list(worlds.values())[:shared] == [2] * shared
        assert set(list(worlds.values())[shared:]) == {1}
        if not (fault == "skips" and outcome is outcomes[-1]):
            assert list(worlds) == list(range(window - 1, STEPS, window))


def test_no_number_is_lost_and_none_counted_twice(faulty: Faulty) -> None:
    fault, outcomes = faulty
    others = 1 + WINDOW * _good_windows(fault) if _good_windows(fault) else 0
    for rank, outcome in enumerate(outcomes):
        stored, own = outcome.result["stored"], outcome.result["own"]
        if fault == "alike at first":
            assert stored == {("04" if rank else 4): own}
        elif fault == "alike later":  # what looks like another rank's layer is left out
            assert stored == ({6: own, 4: others} if rank else {4: own, 6: others})
        else:
            assert stored == {4: own + others}


def test_it_is_said_once_and_counted(faulty: Faulty) -> None:
    fault, outcomes = faulty
    for outcome in outcomes:
        said = outcome.result
        assert said["lost"]
        assert said["failures"] == 1
        assert said["shown failures"] >= 1
        assert len(said["errors"]) == 1, said["errors"]
        lost = [text for text in outcome.logs if "numbers of this rank are its own" in text]
        assert len(lost) == 1, outcome.logs
    if fault.startswith("alike"):
        assert "'04'" in outcomes[0].logs[0]
        assert "rename" in outcomes[0].logs[0]
    if fault == "no monitor":
        assert "rank 1 has no monitor" in outcomes[0].logs[0]


def test_votes_are_suspended_and_that_is_said(faulty: Faulty) -> None:
    fault, outcomes = faulty
    for rank, outcome in enumerate(outcomes):
        wanted = ["checkpoint"]
        if rank == 0 and fault != "alike later":  # there the window with the vote came through
            wanted.insert(0, "stop")
        taken = [kind for _, kind, _ in outcome.result["decisions"]]
        assert taken == (["stop"] if fault == "alike later" else [])
        said = [text.split()[1] for text in outcome.logs if "cannot be asked" in text]
        assert said == wanted, outcome.logs


def test_nothing_is_left_and_nothing_took_long(faulty: Faulty) -> None:
    for outcome in faulty[1]:
        assert outcome.result["groups"] == 1  # the default one
        assert outcome.result["threads"] == 0
        assert outcome.result["seconds"] < 10 * TIMEOUT


def test_a_rank_that_is_late_in_time_costs_nothing(tmp_path: Path) -> None:
    for outcome in start(_loop, 2, tmp_path / "job", "late a little", limit=LONG):
        assert outcome.code == 0, outcome.output
        said = outcome.result
        assert set(said["worlds"].values()) == {2}
        assert said["stored"] == {4: 2.0 * (STEPS + 1)}
        assert said["failures"] == 0
        assert [kind for _, kind, _ in said["decisions"]] == ["stop", "checkpoint"]
        assert outcome.logs == []
        assert said["threads"] == 0


PROGRAM = """
import sys
from pathlib import Path
from tests.distributed.processes import Rank
from tests.distributed.test_lost_ranks import _loop

_loop(Rank(int(sys.argv[1]), 2, Path(sys.argv[2])), sys.argv[3])
print("the end", flush=True)
"""


@pytest.mark.parametrize("fault", ["stopped", "killed", "late a little"])
def test_an_interpreter_ends_by_itself(tmp_path: Path, fault: str) -> None:
    """Unlike multiprocessing's children, which leave at once, it waits for its threads."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path), fault],
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said, _ = programs[0].communicate(timeout=LONG)
        assert programs[0].returncode == 0, said
        assert said.endswith("the end\n")
        if fault == "stopped":
            programs[1].send_signal(signal.SIGCONT)
        other, _ = programs[1].communicate(timeout=LONG)
        assert programs[1].returncode == (-signal.SIGKILL if fault == "killed" else 0), other
    finally:
        for program in programs:
            program.kill()
            program.wait()
