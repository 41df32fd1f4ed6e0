"""Ctrl-C on a terminal: a real signal in the middle of a real run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.integration.event_files import series

ROOT: Final = Path(__file__).resolve().parents[2]
LONGEST: Final = 120.0
"""Seconds in which an interrupted run must be over, on a machine that is busy."""


def test_a_run_that_is_interrupted_ends_and_leaves_nothing(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.interrupted", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    try:
        said = next((line for line in run.stdout if line == "under way\n"), "")
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=LONGEST)  # a thread that goes on would hold it
    finally:
        run.kill()
    assert said, errors
    assert run.returncode == 1, errors  # Lightning's own, after a graceful shutdown
    assert "attempting graceful shutdown" in errors and "Traceback" not in errors

    left = json.loads(out.splitlines()[-1])
    assert (left["methods"], left["hooks"], left["threads"]) == ([], 0, [])
    # the step that was interrupted counts for nothing; all before it do
    assert left["step"] + 1 in (left["forwards"], left["forwards"] - 1)
    logged = series(tmp_path)
    stored = logged["cmr_capture/states_stored"]
    assert list(stored)[:4] == [4, 9, 14, 19]
    assert max(stored) == left["step"], "the window begun is in the file"
    assert stored[left["step"]] == pytest.approx(left["stored"])
    assert logged["cmr_health/score"].keys() == stored.keys()
