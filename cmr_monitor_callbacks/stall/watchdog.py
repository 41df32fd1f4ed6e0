"""The stall watchdog: a thread that notices that nothing goes on.

Rules are judged at the end of a window, so they cannot see that steps have stopped. The training
thread does nothing for the watchdog but what it does anyway, noting when a phase began; this thread
looks at that now and then. It runs no collective and calls nothing of torch, for both may be what
the run is stuck in. A call in C that keeps the interpreter's lock stops this thread as well: then
nothing is told until it comes back.
"""

from __future__ import annotations

import _thread
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cmr_monitor_callbacks.config.stall import StallConfig
from cmr_monitor_callbacks.stall.judge import Stand, limit_of
from cmr_monitor_callbacks.stall.stacks import dump, is_compiling, main_frames, where

logger = logging.getLogger(__name__)
EXIT_STATUS: Final = 75
"""EX_TEMPFAIL: it may go better next time."""
_DUMPS: Final = 10
_KEPT_STEPS: Final = 101
_AGAIN: Final = 2.0
"""A stall is told of again each time that it has lasted twice as long."""


@dataclass(frozen=True)
class StallReport:
    """A run that stands still, or that goes on again.

    Attributes:
        rank: of this process.
        step: the step that was under way.
        phase: what it was in the middle of.
        seconds: without progress.
        resumed: whether it goes on.
        where: the innermost line of the main thread that is no library's.
        stacks: the file with all stacks; None: none was written.
        again: whether this stall was told of before.
    """

    rank: int
    step: int
    phase: str
    seconds: float
    resumed: bool
    where: str = ""
    stacks: Path | None = None
    again: bool = False

    def __str__(self) -> str:
        """A sentence.

        >>> print(StallReport(3, 120, "data", 75.2, False, "loader.py:42 in __getitem__"))
        rank 3 has stood still for 75 s at step 120, in phase data (loader.py:42 in __getitem__)
        """
        if self.resumed:
            return (
                f"rank {self.rank} goes on at step {self.step} after {self.seconds:.0f} s in phase "
                f"{self.phase}"
            )
        place = f" ({self.where})" if self.where else ""
        text = (
            f"rank {self.rank} has stood still for {self.seconds:.0f} s at step {self.step}, in "
            f"phase {self.phase}{place}"
        )
        return text if self.stacks is None else f"{text}; stacks: {self.stacks}"


class StallWatchdog:
    """Watches one process.

    Args:
        config: what counts as a stall.
        stand: says where the run stands; called on the watchdog's thread, must not block.
        tell: told of a stall and of its end, on that thread.
        rank: of this process.
        folder: where stacks are written, unless ``config.folder`` says otherwise; None: nowhere.
        now: the clock of ``stand``, in seconds.

    Attributes:
        steps: seconds of the last steps; whoever trains appends to it.

    >>> told = []
    >>> config = StallConfig(dump_stacks=False)
    >>> watchdog = StallWatchdog(config, lambda: Stand("data", 0.0, 7), told.append)
    >>> watchdog.steps.extend([0.1, 0.1])
    >>> watchdog.look(59.0), watchdog.look(61.0)
    (None, None)
    >>> told[0].phase, told[0].step
    ('data', 7)
    """

    def __init__(
        self,
        config: StallConfig,
        stand: Callable[[], Stand],
        tell: Callable[[StallReport], None],
        *,
        rank: int = 0,
        folder: Path | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._stand = stand
        self._tell = tell
        self._rank = rank
        self._folder = folder if config.folder is None else Path(config.folder)
        self._now = now
        self.steps: deque[float] = deque(maxlen=_KEPT_STEPS)
        self._stalled: Stand | None = None
        self._again_at = 0.0
        self._compiled_at = -math.inf
        self._owed: StallReport | None = None
        self._dumps = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="cmr-monitor-stall", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Watch no more; a stall that was told of and is over is said to be."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.set()
            thread.join(5.0)
            self._resume(self._stand())

    def _run(self) -> None:
        pause = min(5.0, self._config.after / 4)
        looked = time.monotonic()
        while not self._stop.wait(pause):
            waited, looked = time.monotonic() - looked, time.monotonic()
            try:
                # this thread stood still as well: the process was stopped, and may well go on
                self.look(self._now(), acts=waited < pause + self._config.after / 2)
            except Exception:
                logger.exception("the stall watchdog failed and goes on")

    def look(self, now: float, *, acts: bool = True) -> None:
        """Compare where the run stands with what is allowed, and tell what is to be told.

        Args:
            now: on the clock of ``stand``.
            acts: whether ``config.action`` is done now; else with the next look.
        """
        stand = self._stand()
        self._resume(stand)
        stalled = self._stalled
        if self._owed is not None and acts:
            report, self._owed = self._owed, None
            self._act(report)
        seconds = now - stand.since
        if seconds < self._config.after:  # the usual case, without looking at any stack
            return
        frames = main_frames()
        compiling = is_compiling(frames)
        limit = limit_of(stand, tuple(self.steps), self._config, compiling=compiling)
        if compiling:
            self._compiled_at = now
        elif stalled is None:  # what follows a compile in a step is not late for it
            seconds = now - max(stand.since, self._compiled_at)
        if seconds < (limit if stalled is None else self._again_at):
            return
        again = stalled is not None
        self._stalled, self._again_at = stand, seconds * _AGAIN
        report = StallReport(self._rank, stand.step, stand.phase, seconds, False, where(frames))
        path = self._write(report)
        self._say(
            StallReport(
                self._rank, stand.step, stand.phase, seconds, False, report.where, path, again
            )
        )
        if not again and acts:
            self._act(report)
        elif not again:
            self._owed = report

    def _say(self, report: StallReport) -> None:
        """Whatever becomes of the word, what is to be done is done, and training goes on."""
        try:
            self._tell(report)
        except Exception:
            logger.exception("whom a stall is told of failed: %s", report)

    def _resume(self, stand: Stand) -> None:
        stalled = self._stalled
        if stalled is not None and stand.since != stalled.since:
            self._stalled = self._owed = None
            seconds = stand.since - stalled.since
            self._say(StallReport(self._rank, stalled.step, stalled.phase, seconds, True))

    def _write(self, report: StallReport) -> Path | None:
        if self._folder is None or not self._config.dump_stacks or self._dumps >= _DUMPS:
            return None
        self._dumps += 1
        path = self._folder / f"stacks-rank{self._rank:03d}.txt"
        try:
            dump(path, str(report))
        except OSError as error:
            logger.warning("the stacks of a stall could not be written: %s", error)
            return None
        return path

    def _act(self, report: StallReport) -> None:
        if self._config.action == "interrupt":
            _thread.interrupt_main()
        elif self._config.action == "exit":
            logger.critical("%s; this process ends", report)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(EXIT_STATUS)
