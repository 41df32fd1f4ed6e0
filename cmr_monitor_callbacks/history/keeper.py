"""The keeper: which store this process writes, what it puts there, and how it is read again."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cmr_monitor_callbacks.config.history import HistoryConfig
from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.history.happenings import Change
from cmr_monitor_callbacks.history.reading import RunHistory
from cmr_monitor_callbacks.history.schema import HistoryError
from cmr_monitor_callbacks.history.sessions import RunInfo
from cmr_monitor_callbacks.history.writer import HistoryWriter
from cmr_monitor_callbacks.resources import Sample
from cmr_monitor_callbacks.snapshot import Snapshot

_LIBRARIES: Final = (
    "cmr-monitor-callbacks",
    "torch",
    "pytorch-lightning",
    "lightning",
    "torchmetrics",
    "tensorboard",
    "numpy",
)


class Keeper:
    """Keeps a run's windows in a file where there is a folder for it, else in memory.

    Rank 0 keeps everything. Another rank keeps its errors alone, in a file of its own that is made
    with the first of them.

    Args:
        config: how much is kept.
        in_memory: windows of a stage that are kept where there is no file.
        wall: the clock.
        settings: the monitor's settings as plain data, secrets masked.

    Attributes:
        rank: of this process.

    >>> keeper = Keeper(HistoryConfig(), 10, lambda: 0.0, {})
    >>> keeper.mark("begun", step=0)
    >>> len(keeper.read().sessions())
    1
    """

    def __init__(
        self,
        config: HistoryConfig,
        in_memory: int,
        wall: Callable[[], float],
        settings: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._in_memory = in_memory
        self._wall = wall
        self._settings = dict(settings)
        self.rank, self._world_size = 0, 1
        self._sources: Mapping[str, str] | None = None
        self._writer: HistoryWriter | None = None
        self._lost = 0
        # without a Trainer nobody names a folder: a file that was asked for lies where we are
        asked = "file" in config.model_fields_set or Path(config.file).is_absolute()
        self.open(Path() if asked else None)

    def open(self, folder: Path | None, rank: int = 0, world_size: int = 1) -> None:
        """Say where the file lies, before anything is kept; what was kept elsewhere stays there.

        Args:
            folder: of the run; None: it has none.
            rank: of this process.
            world_size: processes of the run.
        """
        self.rank, self._world_size, self._sources = rank, world_size, None
        if not self._config.enabled:
            return
        file = Path(self._config.file)
        chosen = file if file.is_absolute() else None if folder is None else folder / file
        if chosen is not None and rank > 0:
            chosen = chosen.with_name(f"{chosen.stem}.rank_{rank:03d}{chosen.suffix}")
        if self._writer is None or self._writer.path != chosen:
            self.close("ended")
            self._lost = self.lost
            self._writer = HistoryWriter(
                chosen, self._config, self._info, self._wall, self._in_memory
            )

    def _info(self) -> RunInfo:
        """On the writer's thread, once."""
        return RunInfo(
            rank=self.rank,
            world_size=self._world_size,
            host=socket.gethostname(),
            config=self._settings,
            versions=versions(),
            git_commit=git_commit(Path.cwd()),
        )

    def forget(self) -> None:
        """Begin anew where windows are kept in memory; a file stays as it is."""
        if self._writer is not None and self._writer.path is None:
            self._lost = self.lost
            self._writer = HistoryWriter(
                None, self._config, self._info, self._wall, self._in_memory
            )

    @property
    def latency(self) -> float:
        """Seconds that the last window took to be written; NaN without one."""
        return math.nan if self._writer is None else self._writer.latency

    @property
    def lost(self) -> int:
        """Windows and the like that could not be kept."""
        return self._lost + (0 if self._writer is None else self._writer.lost)

    @property
    def seconds(self) -> float:
        """Seconds that all windows took to be written."""
        return 0.0 if self._writer is None else self._writer.seconds

    @property
    def path(self) -> Path | None:
        """The file; None: there is none."""
        return None if self._writer is None else self._writer.path

    def window(
        self,
        snapshot: Snapshot,
        transitions: Sequence[Transition] = (),
        changes: Sequence[Change] = (),
        sources: Mapping[str, str] | None = None,
        describe: Callable[[], str] = str,
    ) -> None:
        """Keep a window, on rank 0; puts it into a queue, or in memory at once."""
        if self._writer is None or self.rank > 0:
            return
        if sources is self._sources:
            self._writer.window(snapshot, transitions, changes)
        else:  # they became others: another mapping
            self._sources = sources
            self._writer.window(snapshot, transitions, changes, sources, describe())

    def samples(self, samples: Sequence[Sample]) -> None:
        """Keep what was sampled of the machine, on rank 0; puts it into a queue."""
        if self._writer is not None and self.rank == 0 and samples:
            self._writer.samples(samples)

    def alerts(self, transitions: Sequence[Transition]) -> None:
        """Keep what became of alerts between windows, on rank 0."""
        if self._writer is not None and self.rank == 0:
            self._writer.alerts(transitions)

    def errors(self, records: Sequence[ErrorRecord]) -> None:
        """Keep errors, on any rank."""
        if self._writer is not None and records:
            self._writer.errors(records)

    def mark(self, label: str, step: int) -> None:
        """Keep a note, on rank 0."""
        if self._writer is not None and self.rank == 0:
            self._writer.mark(label, step, self._wall())

    @property
    def keeps(self) -> bool:
        """Whether this process keeps windows, and has a session under way."""
        return self._writer is not None and self.rank == 0 and self._writer.is_begun

    def diagnostics(self, found: Mapping[str, Any]) -> None:
        """Keep what the diagnostics found, on rank 0; a run that is over begins no session."""
        if self._writer is not None and self.keeps:
            self._writer.diagnostics(found)

    def take_failures(self) -> list[Exception]:
        """What went wrong since the last call."""
        return [] if self._writer is None else self._writer.take_failures()

    def take_requests(self) -> list[dict[str, Any]]:
        """What other processes asked of the run since the last call."""
        return [] if self._writer is None else self._writer.take_requests()

    def flush(self) -> None:
        """Wait, for some seconds at most, until all is written."""
        if self._writer is not None:
            self._writer.flush()

    def close(self, outcome: str) -> None:
        """Write what is pending and end the session."""
        if self._writer is not None:
            self._writer.close(outcome)

    def read(self) -> RunHistory:
        """What is kept until now, for reading; close it afterwards.

        Raises:
            HistoryError: nothing is kept, or it cannot be read.
        """
        writer = self._writer
        if writer is None:
            raise HistoryError("no history is kept; set history.enabled to true")
        if self.rank > 0:
            raise HistoryError(f"the history is rank 0's; this is rank {self.rank}")
        writer.flush()
        if writer.path is not None:
            return RunHistory(writer.path)
        if writer.store is None:
            raise HistoryError("the history is empty: no window has ended yet")
        return RunHistory(writer.store)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed, by name."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit that a folder's repository has checked out, read from its files; None: unknown."""
    for parent in (folder, *folder.parents):
        git = parent / ".git"
        try:
            if git.is_file():  # a worktree or a submodule: the file names the folder
                git = parent / git.read_text().removeprefix("gitdir:").strip()
            if not git.is_dir():
                continue
            head = (git / "HEAD").read_text().strip()
            if not head.startswith("ref:"):
                return head
            return _resolve(git, head.removeprefix("ref:").strip())
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _resolve(git: Path, name: str) -> str | None:
    shared = git / "commondir"
    common = (git / shared.read_text().strip()) if shared.is_file() else git
    for folder in (git, common):
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
    packed = common / "packed-refs"
    for line in packed.read_text().splitlines() if packed.is_file() else ():
        commit, _, ref = line.partition(" ")
        if ref == name:
            return commit
    return None
