"""The HTML report as a browser shows it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmr_monitor_callbacks import CMRMonitorCallback, HistoryError, RunHistory
from cmr_monitor_callbacks.reports import page as page_module
from cmr_monitor_callbacks.reports.page import to_html
from tests.browser import SHOT, Browser, browser
from tests.histories import snapshot, store
from tests.models import MemoryModule, loader, trainer
from tests.reported import HOSTILE, filled

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def shared() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture
def window(shared: Browser) -> Iterator[Browser]:
    """The browser, which fails the test where a page complains or asks for anything."""
    shared.asked.clear()
    shared.complaints.clear()
    yield shared
    shared.evaluate("1")  # what is said until now
    assert shared.complaints == []
    assert [url for url in shared.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert shared.asked, "the page itself is asked for, else nothing was listened to"


def page_of(root: Path, time_range: str | None = None) -> Path:
    with RunHistory(root) as history:
        (root / "report.html").write_text(to_html(history, time_range), encoding="utf-8")
    return root / "report.html"


def section(name: str) -> str:
    return f"section#{name} "


def test_every_part_is_drawn_and_can_be_seen(tmp_path: Path, window: Browser) -> None:
    filled(tmp_path / "history.sqlite", 60)
    window.show(page_of(tmp_path))
    heads = window.texts("h2")
    assert heads == [
        *("Health", "Alerts", "Alert log", "Errors", "Diagnostics", "What changed"),
        *("Trends", "Layers", "Latency", "Resources"),
    ]
    titles = {name: window.texts(section(name) + ".gtitle") for name in map(str.lower, heads)}
    assert titles["health"] == ["status by component", "score"]
    assert titles["alerts"] == ["firing alerts"]
    assert "storage_efficiency" in titles["trends"] and "throughput" in titles["trends"]
    assert "eviction_count per step" in titles["layers"] and len(titles["layers"]) == 5
    assert titles["latency"] == ["retrieval_time"]
    assert window.texts(section("latency") + ".legendtext") == ["p50", "p95", "p99"]
    assert titles["resources"] == ["memory_size_mb"]
    assert "system" in window.texts(section("health") + ".ytick text")
    assert "a bad state, layer 2" in window.texts(section("alerts") + ".ytick text")
    assert window.texts(section("layers") + ".ytick text")[:3] == ["layer 6", "layer 4", "layer 2"]
    assert window.evaluate("document.querySelectorAll('.hm image').length") == 6
    assert window.evaluate("document.querySelectorAll('.scatterlayer .js-line').length") >= 11
    [lead] = window.texts(".lead")
    assert lead.startswith("The largest part of a step (29.3 % of 136 ms) is the forward pass.")
    assert window.texts(".badge.large") == ["critical · 50 of 100"]
    assert "memory_buffer: healthy" in window.texts(".badge")
    assert "KeyError: a bad state" in window.texts(section("errors") + "td")


def test_nothing_breaks_out_of_the_page(tmp_path: Path, window: Browser) -> None:
    layers = (HOSTILE, "4", 4, "</script><script>document.title='broken'</script>", "x" * 500)
    root = tmp_path / "<img src=x onerror=alert(1)>"
    filled(root / "history.sqlite", 20, layers, text=HOSTILE, host=HOSTILE, git_commit="<b>")
    window.show(page_of(root))
    assert window.evaluate("document.title") == root.name
    assert window.evaluate("document.querySelectorAll('body img, section b, svg a').length") == 0
    one_line = " ".join(HOSTILE.split())
    assert any(HOSTILE in text for text in window.texts("td"))
    marks = window.texts("text.js-shape-label, .shape-label text")
    assert all(text.startswith(one_line[:20]) for text in marks)
    ticks = window.texts(section("layers") + ".ytick text")
    assert {"layer 4", 'layer "4"'} <= set(ticks)
    assert "layer </script><script>document.t…" in ticks
    assert max(map(len, ticks)) < 45


def test_the_dark_look_has_light_text(tmp_path: Path, window: Browser) -> None:
    filled(tmp_path / "history.sqlite", 20)
    page = page_of(tmp_path)
    looks = {}
    for dark in (False, True):
        window.show(page, dark=dark)
        looks[dark] = window.evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('.gtitle')).fill].map("
            "c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 765)"
        )
    assert looks[False][0] > 0.9 > 0.3 > looks[False][1]
    assert looks[True][0] < 0.15 < 0.7 < looks[True][1]
    # who changes it while the page is open gets it at once
    fill = "getComputedStyle(document.querySelector('.gtitle')).fill"
    bright = window.evaluate(fill)
    feature = {"name": "prefers-color-scheme", "value": "light"}
    window.call("Emulation.setEmulatedMedia", features=[feature])
    SHOT.wait_for("dark text", lambda: window.evaluate(fill) not in (None, bright), 30)


def test_a_long_run_of_many_layers_stays_light(tmp_path: Path, window: Browser) -> None:
    filled(tmp_path / "history.sqlite", 3000, tuple(range(48)))
    page = page_of(tmp_path)
    window.show(page)
    own = page.stat().st_size - len(page_of_nothing(tmp_path / "none"))
    assert own < 1_500_000, "beside the script of the charts"
    assert window.evaluate("document.documentElement.scrollHeight") < 8000
    assert window.evaluate("document.documentElement.scrollWidth") <= 1280
    width = "document.querySelector('#layers .hm image').getBoundingClientRect().width"
    assert window.evaluate(width) > 300


def page_of_nothing(root: Path) -> bytes:
    store(root / "history.sqlite")
    return page_of(root).read_bytes()


def test_a_short_trouble_of_a_long_run_is_seen(tmp_path: Path, window: Browser) -> None:
    opened = store(tmp_path / "history.sqlite")
    for step in range(3000):
        own = {"status": 3.0 if step == 1234 else 1.0, "score": 90.0}
        opened.window(snapshot(step, {"step_time": 9.0 if step == 77 else 0.1}, own=own))
        opened.tidy(0.0)
    window.show(page_of(tmp_path))
    worst = "Math.max(...document.querySelector('#health figure').data[0].z[0])"
    assert window.evaluate(worst) == 3
    band = "Math.max(...document.querySelector('#trends figure').data[0].y)"
    assert window.evaluate(band) == 9000


@pytest.mark.parametrize("windows", [0, 1, 2])
def test_a_run_that_has_just_begun(windows: int, tmp_path: Path, window: Browser) -> None:
    opened = store(tmp_path / "history.sqlite")
    for step in range(windows):
        values = {"step_time": 0.1, ("utilization_rate", 4): 0.5, ("eviction_count", 4): 1.0}
        opened.window(snapshot(step, values, layers=(4,), own={"status": 1.0, "score": 100.0}))
    window.show(page_of(tmp_path))
    [facts] = window.texts("header .note")
    assert ("No window of training has ended" in facts) == (windows == 0)
    assert ("Health" in window.texts("h2")) == (windows > 0)


def test_a_real_run(tmp_path: Path, window: Browser) -> None:
    callback = CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(40))
    [path] = tmp_path.rglob("history.sqlite")
    window.show(page_of(path.parent))
    heads = window.texts("h2")
    assert {"Health", "Trends", "Layers", "Latency"} <= set(heads)
    assert "ended. 8 windows, steps 4 to 39" in window.texts("header .note")[0]


def test_a_narrow_window_has_one_column(tmp_path: Path) -> None:
    filled(tmp_path / "history.sqlite", 20, ("x" * 300,), text="y" * 300)
    with browser(width=500) as narrow:
        narrow.show(page_of(tmp_path))
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 500
        boxes = "[...document.querySelectorAll('#trends figure')].map(f => f.offsetLeft)"
        assert len(set(narrow.evaluate(boxes))) == 1


def test_the_page_names_no_address_that_a_browser_loads(tmp_path: Path) -> None:
    filled(tmp_path / "history.sqlite", 5)
    text = page_of(tmp_path).read_text(encoding="utf-8")
    assert not re.findall(r"<(?:link|img|iframe|script|object|embed)[^>]*(?:src|href)=", text)
    own = page_module._PAGE.read_text(encoding="utf-8")
    assert "http" not in own and "@import" not in own and "url(" not in own


def test_without_plotly_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HistoryError, match=r"pip install 'cmr-monitor-callbacks\[dashboard\]'"):
        to_html(RunHistory(filled(None, 5)))
