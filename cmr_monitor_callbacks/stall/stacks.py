"""Stacks of a process that stands still."""

from __future__ import annotations

import faulthandler
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

_LIBRARIES: Final = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")},
    str(Path(__file__).resolve().parents[1]),  # nobody looks for a fault of theirs in the monitor
    "<frozen",
)
_COMPILER: Final = ("torch/_dynamo/convert_frame.py", "torch/_inductor/compile_fx.py")
"""Files whose code runs only while something is compiled, not when compiled code runs."""


def main_frames() -> list[FrameType]:
    """Frames of the main thread, the innermost first."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    return list(_chain(frame))


def _chain(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_compiling(frames: list[FrameType]) -> bool:
    """Whether ``torch.compile`` is at work in these frames."""
    names = (frame.f_code.co_filename.replace("\\", "/") for frame in frames)
    return any(name.endswith(_COMPILER) for name in names)


def where(frames: list[FrameType]) -> str:
    """The innermost line of code that is no library's; else the innermost of all.

    >>> where([])
    ''
    """
    own = [f for f in frames if not f.f_code.co_filename.startswith(_LIBRARIES)]
    for frame in (own or frames)[:1]:
        code = frame.f_code
        return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
    return ""


def dump(path: Path, headline: str) -> None:
    """Append the stacks of all threads to a file, under a headline.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"==== {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {headline}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")
