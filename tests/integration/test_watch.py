"""`cmr-monitor watch` in a real terminal, over a store that another process writes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmr_monitor_callbacks.health import Phase
from tests.histories import end, transition
from tests.runs import begin, make, write

LONG = 60.0
SHOWS, HIDES = b"\x1b[?1049h", b"\x1b[?1049l"
# a shell stays: when the first process of a terminal ends, what was not read yet is lost
SHELL = 'trap : INT TERM; "$@"; echo "[exit $?]"; trap - TERM; sleep 600'
COMMAND = ("-m", "cmr_monitor_callbacks.cli", "watch")
CURSOR = b"\x1b[?25h"


class Terminal:
    """The command in a pseudo-terminal of 100 columns and 40 lines."""

    def __init__(self, *arguments: object) -> None:
        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            ["bash", "-c", SHELL, "--", sys.executable, *COMMAND, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.said = b""

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if ready:
            self.said += os.read(self.fd, 65536)
        return bool(ready)

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.said.decode("utf-8", "replace"))

    def wait_for(self, *parts: str) -> str:
        """Read on until all of these have been said since the last call; gives back what was."""
        until = time.monotonic() + LONG
        while not all(part in self.text() for part in parts):
            assert time.monotonic() < until, self.text()[-4000:]
            self._read(0.2)
        found, self.said = self.text(), b""
        return found

    def end(self) -> tuple[int, bytes]:
        """Its exit code and what it said until then."""
        until = time.monotonic() + LONG
        while not (found := re.search(rb"\[exit (\d+)\]", self.said)):
            assert time.monotonic() < until, self.text()[-4000:]
            self._read(0.2)
        return int(found[1]), self.said

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.before

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.fd)
        os.close(self._theirs)


@contextmanager
def watching(*arguments: object) -> Iterator[Terminal]:
    terminal = Terminal(*arguments, "--interval", "0.1")
    try:
        yield terminal
    finally:
        terminal.close()


def test_it_follows_a_run_until_that_ends(tmp_path: Path) -> None:
    store = begin(tmp_path)
    write(store, range(5))
    with watching(tmp_path) as terminal:
        first = terminal.wait_for("step 4 ", " 80 % ", " ▇▇▇▇▇", "step_time", "500 ms")
        assert "No alert is firing." in first and "healthy (100 of 100)" in first
        fired = transition("refused", 9, Phase.FIRING, layer=6)
        write(store, range(5, 10), stored=0.25, transitions=[fired])
        terminal.wait_for("step 9 ", "warning refused since step 9", "25 % ", " ▇▇▇▇▇▃▃▃▃▃")
        end(store)
        code, said = terminal.end()
        assert code == 0 and terminal.is_as_before()
        left = said[said.index(HIDES) :]
        assert CURSOR in said and b"ended" in left and b"refused since step 9" in left


def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    store = begin(tmp_path)
    write(store, range(5))
    with watching(tmp_path) as terminal:
        terminal.wait_for("step 4 ")
        os.write(terminal.fd, b"\x03")
        code, said = terminal.end()
        assert code == 130 and terminal.is_as_before()
        assert HIDES in said and CURSOR in said and b"Traceback" not in said
    end(store)


def test_the_scheduler_ends_it(tmp_path: Path) -> None:
    store = begin(tmp_path)
    write(store, range(5))
    with watching(tmp_path) as terminal:
        terminal.wait_for("step 4 ")
        os.killpg(terminal.process.pid, signal.SIGTERM)
        code, said = terminal.end()
        assert code == 143 and HIDES in said and CURSOR in said
    end(store)


def test_the_file_is_deleted_under_it(tmp_path: Path) -> None:
    store = begin(tmp_path)
    write(store, range(5))
    with watching(tmp_path) as terminal:
        terminal.wait_for("step 4 ")
        for path in tmp_path.iterdir():
            path.unlink()
        code, said = terminal.end()
        assert code == 2 and HIDES in said and CURSOR in said
        after = said[said.index(HIDES) :]
        assert b"there is no history at" in after and b"Traceback" not in said
    store.connection.close()


def test_a_run_that_is_over_is_shown_once(tmp_path: Path) -> None:
    make(tmp_path, 5)
    with watching(tmp_path) as terminal:
        code, said = terminal.end()
        assert code == 0 and b"ended" in said[said.index(HIDES) :]
