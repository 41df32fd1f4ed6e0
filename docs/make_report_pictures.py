"""Take the pictures of `cmr-monitor watch` and of a report that the documentation shows.

    python docs/make_report_pictures.py                 # trains the example, watches it meanwhile
    python docs/make_report_pictures.py --run runs/x    # an ended run

Trains the example in a process of its own and pictures what `watch` shows of it once an alert
fires, as `docs/images/watch.svg`; then pictures the run's report, opened in a headless Chromium, as
`docs/images/report.png`. Takes some minutes. Needs Chromium (Debian: `chromium`).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from make_screenshot import REPOSITORY, ScreenshotError, browsing, wait_for
from rich.console import Console

from cmr_monitor_callbacks import HistoryError, RunHistory
from cmr_monitor_callbacks.cli.views import watch_view
from cmr_monitor_callbacks.reports.page import to_html

COLUMNS: Final = 110
WINDOWS: Final = 12
"""Ended before the picture is taken, so that there is something to see."""
# rich's own asks a server for a font
SVG: Final = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" \
xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: "Fira Code", "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture_of_watch(store: Path) -> str:
    """What `cmr-monitor watch` shows of a run now, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with RunHistory(store) as history:
        console.print(watch_view(history, "30m", COLUMNS))
    return console.export_svg(title="cmr-monitor watch", code_format=SVG, unique_id="watch")


def picture_of_report(store: Path, width: int, scale: float) -> bytes:
    """The whole page of a run's report, as PNG."""
    with tempfile.TemporaryDirectory() as folder, browsing(width, 900, scale) as browser:
        page = Path(folder, "report.html")
        with RunHistory(store) as history:
            page.write_text(to_html(history), encoding="utf-8")
        browser.open(page.as_uri())
        drawn = "document.querySelectorAll('.js-plotly-plot .main-svg').length"
        wait_for("the charts were drawn", lambda: browser.evaluate(drawn), 60)
        height = int(browser.evaluate("document.documentElement.scrollHeight"))
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **metrics)
        return browser.settled_picture()


def picture_while_training(folder: Path, arguments: list[str]) -> tuple[Path, str]:
    """Train the example, and picture what `watch` shows once an alert fires.

    Returns:
        the store of the run, once it has ended, and the picture.
    """
    script = str(REPOSITORY / "examples" / "train.py")
    command = [sys.executable, script, f"hydra.run.dir={folder}", *arguments]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:

            def firing() -> Path | None:
                if process.poll() is not None:
                    raise ScreenshotError("the run ended before an alert fired")
                return next(filter(shows_an_alert, folder.rglob("history.sqlite")), None)

            store: Path = wait_for("an alert fired", firing, 1200)
            picture = picture_of_watch(store)
            process.wait(1200)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said.seek(0)
            raise ScreenshotError(f"the run failed:\n{said.read().decode(errors='replace')}")
    return store, picture


def shows_an_alert(store: Path) -> bool:
    """Whether an alert fires in a run that has shown enough windows."""
    try:
        with RunHistory(store) as history:
            fires = any(row["after"] == "firing" for row in history.open_alerts())
            return fires and len(history.series("step_time")) >= WINDOWS
    except HistoryError:  # not yet begun
        return False


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures; the exit status is 1 if one could not be taken."""
    parser = argparse.ArgumentParser(description="Picture the live view and the report of a run.")
    parser.add_argument("--run", type=Path, help="log folder of an ended run; default: train one")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--scale", type=float, default=1.0, help="device pixels per pixel")
    parser.add_argument("overrides", nargs="*", help="of the example's settings, for Hydra")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.run is None:
                os.chdir(folder)  # the picture has the run's path
                store, watched = picture_while_training(Path("runs/demo"), options.overrides)
            else:
                [store] = options.run.rglob("history.sqlite")
                watched = picture_of_watch(store)
            write(out / "watch.svg", watched.encode())
            write(out / "report.png", picture_of_report(store, options.width, options.scale))
    except ScreenshotError as error:
        print(f"make_report_pictures: {error}", file=sys.stderr)
        return 1
    return 0


def write(path: Path, picture: bytes) -> None:
    """Write a picture, and say so."""
    path.write_bytes(picture)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
