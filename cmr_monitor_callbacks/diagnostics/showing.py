"""Diagnostics for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}


def diagnostics_table(found: Mapping[str, Any]) -> RenderableType:
    """The findings, what to do, and what could not be looked at.

    Args:
        found: what `run_diagnostics` gave.

    >>> from rich.console import Console
    >>> found = {"status": "healthy", "step": 9, "findings": [], "not_available": []}
    >>> Console(width=60).print(diagnostics_table(found))
    Diagnostics at step 9: healthy
    """
    title = f"Diagnostics at step {found['step']}: {found['status']}"
    parts: list[RenderableType] = [Text(title)]
    if found["findings"]:
        table = Table("", "layer", "finding", "what to do", box=SIMPLE_HEAD)
        for one in found["findings"]:
            severity = one["severity"]
            table.add_row(
                Text(severity, style=_STYLES.get(severity, "")),
                Text("" if one["layer"] is None else str(one["layer"])),
                Text(f"{one['name']}: {one['sentence']}"),
                Text(one["advice"]),
            )
        parts.append(table)
    if found["not_available"]:
        lines = "\n".join(f"  {text}" for text in found["not_available"])
        parts.append(Text(f"Not looked at:\n{lines}", style="bright_black"))
    return Group(*parts)
