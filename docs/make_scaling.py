"""Write the tables and the picture of ``docs/scaling.md``, from the benchmark and a cost model.

    python docs/make_scaling.py

The model is alpha-beta: a message of ``n`` bytes takes ``alpha + n * beta`` seconds, and gloo's
gather passes every rank's bytes around a ring, ``ranks - 1`` messages one after the other.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

from cmr_monitor_callbacks.distributed.payload import payload_length
from cmr_monitor_callbacks.distributed.routes import part_length

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "collectives.json"
WIDTH: Final = 13
"""Columns of 12 layers."""
NODE: Final = 8
"""Ranks of a node."""
ALPHA: Final = {"node": 5e-6, "net": 20e-6}
"""Seconds of a message between two processes of a node, and of two nodes."""
BETA: Final = {"node": 1 / 20e9, "net": 1 / 10e9}
"""Seconds per byte."""
RANKS: Final = (2, 8, 64, 256, 1024, 4096)


def message(size: float, where: str) -> float:
    """Seconds of one message."""
    return ALPHA[where] + size * BETA[where]


def ring(ranks: int, size: float, where: str) -> float:
    """Seconds of a gather of so many bytes of each rank."""
    return (ranks - 1) * message(size, where)


def flat(ranks: int) -> float:
    """Seconds of the flat gather."""
    size = 8 * payload_length(WIDTH)
    return ring(ranks, size, "node" if ranks <= NODE else "net")


def tree(ranks: int) -> float:
    """Seconds of the tree: on the nodes, among their first ranks, and down again."""
    inside = min(NODE, ranks)
    up = ring(inside, 8 * payload_length(WIDTH), "node")
    among = ring(math.ceil(ranks / NODE), 8 * part_length(WIDTH, inside), "net")
    down = math.ceil(math.log2(inside)) * message(8 * part_length(WIDTH, ranks), "node")
    return up + among + down


def measured() -> str:
    """The benchmark's table, with the model's line through its first and last point."""
    by_ranks = json.loads(RESULTS.read_text())["by_ranks"]
    times = {int(ranks): row["exchange_us"] for ranks, row in by_ranks.items()}
    low, high = min(times), max(times)
    each = (times[high] - times[low]) / (high - low)
    lines = [
        "| ranks | exchange | model | torchmetrics | ratio | training thread | collectives |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for ranks, row in by_ranks.items():
        model = times[low] + (int(ranks) - low) * each
        lines.append(
            f"| {ranks} | {row['exchange_us'] / 1e3:.1f} ms | {model / 1e3:.1f} ms | "
            f"{row['torchmetrics_us'] / 1e3:.0f} ms | {row['torchmetrics_over_exchange']:.0f} | "
            f"{row['training_thread_us_per_step']:.1f} µs a step | "
            f"{row['exchange_collectives']:.0f} and {row['torchmetrics_collectives']:.0f} |"
        )
    return "\n".join(lines)


def predicted() -> str:
    """The model's table."""
    lines = [
        "| ranks | flat | received by a rank | tree | received by a rank |",
        "| --- | --- | --- | --- | --- |",
    ]
    for ranks in RANKS:
        own = 8 * payload_length(WIDTH)
        leader = (min(NODE, ranks) - 1) * own + (math.ceil(ranks / NODE) - 1) * 8 * part_length(
            WIDTH, NODE
        )
        lines.append(
            f"| {ranks} | {_time(flat(ranks))} | {_size((ranks - 1) * own)} | "
            f"{_time(tree(ranks))} | {_size(leader)} |"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def _size(size: float) -> str:
    return f"{size / 1024:.0f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


def picture() -> str:
    """Both curves, doubly logarithmic, as an SVG."""
    ranks = [2**i for i in range(1, 13)]
    left, top, width, height = 60, 20, 520, 260
    low, high = 1e-6, 1.0

    def place(count: int, seconds: float) -> str:
        x = left + width * (math.log2(count) - 1) / 11
        y = top + height * (math.log10(high) - math.log10(seconds)) / 6
        return f"{x:.1f},{y:.1f}"

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 340" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="640" height="340" fill="white"/>',
    ]
    for power in range(-6, 1):
        x, y = place(2, 10.0**power).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{left + width}" y2="{y}" stroke="#ddd"/>')
        label = {-3: "1 ms", -2: "10 ms", -1: "100 ms", 0: "1 s"}.get(power, _time(10.0**power))
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{label}</text>')
    for count in RANKS:
        x, _ = place(count, low).split(",")
        parts.append(f'<text x="{x}" y="{top + height + 18}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{left + width / 2}" y="330" text-anchor="middle">ranks</text>')
    for name, cost, colour in (("flat", flat, "#c33"), ("tree", tree, "#36c")):
        line = " ".join(place(count, cost(count)) for count in ranks)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(4096, cost(4096)).split(",")
        parts.append(f'<text x="{float(x) + 6}" y="{y}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Write both."""
    page = DOCS / "scaling.md"
    text = page.read_text()
    for name, table in (("measured", measured()), ("predicted", predicted())):
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"
    page.write_text(text)
    (DOCS / "images" / "scaling.svg").write_text(picture())


if __name__ == "__main__":
    main()
