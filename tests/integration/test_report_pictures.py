"""The pictures of `watch` and of a report are made by the project, from a real run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.integration.test_screenshot import size_of
from tests.models import MemoryModule, loader, trainer

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.browser
def test_an_ended_run_is_pictured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 2})
    trainer(tmp_path, [callback], max_steps=20).fit(MemoryModule(), loader(20))
    monkeypatch.syspath_prepend(str(DOCS))
    script = runpy.run_path(str(DOCS / "make_report_pictures.py"))
    arguments = ["--run", str(tmp_path), "--out", str(tmp_path / "out"), "--width", "900"]
    assert script["main"](arguments) == 0
    picture = (tmp_path / "out" / "watch.svg").read_text(encoding="utf-8")
    assert "step&#160;19" in picture and "http:" not in picture.replace("http://www.w3.org/", "")
    width, height = size_of(tmp_path / "out" / "report.png")
    assert width == 900 and height > 1500
