"""Two profiles beside each other: which sections became slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.profiling.results import load_results

Verdict = Literal["slower", "faster", "same", "new", "missing", "too few calls"]


@dataclass(frozen=True)
class SectionChange:
    """A section in two profiles.

    Attributes:
        section: its name.
        base: median seconds of a call before; None: it was not there.
        new: median seconds of a call now; None: it is not there.
        ratio: ``new / base``; None where one is missing.
        calls: calls before and now.
        verdict: ``slower``, ``faster``, ``same``, ``new``, ``missing`` or ``too few calls``.
    """

    section: str
    base: float | None
    new: float | None
    ratio: float | None
    calls: tuple[int, int]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"calls": list(self.calls)}


Profile = Mapping[str, Any] | Path | str


def compare_profiles(
    base: Profile,
    new: Profile,
    *,
    threshold: float = 1.2,
    min_calls: int = 5,
    min_seconds: float = 20e-6,
) -> list[SectionChange]:
    """Compare the median time of a call, section by section; the worst change first.

    On the host's clock: on a GPU that is the time to launch the work.

    Args:
        base: results of a profile, or where they were saved.
        new: likewise.
        threshold: a section is slower from this ratio on, and faster from its inverse.
        min_calls: with fewer calls on either side nothing is said.
        min_seconds: a smaller difference is the same: the profiler itself takes some time.

    Raises:
        ConfigError: the threshold is not greater than 1.
        CMRMonitorError: a file is no profile.

    >>> def profile(seconds):
    ...     return {"sections": {"cmr/capture": {"calls": 9, "median_seconds": seconds}}}
    >>> [change] = compare_profiles(profile(0.010), profile(0.015))
    >>> change.verdict, round(change.ratio, 3)
    ('slower', 1.5)
    """
    if not threshold > 1:
        raise ConfigError(f"threshold must be greater than 1, got {threshold!r}")
    before, after = _sections(base), _sections(new)
    found = [
        _change(name, before.get(name), after.get(name), threshold, min_calls, min_seconds)
        for name in dict.fromkeys([*before, *after])
    ]
    return sorted(found, key=lambda item: -(item.ratio or 0.0))


def _sections(profile: Profile) -> Mapping[str, Any]:
    loaded = profile if isinstance(profile, Mapping) else load_results(profile)
    sections: Mapping[str, Any] = loaded["sections"]
    return sections


def _change(
    name: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    threshold: float,
    min_calls: int,
    min_seconds: float,
) -> SectionChange:
    old = None if before is None else float(before["median_seconds"])
    new = None if after is None else float(after["median_seconds"])
    calls = (
        0 if before is None else int(before["calls"]),
        0 if after is None else int(after["calls"]),
    )
    if old is None or new is None:
        return SectionChange(name, old, new, None, calls, "new" if old is None else "missing")
    ratio = new / old if old > 0 else None
    verdict: Verdict = "same"
    if min(calls) < min_calls:
        verdict = "too few calls"
    elif abs(new - old) >= min_seconds and ratio is not None:
        verdict = "slower" if ratio >= threshold else "faster" if ratio <= 1 / threshold else "same"
    return SectionChange(name, old, new, ratio, calls, verdict)
