"""A user's own numbers: what is kept of each, and how samples, windows and ranks make one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, CUSTOM_NAME, canonical, known_names
from cmr_monitor_callbacks.errors import ConfigError

MOST: Final = 64
"""Names in a run at most."""
Table = NDArray[np.float64]
"""Shape ``(names, 6)``, a `Tracked` in each row."""


class Tracked(NamedTuple):
    """What is kept of a number's samples.

    Attributes:
        samples: how many.
        total: their sum.
        least: the smallest of them; NaN without any, here and below.
        greatest: the largest of them.
        last: the newest of them by its time.
        time: its time, seconds since the Unix epoch.

    >>> Tracked.of(3.0, 10.0).merged(Tracked.of(5.0, 9.0))
    Tracked(samples=2.0, total=8.0, least=3.0, greatest=5.0, last=3.0, time=10.0)
    """

    samples: float = 0.0
    total: float = 0.0
    least: float = math.nan
    greatest: float = math.nan
    last: float = math.nan
    time: float = math.nan

    @classmethod
    def of(cls, value: float, time: float) -> Tracked:
        """One sample."""
        return cls(1.0, value, value, value, value, time)

    @property
    def mean(self) -> float:
        """Sum / samples; NaN without samples."""
        return self.total / self.samples if self.samples else math.nan

    def merged(self, later: Tracked) -> Tracked:
        """These samples and others; of two of one time the other's is the newest."""
        if not self.samples or not later.samples:
            return later if later.samples else self
        newest = self if self.time > later.time else later
        return Tracked(
            self.samples + later.samples,
            self.total + later.total,
            min(self.least, later.least),
            max(self.greatest, later.greatest),
            newest.last,
            newest.time,
        )

    def to_dict(self) -> dict[str, float]:
        """As `CMRPerformanceMonitor.get_live_stats` shows it."""
        return {
            "mean": self.mean,
            "min": self.least,
            "max": self.greatest,
            "last": self.last,
            "count": int(self.samples),
            "time": self.time,
        }


WIDTH: Final = len(Tracked._fields)
NO_NAMES: Final[Table] = np.zeros((0, WIDTH))


def merged(one: Mapping[str, Tracked], other: Mapping[str, Tracked]) -> dict[str, Tracked]:
    """Two stretches, the later one second, by name."""
    out = dict(one)
    for name, tracked in other.items():
        out[name] = out[name].merged(tracked) if name in out else tracked
    return out


def as_table(given: Mapping[str, Tracked], names: Sequence[str]) -> Table:
    """Numbers in the order of names; what is not given has no samples."""
    rows = [given.get(name, Tracked()) for name in names]
    return np.array(rows, dtype=np.float64).reshape(len(names), WIDTH)


def from_table(table: Table, names: Sequence[str]) -> dict[str, Tracked]:
    """The inverse of `as_table`; names without samples are left out."""
    rows = zip(names, table.tolist(), strict=False)
    return {name: Tracked(*row) for name, row in rows if row[0]}


def whole_of(tables: NDArray[np.float64]) -> Table:
    """Numbers of several ranks as one, shape ``(ranks, names, 6)`` to ``(names, 6)``.

    >>> rows = [[Tracked.of(3.0, 10.0)], [Tracked()], [Tracked.of(5.0, 11.0)]]
    >>> Tracked(*whole_of(np.array(rows))[0].tolist())
    Tracked(samples=2.0, total=8.0, least=3.0, greatest=5.0, last=5.0, time=11.0)
    """
    out: Table = tables.sum(axis=0)
    out[:, 2] = np.fmin.reduce(tables[..., 2], axis=0)
    out[:, 3] = np.fmax.reduce(tables[..., 3], axis=0)
    times = np.where(np.isnan(tables[..., 5]), -math.inf, tables[..., 5])
    newest = times.argmax(axis=0), np.arange(tables.shape[1])
    out[:, 4:] = tables[..., 4:][newest]
    return out


_FED_BY: Final = {
    "capture": "CMRProbe.capture() or record_capture()",
    "reconstruction": "CMRProbe.reconstruction() or record_reconstruction()",
    "buffer": "CMRProbe.buffer()",
    "retrieval": "CMRProbe.retrieval()",
    "errors": "CMRProbe.error()",
    "timing": "track_performance(), or the Trainer's callback",
}


def check_name(name: Any) -> str:
    """A name that a user gave to a number.

    Raises:
        ConfigError: it is no text that a tag can hold, or the catalogue's.

    >>> check_name("grad_norm")
    'grad_norm'
    >>> check_name("total_captures")
    Traceback (most recent call last):
    cmr_monitor_callbacks.errors.ConfigError: name 'total_captures' is a metric of the monitor's \
own (cmr_capture/states_captured), fed by CMRProbe.capture() or record_capture(); choose another
    """
    if not isinstance(name, str) or not CUSTOM_NAME.fullmatch(name):
        raise ConfigError(
            "name must be a letter and up to 99 letters, digits, '_', '.' or '-' after it, got "
            f"{name!r}"
        )
    if name in known_names():
        info = BY_NAME[canonical(name)]
        feeds = _FED_BY.get(info.component, "the monitor itself")
        raise ConfigError(
            f"name {name!r} is a metric of the monitor's own ({info.tag}), fed by {feeds}; choose "
            "another"
        )
    return str(name)
