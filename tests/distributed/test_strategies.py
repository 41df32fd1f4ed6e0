"""Every strategy that starts its own processes: both ranks hold what both ranks' taps counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork", "fsdp2"])
def test_both_ranks_hold_what_both_counted(tmp_path: Path, strategy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.strategies", strategy, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    first, second = (answer["tap"] for answer in answers)
    assert first != second
    expected = {
        name: {layer: first[name][layer] + second[name][layer] for layer in first[name]}
        for name in first
    }
    for answer in answers:
        assert answer["snapshot"] == expected
        assert answer["world"] == 2
        assert answer["failures"] == 0
        assert answer["threads"] == []
