"""Where the command writes to: a terminal, a pipe, or something that knows ASCII alone."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any, Final

from rich.console import Console

_PIPED: Final = 120
"""Columns of what goes to a file or another program, which has no width of its own."""
_PLAIN: Final = {
    **dict(zip("▁▂▃▄▅▆▇█", ".:-=+*#@", strict=True)),
    **{"●": "*", "–": "-", "×": "x", "µ": "u", "…": "~", "─": "-", "━": "-", "│": "|"},
    **{"’": "'", "“": '"', "”": '"', "≥": ">=", "≤": "<="},
}


def output() -> Console:
    """Standard output; a name with brackets in it is a name, and no markup."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(markup=False, emoji=False, highlight=False, width=_PIPED if wide else None)


def say(text: str) -> None:
    """A line on standard output, however long."""
    output().print(text, soft_wrap=True)


def complain(text: str) -> None:
    """A line on standard error, in red where there are colours."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    console.print(text, style="red", soft_wrap=True)


def say_json(found: Any) -> None:
    """Plain data as JSON on standard output: ASCII, without NaN, for programs."""
    print(json.dumps(found, allow_nan=False))


def never_fail_to_encode() -> None:
    """From now on a sign that the terminal does not know is replaced by one that looks alike."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in signs), error.end


_HANDLER: Final = "cmr-monitor-plain"
codecs.register_error(_HANDLER, _replaced)
