"""Take the pictures of TensorBoard that the documentation shows.

    python docs/make_screenshot.py                  # the newest run under runs/
    python docs/make_screenshot.py --logdir runs/x  # another one

Starts TensorBoard and a headless Chromium on this machine, waits until the charts are drawn,
writes `docs/images/tensorboard.png`, `docs/images/custom_scalars.png` if the run has a custom
layout and `docs/images/alerts.png` if it had alerts, and ends both programs. Needs Chromium
(Debian: `chromium`).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

REPOSITORY: Final = Path(__file__).resolve().parent.parent
# The story of the demo in six charts: one layer refuses, an alert fires, a relief mends it.
TAGS: Final = (
    r"^cmr_(capture/storage_efficiency/layer_\d+|health/(alerts_firing|score)"
    r"|retrieval/cache_hit_rate)$"
)
EVENT_FILES: Final = "*tfevents*"
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)

# TensorBoard keeps a user's choices in the browser. Ours leave the room to the charts.
USER_SETTINGS: Final = {
    "ignoreOutliers": False,
    "sideBarWidthInPercent": 14,
    "stepSelectorEnabled": False,
    "timeSeriesSettingsPaneOpened": False,
}

# Elements of the page, those inside shadow roots included (Custom Scalars is made of them).
FIND_ALL: Final = """
    const findAll = (selector, root = document) => {
        const found = [...root.querySelectorAll(selector)];
        for (const element of root.querySelectorAll('*'))
            if (element.shadowRoot) found.push(...findAll(selector, element.shadowRoot));
        return found;
    };
    const inView = element => {
        const box = element.getBoundingClientRect();
        return box.width > 1 && box.height > 1 && box.top < innerHeight && box.bottom > 0;
    };
"""


class ScreenshotError(RuntimeError):
    """A picture could not be taken; the message says what was missing."""


def newest_run(runs: Path) -> Path:
    """The folder directly under `runs` that holds the most recently written event file."""
    written = {
        file.relative_to(runs).parts[0]: file.stat().st_mtime
        for file in sorted(runs.rglob(EVENT_FILES), key=lambda file: file.stat().st_mtime)
        if file.parent != runs
    }
    if not written:
        raise ScreenshotError(f"no event file under {runs}; make a run first: make demo")
    return runs / max(written, key=lambda name: written[name])


def wait_for(what: str, condition: Callable[[], Any], seconds: float) -> Any:
    """Poll `condition` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise ScreenshotError(f"{what}: not within {seconds:g} s")
        time.sleep(0.2)
    return result


def end(process: subprocess.Popen[Any]) -> None:
    """End a program that `serving` or `Browser` started, and what it started in turn."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def serving(logdir: Path) -> Iterator[str]:
    """Serve `logdir` with TensorBoard on a free port of 127.0.0.1; yields the address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs"]
    command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        # Through a link, so that the page shows the run by its name, and no path of this machine.
        link = Path(folder, "runs", logdir.name)
        link.parent.mkdir()
        link.symlink_to(logdir, target_is_directory=True)
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

        def address() -> str | None:
            output.seek(0)
            text = output.read()
            if process.poll() is not None:
                raise ScreenshotError(f"TensorBoard ended with {process.returncode}:\n{text}")
            match = re.search(r"http://127\.0\.0\.1:\d+", text)
            return match.group() if match else None

        try:
            url = wait_for("TensorBoard gave its address", address, 60)
            wait_for("TensorBoard served the run", lambda: get(f"{url}/data/runs"), 60)
            yield url
        finally:
            end(process)


def get(url: str) -> Any:
    """The JSON at `url`, or None while nothing answers there."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError):
        return None


class Browser:
    """A headless Chromium, told what to do in DevTools messages through a pair of pipes."""

    def __init__(self, profile: Path, width: int, height: int, scale: float) -> None:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        if program is None:
            raise ScreenshotError(f"no browser found: install one of {', '.join(BROWSERS)}")
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        # Chromium reads its descriptor 3 and writes 4.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        flags = [*BROWSER_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", program, *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._received = b""
        self._last_id = 0
        self._session: str | None = None
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            session = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = session["sessionId"]
            self.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=scale,
                mobile=False,
            )
            self.call("Page.enable")
            self.call(
                "Page.addScriptToEvaluateOnNewDocument",
                source="if (location.protocol === 'http:') localStorage.setItem("
                f"'_tb_global_settings', {json.dumps(json.dumps(USER_SETTINGS))})",
            )
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *, within: float = 60, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and return its result."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + within
        while True:
            answer = self._next_message(method, deadline)
            if answer.get("id") == self._last_id:
                break
        if "error" in answer:
            raise ScreenshotError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next_message(self, method: str, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise ScreenshotError(f"the browser did not answer {method} in time")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise ScreenshotError(f"the browser ended during {method}")
            self._received += chunk
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; None while the page is changing."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Load `url`, from nothing: a new fragment alone would not reload the page."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        answer = self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    def settled_picture(self, seconds: float = 30) -> bytes:
        """The picture once it has stayed the same for a second: nothing loads or moves any more."""
        deadline = time.monotonic() + seconds
        before, same_since = self.picture(), time.monotonic()
        while time.monotonic() - same_since < 1:
            if time.monotonic() > deadline:
                raise ScreenshotError(f"the page still changed after {seconds:g} s")
            time.sleep(0.25)
            if (now := self.picture()) != before:
                before, same_since = now, time.monotonic()
        return before

    def close(self) -> None:
        """End the browser."""
        end(self._process)
        os.close(self._to)
        os.close(self._from)


@contextlib.contextmanager
def browsing(width: int, height: int, scale: float) -> Iterator[Browser]:
    """A browser with a fresh profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile), width, height, scale)
        try:
            yield browser
        finally:
            browser.close()


def charts_drawn(browser: Browser, chart: str, line: str) -> bool:
    """Whether every chart in view holds a line or a painted canvas, and nothing still loads."""
    script = f"""(() => {{ {FIND_ALL}
        const charts = findAll({json.dumps(chart)}).filter(inView);
        const spinners = findAll('mat-spinner, paper-spinner-lite[active]').filter(inView);
        const drawn = element => findAll({json.dumps(line)}, element.shadowRoot || element).length;
        return charts.length > 0 && spinners.length === 0 && charts.every(drawn);
    }})()"""
    return bool(browser.evaluate(script))


def take_time_series(browser: Browser, url: str, tags: str) -> bytes:
    """The Time Series page, filtered to `tags` (a regular expression)."""

    def served() -> bool:
        runs = get(f"{url}/data/plugin/scalars/tags") or {}
        return any(re.search(tags, tag) for run in runs.values() for tag in run)

    wait_for(f"TensorBoard served a tag like {tags!r}", served, 20)
    browser.open(f"{url}/?darkMode=false&smoothing=0&tagFilter={quote(tags)}#timeseries")
    wait_for(
        f"the charts of {tags!r} were drawn",
        lambda: charts_drawn(browser, "scalar-card", "line-chart canvas, line-chart path"),
        60,
    )
    return browser.settled_picture()


def take_custom_scalars(browser: Browser, url: str) -> bytes:
    """The Custom Scalars page."""
    browser.open(f"{url}/?darkMode=false#custom_scalars")
    wait_for(
        "the custom charts were drawn",
        lambda: charts_drawn(browser, "vz-line-chart2", "path.line, .plottable path"),
        60,
    )
    return browser.settled_picture()


def take_text(browser: Browser, url: str) -> bytes:
    """The Text page: the table of alerts, as it is at the end."""
    browser.open(f"{url}/?darkMode=false#text")
    script = f"(() => {{ {FIND_ALL} return findAll('table td').filter(inView).length }})()"
    wait_for("the table of alerts was drawn", lambda: browser.evaluate(script), 60)
    return browser.settled_picture()


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures; the exit status is 1 if one could not be taken."""
    parser = argparse.ArgumentParser(description="Picture TensorBoard's pages of one run.")
    parser.add_argument("--logdir", type=Path, help="folder to show (default: newest in runs/)")
    parser.add_argument("--tags", default=TAGS, help="regular expression of tags")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--scale", type=float, default=1.5, help="device pixels per pixel")
    options = parser.parse_args(arguments)
    try:
        logdir = options.logdir or newest_run(REPOSITORY / "runs")
        if not any(logdir.rglob(EVENT_FILES)):
            raise ScreenshotError(f"no event file under {logdir}")
        options.out.mkdir(parents=True, exist_ok=True)
        with (
            serving(logdir.resolve()) as url,
            browsing(options.width, options.height, options.scale) as browser,
        ):
            picture = options.out / "tensorboard.png"
            picture.write_bytes(take_time_series(browser, url, options.tags))
            print(f"wrote {picture}")
            if get(f"{url}/data/plugin/custom_scalars/layout"):
                picture = options.out / "custom_scalars.png"
                picture.write_bytes(take_custom_scalars(browser, url))
                print(f"wrote {picture}")
            if any((get(f"{url}/data/plugin/text/tags") or {}).values()):
                picture = options.out / "alerts.png"
                picture.write_bytes(take_text(browser, url))
                print(f"wrote {picture}")
    except ScreenshotError as error:
        print(f"make_screenshot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
