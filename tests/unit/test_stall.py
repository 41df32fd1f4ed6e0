"""The stall watchdog, with time passed in."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import ConfigError, StallReport, StallWatchdogCallback
from cmr_monitor_callbacks.config import parse
from cmr_monitor_callbacks.config.stall import StallConfig
from cmr_monitor_callbacks.stall import StallWatchdog, Stand, limit_of
from cmr_monitor_callbacks.stall import watchdog as watchdog_module
from cmr_monitor_callbacks.stall.stacks import is_compiling, main_frames, where

SECOND = [1.0] * 5


@pytest.mark.parametrize(
    ("phase", "seconds", "compiling", "limit"),
    [
        ("forward", SECOND, False, 60),
        ("data", [10.0, 1.0, 7.0], False, 140),
        ("backward", [], False, 600),
        ("start", SECOND, False, 600),
        ("start", [40.0], False, 800),
        ("checkpoint", SECOND, False, 600),
        ("validation", SECOND, False, 300),
        ("sanity check", [], False, 600),
        ("test", SECOND, False, 300),
        ("prediction", [20.0], False, 400),
        ("forward", SECOND, True, 1800),
        ("forward", [100.0], True, 2000),
    ],
)
def test_what_is_allowed(phase: str, seconds: list[float], compiling: bool, limit: float) -> None:
    stand = Stand(phase, 0.0, 3)
    assert limit_of(stand, seconds, StallConfig(), compiling=compiling) == limit


class Run:
    """A run that stands where it is told."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.stand = Stand("start", 0.0, 0)
        self.told: list[StallReport] = []
        settings = parse(StallConfig, config, "stall")
        self.watchdog = StallWatchdog(
            settings, lambda: self.stand, self.told.append, rank=2, folder=folder
        )
        self.watchdog.steps.extend(SECOND)

    def at(self, *times: float) -> list[tuple[str, float, bool, bool]]:
        """Look at these times; what was told."""
        before = len(self.told)
        for now in times:
            self.watchdog.look(now)
        return [(r.phase, r.seconds, r.resumed, r.again) for r in self.told[before:]]


def test_a_stall_is_told_of_once_then_each_time_it_has_lasted_twice_as_long(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.stand = Stand("data", 100.0, 7)
    assert run.at(101, 120, 159.9) == []
    assert run.at(160, 161, 200, 219) == [("data", 60.0, False, False)]
    assert run.at(220, 339) == [("data", 120.0, False, True)]
    assert run.at(340) == [("data", 240.0, False, True)]
    run.stand = Stand("forward", 345.0, 7)
    assert run.at(346, 347) == [("data", 245.0, True, False)]
    assert run.at(404) == []
    assert run.at(405) == [("forward", 60.0, False, False)]


def test_progress_in_between_is_the_end_of_one_stall_and_the_begin_of_another(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    run.stand = Stand("data", 0.0, 7)
    run.at(60)
    run.stand = Stand("backward", 61.0, 7)  # nobody looked for long
    assert run.at(200) == [("data", 61.0, True, False), ("backward", 139.0, False, False)]


def test_a_process_that_was_stopped_and_goes_on_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a debugger, a scheduler or Ctrl-Z: the watchdog stood still as well."""
    done: list[str] = []
    monkeypatch.setattr(StallWatchdog, "_act", lambda self, report: done.append(report.phase))
    run = Run(tmp_path, action="exit")
    run.stand = Stand("data", 0.0, 7)
    run.watchdog.look(100.0, acts=False)
    assert [report.phase for report in run.told] == ["data"]
    run.stand = Stand("forward", 101.0, 7)
    run.at(102.0)
    assert done == [], "it went on"
    run.watchdog.look(201.0, acts=False)
    run.at(202.0)
    assert done == ["forward"], "it did not"
    run.at(401.0, 801.0)
    assert done == ["forward"], "once"


def test_what_is_to_be_done_is_done_though_nobody_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    monkeypatch.setattr(StallWatchdog, "_act", lambda self, report: done.append(report.phase))

    def tell(report: StallReport) -> None:
        raise OSError("the pager is away")

    stand = [Stand("data", 0.0, 7), Stand("forward", 90.0, 8)]
    watchdog = StallWatchdog(
        parse(StallConfig, {"action": "exit"}, "stall"), lambda: stand[0], tell, folder=tmp_path
    )
    watchdog.steps.extend(SECOND)
    watchdog.look(61.0)
    assert done == ["data"]
    del stand[0]
    watchdog.start()
    watchdog.stop()  # in a teardown: what it raises would be the run's end
    assert caplog.text.count("OSError: the pager is away") == 2


def test_the_stacks_are_written_and_bounded(tmp_path: Path) -> None:
    run = Run(tmp_path / "new")
    run.stand = Stand("optimizer", 0.0, 9)
    run.at(*(60.0 * 2**i for i in range(15)))
    assert len(run.told) == 15
    path = tmp_path / "new" / "stacks-rank002.txt"
    assert [report.stacks for report in run.told] == [path] * 10 + [None] * 5
    text = path.read_text()
    assert text.count("==== ") == 10
    assert "rank 2 has stood still for 60 s at step 9, in phase optimizer" in text
    assert Path(__file__).name in text
    assert str(run.told[0]).endswith(f"; stacks: {path}")
    assert f"({Path(__file__).name}:" in str(run.told[0])


def test_stacks_that_cannot_be_written_are_no_reason_to_be_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file")
    assert len(run.at(1000)) == 1
    assert run.told[0].stacks is None
    assert "could not be written" in caplog.text


def test_no_stacks_where_none_are_wanted(tmp_path: Path) -> None:
    run = Run(tmp_path, dump_stacks=False)
    run.at(1000)
    assert list(tmp_path.iterdir()) == []


def test_where_a_process_stands() -> None:
    frames = main_frames()
    assert where(frames).startswith("test_stall.py:")
    assert where(frames).endswith("in test_where_a_process_stands")
    assert not is_compiling(frames)


def test_a_compile_is_known_by_its_frames() -> None:
    torch = pytest.importorskip("torch")
    seen: list[bool] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(is_compiling(main_frames()))
        return graph.forward

    def ran(x: Any) -> Any:
        seen.append(is_compiling(main_frames()))
        return x + 1

    compiled = torch.compile(lambda x: torch.compiler.disable(ran)(x * 2), backend=backend)
    compiled(torch.ones(2))
    assert True in seen, "the backend runs while something is compiled"
    before = len(seen)
    compiled(torch.ones(2))
    assert seen[before:] == [False], "compiled code that runs is no compile"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"after": 0}, "stall.after: must be longer than 0 s, got 0"),
        ({"after": "5 steps"}, "stall.after: must be a duration like '30s', '10m', '12h' or '2d'"),
        ({"action": "kill"}, "stall.action must be 'none', 'interrupt' or 'exit', got 'kill'"),
        ({"afterr": 5}, "stall.afterr is not a setting; did you mean 'after'"),
        ({"times_median": 0}, "stall.times_median must be greater than 0.0, got 0"),
    ],
)
def test_a_wrong_setting_is_named(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StallWatchdogCallback(settings)
    assert message in str(caught.value)


def test_interrupt_reaches_the_main_thread(tmp_path: Path) -> None:
    """A job in the background may have been started with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = Run(tmp_path, action="interrupt", dump_stacks=False)
        with pytest.raises(KeyboardInterrupt):
            run.at(1000)
            for _ in range(10_000_000):  # the signal arrives between two bytecodes
                sys.getsizeof(0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_follows_a_compile_is_not_late_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling = True
    monkeypatch.setattr(watchdog_module, "is_compiling", lambda frames: compiling)
    told: list[StallReport] = []
    watchdog = StallWatchdog(StallConfig(), lambda: Stand("forward", 0.0, 7), told.append)
    watchdog.steps.extend([0.1, 0.1])
    watchdog.look(200.0)  # 20 minutes are allowed to a compile
    compiling = False
    watchdog.look(230.0)
    watchdog.look(259.0)
    assert told == []
    watchdog.look(261.0)
    assert [report.seconds for report in told] == [61.0]
