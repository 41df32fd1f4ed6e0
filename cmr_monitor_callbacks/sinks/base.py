"""What a sink is, and one that keeps everything in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cmr_monitor_callbacks.health import HealthReport, Transition
from cmr_monitor_callbacks.snapshot import Snapshot


@dataclass(frozen=True)
class WindowReport:
    """All that a sink is told at the end of a window.

    Attributes:
        snapshot: the numbers.
        health: the verdict on them; of the training stage only.
        transitions: what changed among the alerts.
        tags: tags of the scalars to log.
        values: their values, in the same order; never NaN.
        whole: how many of the first are of the model as a whole.
    """

    snapshot: Snapshot
    health: HealthReport
    transitions: Sequence[Transition]
    tags: Sequence[str]
    values: Sequence[float]
    whole: int = 0

    def scalars(self) -> dict[str, float]:
        """Values by tag."""
        return dict(zip(self.tags, self.values, strict=True))


class Sink(Protocol):
    """Takes a window's numbers somewhere."""

    def write(self, report: WindowReport) -> None:
        """Take one window. Called on the training thread: be quick."""
        ...

    def flush(self) -> None:
        """Make sure that all that was written is safe."""
        ...

    def close(self) -> None:
        """Let go of threads and files that the sink opened itself."""
        ...


class InMemorySink:
    """Keeps every window, for tests and notebooks.

    >>> InMemorySink().reports
    []
    """

    def __init__(self) -> None:
        self.reports: list[WindowReport] = []

    def write(self, report: WindowReport) -> None:
        """Keep the window."""
        self.reports.append(report)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
