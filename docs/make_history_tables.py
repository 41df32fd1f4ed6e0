"""Write the tables of figures of ``docs/history.md`` and of ADR 6, from the benchmark's result.

python docs/make_history_tables.py            # writes them
python docs/make_history_tables.py --check    # exit code 1 where they are others
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RESULT = DOCS.parent / "benchmarks" / "results" / "history.json"
PAGES = (DOCS / "history.md", DOCS / "adr" / "0006-one-blob-per-window.md")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def stores(result: dict[str, Any]) -> str:
    """The two stores side by side."""
    both = [result["default"], result["all exact"]]

    def row(label: str, *path: str, digits: int = 0, scale: float = 1) -> tuple[str, ...]:
        cells = []
        for one in both:
            for name in path:
                one = one[name]
            cells.append(f"{one * scale:,.{digits}f}")
        return (label, *cells)

    return table(
        ("", "default settings", "all exact (no limits)"),
        [
            row("file, MiB", "file_mib"),
            row("bytes per value, all in all", "bytes_per_value", digits=2),
            row("packed exact windows", "bytes_per_value_in_tier", "0", digits=2),
            row(
                "summaries of 10, per value that they stand for",
                "bytes_per_value_in_tier",
                "1",
                digits=2,
            ),
            row("summaries of 100", "bytes_per_value_in_tier", "2", digits=2),
            row("summaries of 1,000", "bytes_per_value_in_tier", "3", digits=2),
            row("writer: an insert, µs per window, mean", "writing", "insert_us"),
            row(
                "writer: packing and limits, µs per window, mean",
                "writing",
                "packing_and_retention_us",
            ),
            row("writer: longest pause, ms", "writing", "longest_pause_ms"),
            row("to open, ms", "reading_ms", "open", digits=1),
            row(
                "the last 1,000 points of a series, ms",
                "reading_ms",
                "series_last_1000_points",
                digits=1,
            ),
            row("a whole series, ms", "reading_ms", "series_whole"),
            row(
                "a whole series in some 2,000 points, ms", "reading_ms", "series_whole_2000_points"
            ),
            row("`at` the newest step, ms", "reading_ms", "at_newest"),
            row("`at` an old step, ms", "reading_ms", "at_old"),
            row("`describe` of all 100 series, s", "reading_ms", "describe", digits=1, scale=1e-3),
        ],
    )


def flush(result: dict[str, Any]) -> str:
    """A window beside a bare insert."""
    found = result["flush"]

    def spread(name: str) -> tuple[str, str]:
        one = found[name]
        return f"{one['median']:.1f}", f"{one['min']:.1f} to {one['max']:.1f}"

    return table(
        ("", "median", "min to max"),
        [
            ("training thread: into the queue, µs", *spread("training_thread_us")),
            ("writer's thread: a window, µs", *spread("writer_us")),
            ("a bare insert of the same bytes, µs", *spread("bare_insert_us")),
            ("ratio of the last two", *spread("writer_over_bare")),
            (
                "ratio of their means, packing and checkpoints among them",
                f"{found['mean_with_packing_over_bare']:.1f}",
                "",
            ),
        ],
    )


def others(result: dict[str, Any]) -> str:
    """Four kinds of file."""
    found = result["others"]
    names = {
        "store": "the history, packing among it",
        "rows": "a row per value, appended, without an index",
        "indexed rows": "a row per value, in the order of series",
        "events": "TensorBoard: an event of all values",
    }
    rows = [
        (
            label,
            f"{found['us_per_window'][name]:,.0f}",
            f"{found['over_store'][name]:.1f}",
            f"{found['bytes_per_value'][name]:.1f}",
        )
        for name, label in names.items()
    ]
    return table(("", "µs per window", "ratio", "bytes per value"), rows)


def kinds(result: dict[str, Any]) -> str:
    """Bytes of an exact value, packed, by kind."""
    found = result["all exact"]["bytes_per_exact_value_by_kind"]
    return table(tuple(found), [tuple(f"{value:.2f}" for value in found.values())])


def written(text: str, result: dict[str, Any]) -> str:
    """A page with its tables made anew, each between two comments."""
    for make in (stores, flush, others, kinds):
        name = make.__name__
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        inside = f"{begin}\n{make(result)}\n{end}"
        text = re.sub(f"{begin}.*?{end}", lambda _, inside=inside: inside, text, flags=re.DOTALL)
    return text


def main() -> int:
    """Write the pages, or look at them."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    stale = 0
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = written(before, result)
        if "--check" in sys.argv:
            stale += before != after
        else:
            page.write_text(after, encoding="utf-8")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
