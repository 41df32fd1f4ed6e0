"""The writer: takes windows from the training thread and keeps them on a thread of its own.

The training thread appends to a queue and goes on. What cannot be written (a full disk, another
process's lock) waits in memory and is tried again; only when too much waits the oldest is lost,
which is counted and said.
"""

from __future__ import annotations

import atexit
import math
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cmr_monitor_callbacks.config.history import BLOCK, HistoryConfig
from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.history.files import set_aside
from cmr_monitor_callbacks.history.happenings import Change, as_text
from cmr_monitor_callbacks.history.schema import HistoryError
from cmr_monitor_callbacks.history.sessions import RunInfo
from cmr_monitor_callbacks.history.store import HistoryStore
from cmr_monitor_callbacks.resources import Sample
from cmr_monitor_callbacks.snapshot import Snapshot

CLOSE: Final = 10.0
"""Seconds that what is pending has at the end of a run."""
_PENDING: Final = 1000
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
Work = Callable[[HistoryStore], None]


class HistoryWriter:
    """Keeps windows, alerts, errors and marks.

    Args:
        path: of the file; None: in memory, written at once and bounded.
        config: how much is kept.
        info: tells of the run; asked on the writer's thread.
        wall: the clock.
        in_memory: windows of a stage that are kept where there is no file.

    Attributes:
        lost: windows and the like that could not be kept.
        latency: seconds that the last window took to be written; NaN before the first.
        seconds: that all windows took.

    >>> writer = HistoryWriter(None, HistoryConfig(), RunInfo)
    >>> writer.mark("begun", step=0, now=0.0)
    >>> writer.close("completed")
    """

    def __init__(
        self,
        path: Path | None,
        config: HistoryConfig,
        info: Callable[[], RunInfo],
        wall: Callable[[], float] = time.time,
        in_memory: int = BLOCK,
    ) -> None:
        self.path = path
        self.lost = 0
        self.latency, self.seconds = math.nan, 0.0
        self._config = config
        self._info = info
        self._wall = wall
        self._in_memory = in_memory
        self._queue: deque[Work] = deque()
        self._waiting: deque[threading.Event] = deque()
        self._failures: deque[Exception] = deque(maxlen=100)
        self._requests: deque[dict[str, Any]] = deque()
        self._begin_anew()
        _ALL.add(self)

    def _begin_anew(self) -> None:
        self.store: HistoryStore | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._retry_at = 0.0
        self._pause = _FIRST_PAUSE

    def __getstate__(self) -> dict[str, Any]:
        """Settings go to another process; the file, the thread and what is pending do not."""
        kept = ("path", "_config", "_info", "_wall", "_in_memory")
        return {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state.values())  # type: ignore[misc]

    # -- on the training thread ---------------------------------------------------------------

    def window(
        self,
        snapshot: Snapshot,
        transitions: Sequence[Transition] = (),
        changes: Sequence[Change] = (),
        sources: Mapping[str, str] | None = None,
        watches: str = "",
    ) -> None:
        """Have a window kept; neither it nor what it holds may be changed afterwards."""

        def work(store: HistoryStore) -> None:
            begun = time.perf_counter()
            store.window(snapshot, transitions, changes)
            if sources is not None:
                store.describe(sources, watches)
            self.latency = time.perf_counter() - begun
            self.seconds += self.latency
            self._requests.extend(store.requests(self._wall()))
            store.tidy(snapshot.time)

        self._put(work)

    def samples(self, samples: Sequence[Sample]) -> None:
        """Have samples of the machine kept, each with its time."""
        self._put(lambda store: store.samples(samples))

    def alerts(self, transitions: Sequence[Transition]) -> None:
        """Have changes of alerts kept that come between windows."""
        self._put(lambda store: store.alerts(transitions, ()))

    def errors(self, records: Sequence[ErrorRecord]) -> None:
        """Have errors kept."""
        self._put(lambda store: store.errors(records))

    def mark(self, label: str, step: int, now: float) -> None:
        """Have a note kept."""
        self._put(lambda store: store.mark(label, step, now))

    def diagnostics(self, found: Mapping[str, Any]) -> None:
        """Have what the diagnostics found kept; it may be changed afterwards."""
        text = as_text(found)
        about = {name: found[name] for name in ("step", "time", "status")}
        self._put(lambda store: store.diagnostics(about, text))

    @property
    def is_begun(self) -> bool:
        """Whether anything was kept since it was made or closed; in memory: at all."""
        return self.store is not None or self._thread is not None

    def take_failures(self) -> list[Exception]:
        """What went wrong since the last call."""
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def take_requests(self) -> list[dict[str, Any]]:
        """What other processes asked of the run since the last call."""
        return [self._requests.popleft() for _ in range(len(self._requests))]

    def _put(self, work: Work) -> None:
        if self._process != os.getpid():
            self._leave_behind()
        with self._lock:  # the watchdog's thread puts, too
            if self.path is None:
                self._try(work)
            else:
                self._enqueue(work)

    def _enqueue(self, work: Work) -> None:
        if len(self._queue) >= _PENDING:
            self._queue.popleft()
            self.lost += 1
            self._failures.append(RuntimeError("a window is lost: too many wait to be written"))
        self._queue.append(work)
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="cmr-monitor-history", daemon=True
            )
            self._thread.start()

    def flush(self, timeout: float = CLOSE) -> bool:
        """Wait until all is written, or could not be; not longer than so many seconds.

        Returns:
            whether nothing is pending.
        """
        if self._thread is not None and self._process == os.getpid():
            done = threading.Event()
            self._retry_at = 0.0
            self._waiting.append(done)
            self._wake.set()
            done.wait(timeout)
        return not self._queue

    def _leave_behind(self) -> None:
        """In a forked process the file and the thread are the other's: they are let be."""
        if self.store is not None:
            _INHERITED.append(self.store)
        self._queue = deque()
        self._begin_anew()

    def close(self, outcome: str, timeout: float = CLOSE) -> None:
        """Write what is pending, end the session and close the file; later work begins a new one.

        Args:
            outcome: how the run ended.
            timeout: in seconds; what is left then is lost and counted.
        """
        if self._process != os.getpid():
            self._leave_behind()
            return
        thread = self._thread
        if thread is not None:
            self._retry_at = 0.0
            self._closing.set()
            self._wake.set()
            thread.join(timeout)
        left = len(self._queue)
        if left:
            self.lost += left
            self._failures.append(RuntimeError(f"{left} windows are lost: the run has ended"))
        self._queue = deque()
        store, self.store = self.store, None
        if store is not None and (thread is None or not thread.is_alive()):
            try:
                store.end(self._wall(), outcome)
                if self.path is not None:
                    store.connection.close()
            except sqlite3.Error as error:
                self._failures.append(error)
        self._begin_anew()
        if self.path is None:  # it can still be read
            self.store = store

    # -- on the writer's thread -----------------------------------------------------------------

    def _run(self) -> None:
        queue, wake, closing, waiting = self._queue, self._wake, self._closing, self._waiting
        while True:
            pause = max(0.0, self._retry_at - time.monotonic()) if queue else None
            wake.wait(pause)
            wake.clear()
            # first: who waits now waits for what is in the queue now
            asked = [waiting.popleft() for _ in range(len(waiting))]
            ends = closing.is_set()
            while queue and (ends or time.monotonic() >= self._retry_at):
                work = queue.popleft()
                if not self._try(work):
                    queue.appendleft(work)
                    break
            for event in asked:
                event.set()
            if ends:
                return

    def _try(self, work: Work) -> bool:
        """Do one piece of work; False: it is to be tried again."""
        try:
            store = self.store
            if store is not None and store.is_lost():
                self._failures.append(
                    HistoryError(f"the history {str(self.path)!r} was deleted; a new one is begun")
                )
                store.connection.close()
                self.store = None
            if self.store is None:
                self.store = self._open()
            work(self.store)
        except (OSError, sqlite3.OperationalError) as error:
            self._failures.append(error)
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
            return self.path is None
        except sqlite3.DatabaseError as error:  # damaged
            self._failures.append(error)
            self._set_aside()
            self._retry_at = time.monotonic() + self._pause
            return self.path is None
        except Exception as error:  # no second try would end otherwise
            self.lost += 1
            self._failures.append(error)
        self._pause = _FIRST_PAUSE
        return True

    def _open(self) -> HistoryStore:
        try:
            store = self._make()
        except HistoryError as error:  # somebody else's file, or a newer version's
            self._failures.append(error)
            self._set_aside()
            store = self._make()
        for other in store.others:
            text = f"{other} writes to {str(self.path)!r} too; its windows are kept apart"
            self._failures.append(HistoryError(text))
        return store

    def _make(self) -> HistoryStore:
        return HistoryStore(self.path, self._config, self._info(), self._wall(), self._in_memory)

    def _set_aside(self) -> None:
        """Give a file that cannot be used another name: nothing in it is lost."""
        store, self.store = self.store, None
        if store is not None:
            store.connection.close()
        if self.path is not None and self.path.exists():
            name = set_aside(self.path)
            text = f"the history {str(self.path)!r} cannot be used; it is called {name} now"
            self._failures.append(HistoryError(text))


_ALL: weakref.WeakSet[HistoryWriter] = weakref.WeakSet()
_INHERITED: list[HistoryStore] = []
"""Of a process that this one was forked from: closing them here would touch its file."""


@atexit.register
def _close_all() -> None:
    """A plain loop that ends without closing its monitor loses no window."""
    for writer in list(_ALL):
        writer.close("ended")
