"""The pictures in the documentation are made by the project, from a real run, in a real browser."""

from __future__ import annotations

import importlib.util
import shutil
import struct
from pathlib import Path

import pytest

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.models import MemoryModule, loader, trainer

ROOT = Path(__file__).resolve().parents[2]


def size_of(png: Path) -> tuple[int, int]:
    """Width and height, from the header."""
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


def test_every_page_is_pictured(tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.fail("chromium is missing; on Debian: apt-get install chromium")
    spec = importlib.util.spec_from_file_location("shot", ROOT / "docs" / "make_screenshot.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rule = {"metric": "throughput", "condition": ">", "thresholds": {"warning": {"fire": 0}}}
    alerts = {
        "rules": {"it_runs": rule},
        "warmup": {"steps": 0},
        "escalation_rules": {"warning": {"delay": 0}},
    }
    callback = CMRMonitorCallback(alerts=alerts)
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(20))
    [run] = tmp_path.glob("lightning_logs/*/")
    assert script.main(["--logdir", str(run), "--out", str(tmp_path / "out"), "--scale", "1"]) == 0
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pictures == ["alerts.png", "custom_scalars.png", "tensorboard.png"]
    for name in pictures:
        assert size_of(tmp_path / "out" / name) == (1440, 900)
        assert (tmp_path / "out" / name).stat().st_size > 30_000
