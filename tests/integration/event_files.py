"""TensorBoard's own readers, for what a run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader


def run_folder(root: Path) -> Path:
    """The only run under a folder."""
    [folder] = {path.parent for path in root.rglob("events*")}
    return folder


def series(root: Path) -> dict[str, dict[int, float]]:
    """Every scalar of the only run, by tag and step; a step of ours logged twice is an error."""
    reader = EventAccumulator(str(run_folder(root)), size_guidance={"scalars": 0})
    reader.Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in reader.Tags()["scalars"]:
        events = reader.Scalars(tag)
        found[tag] = {event.step: event.value for event in events}
        twice = tag.startswith("cmr_") and len(found[tag]) < len(events)
        assert not twice, f"{tag} has a step twice: {events}"
    return found


def raw_events(root: Path) -> list[Any]:
    """Event protos of the only run, in the order of the files."""
    files = sorted(run_folder(root).glob("events*"))
    return [event for path in files for event in LegacyEventFileLoader(str(path)).Load()]


def tags_of(event: Any) -> list[str]:
    """Tags that one Event holds."""
    return [value.tag for value in event.summary.value]
