"""A page in a real headless browser: what it says, asks for and complains of."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def screenshots() -> ModuleType:
    """The script that takes the pictures of the documentation; it knows how to drive a browser."""
    spec = importlib.util.spec_from_file_location("shot", ROOT / "docs" / "make_screenshot.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SHOT = screenshots()


class Browser(SHOT.Browser):  # type: ignore[name-defined,misc]
    """One that keeps what the page asked for and complained of.

    Attributes:
        asked: addresses of everything that was loaded.
        complaints: errors and warnings of its console.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        super().__init__(profile, width, height, 1)
        for domain in ("Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _next_message(self, method: str, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = super()._next_message(method, deadline)
        event, told = message.get("method"), message.get("params", {})
        if event == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"][:200])
        elif event in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(str(told)[:500])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"])[:500])
        return message

    def show(self, page: Path, *, dark: bool = False) -> None:
        """Open a report and wait until every chart of it is drawn."""
        look = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[look])
        self.open(page.as_uri())
        drawn = (
            "document.readyState === 'complete' && location.protocol === 'file:' && "
            "[...document.querySelectorAll('figure.chart')]"
            ".every(figure => figure.querySelector('.main-svg'))"
        )
        SHOT.wait_for("the report was drawn", lambda: self.evaluate(drawn), 120)

    def texts(self, selector: str) -> list[str]:
        """What elements say, those that can be seen."""
        found: list[str] = self.evaluate(
            f"[...document.querySelectorAll({selector!r})].filter(e => "
            "e.getBoundingClientRect().width > 0).map(e => e.textContent)"
        )
        return found


@contextmanager
def browser(width: int = 1280) -> Iterator[Browser]:
    """A browser with a fresh profile; where there is none an error names what to install."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        one = Browser(Path(profile), width)
        try:
            yield one
        finally:
            one.close()
