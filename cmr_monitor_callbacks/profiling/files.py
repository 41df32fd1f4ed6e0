"""Where the files of profiles lie, and how many are kept."""

from __future__ import annotations

import gzip
import re
import shutil
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cmr_monitor_callbacks.config import ProfilingConfig
from cmr_monitor_callbacks.profiling.results import RESULTS, save_results

PLUGIN: Final = Path("plugins") / "profile"
"""Where TensorBoard keeps profiles, below a run's log folder."""
TRACE: Final = ".pt.trace.json.gz"
"""How the name of a trace ends: the PyTorch plugin of TensorBoard looks for it."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.\-]+")
_LEVEL: Final = 5
"""Of the compression: the higher ones take twice the time for a few percent."""


class ProfileFiles:
    """Writes the files of this process' profiles, and deletes the oldest of them.

    Args:
        config: folder and number.
    """

    def __init__(self, config: ProfilingConfig) -> None:
        self._config = config
        self._written: deque[tuple[Path, Path]] = deque()
        self.rank = 0
        self.run: Path | None = None
        """The run's log folder; None: it has none."""

    @property
    def folder(self) -> Path | None:
        """Where the profiles lie; None: no file is written."""
        asked = self._config.folder
        if asked is None:
            return None if self.run is None else self.run / PLUGIN
        return (self.run or Path()) / asked

    def names(self, step: int, reason: str) -> tuple[Path, Path] | None:
        """Paths of a new profile's trace and results; None: no file is written.

        A folder for each profile: that is what the plugin calls a run. The names are those that
        torch's own handler gives: worker, then a time in nanoseconds.
        """
        folder = self.folder
        if folder is None:
            return None
        place = folder / f"step_{step}_{_UNSAFE.sub('_', reason)}"
        stem = f"{_UNSAFE.sub('_', socket.gethostname())}_{self.rank}.{time.time_ns()}"
        return place / f"{stem}{TRACE}", place / f"{stem}{RESULTS}"

    def write(self, names: tuple[Path, Path], raw: Path, results: Mapping[str, Any]) -> None:
        """Write a profile, and delete the oldest beyond ``keep``.

        Args:
            names: as `names` gave them.
            raw: the trace, not compressed.
            results: what it says.
        """
        trace, saved = names
        trace.parent.mkdir(parents=True, exist_ok=True)
        part = trace.with_name(f".{trace.name}.part")  # a reader never sees half a file
        with raw.open("rb") as source, gzip.open(part, "wb", compresslevel=_LEVEL) as target:
            shutil.copyfileobj(source, target)
        part.replace(trace)
        save_results(results, saved)
        self._written.append(names)
        while len(self._written) > self._config.keep:
            for path in self._written.popleft():
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty: another rank's, or somebody's own
                    path.parent.rmdir()
