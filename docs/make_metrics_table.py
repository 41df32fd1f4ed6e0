"""Write the tables of metrics in the documentation from the catalogue.

python docs/make_metrics_table.py          # writes docs/metrics.md and the table in README.md
python docs/make_metrics_table.py --check  # says whether they are up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cmr_monitor_callbacks.catalogue import METRICS, OWN_METRICS, MetricInfo

ROOT = Path(__file__).resolve().parent.parent
INTRODUCTION = """\
# Every number

Made from `cmr_monitor_callbacks/catalogue.py` by `docs/make_metrics_table.py`.

Sums and counts are stored, never averages; they are divided when they are read, so that steps, layers
and ranks merge exactly. *Ratio of sums* over layers means: over the layers that give both sides. A
quantile comes from a histogram of 512 logarithmic buckets between 1 µs and 787 s, kept for the
component as a whole, with `monitoring.layer_quantiles` for the calls of each layer too, and is within 2 % of
the exact lower quantile. What has no source is no data (NaN),
never 0; a counter whose source is alive and silent is 0; a ratio over 0 is no data.

**Units.** Base units: seconds, bytes, counts; `memory_size_mb` is MiB. Ratios lie in 0..1 except
`utilization_rate` (a buffer may hold more than it says it can) and `eviction_rate` (entries loaded from
elsewhere may be evicted too). A *state* is what the buffer keeps as one entry; an *operation* of a
retrieval is one query.

**Run and window.** `snapshot.value(name)` is over the run, `over="window"` over the last window. Logged
are counters over the run; ratios, averages and quantiles over the window; gauges as they are now.

**Layers.** A layer's id is what its probe was given, an int or a str. *Logged* below: by default for
the model as a whole, as `cmr_<component>/<name>`, or for each layer, as `…/layer_04`
(`monitoring.whole_metrics` and `monitoring.layer_metrics` choose others); every
metric that is not a quantile can be read for each layer, and with `monitoring.layer_quantiles: true` those of
`capture_time`, `retrieval_time` and `reconstruction_time` too. The whole model's entries, bytes and capacity are
the layers' sums; a `CMRProbe()` without a layer may give a total limit, which bounds that capacity, and
totals, which stand where no layer gives its own.

**Clocks.** Seconds are the host's; of a model on a GPU those of calls and of the forward, backward and optimizer are the
device's, and come to the window in which they are known ([gpu](gpu.md#times)).

**Stages.** Training fills these tags. Validation, test and prediction are logged once at their end, under
`cmr_val_<component>/…` and so on; the sanity check is thrown away.

**Your own.** What `track_metric` was given is `custom/<name>`, logged as `cmr_custom/<name>`: sum / count over steps and
ranks, of the whole alone ([numbers of your own](loops.md#numbers-of-your-own)).

| component | metric | kind | unit | over steps | over layers | over ranks | logged | good | what it is |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(metric: MetricInfo) -> str:
    """One line of the whole table."""
    names = f"`{metric.name}`"
    if metric.aliases:
        names += " (" + ", ".join(f"`{alias}`" for alias in metric.aliases) + ")"
    good = metric.polarity.value.split()[0].replace("neither", "–")
    logged = ("whole",) * metric.whole_tag + ("layer",) * metric.layer_tag
    cells = (
        metric.component,
        names,
        metric.kind.value,
        metric.unit,
        metric.over_steps,
        metric.over_layers,
        metric.over_ranks,
        ", ".join(logged) or "–",
        good,
        metric.help,
    )
    return f"| {' | '.join(cells)} |"


def whole_table() -> str:
    """The text of ``docs/metrics.md``."""
    return INTRODUCTION + "\n".join(row(metric) for metric in (*METRICS, *OWN_METRICS)) + "\n"


def short_table() -> str:
    """The rows of the table in the README: names by component."""
    names: dict[str, list[str]] = {}
    for metric in (*METRICS, *OWN_METRICS):
        if metric.component == "health" and metric.name not in ("score", "status"):
            continue
        short = re.sub(r"_p(50|95|99)$", "_p50/p95/p99", metric.name)
        listed = names.setdefault(metric.component, [])
        if f"`{short}`" not in listed:
            listed.append(f"`{short}`")
    names["health"] += [
        "`<component>`",
        "`<component>_status`",
        "`alerts_firing`",
        "`alerts_pending`",
    ]
    return "\n".join(f"| {name} | {', '.join(listed)} |" for name, listed in names.items())


def readme(text: str) -> str:
    """The README with its table as it should be."""
    head, tail = text.split("| component | metrics |\n| --- | --- |\n")
    rest = tail[tail.index("\n\n") :]
    return f"{head}| component | metrics |\n| --- | --- |\n{short_table()}{rest}"


def main() -> int:
    """Write or check."""
    pages = {
        ROOT / "docs" / "metrics.md": whole_table(),
        ROOT / "README.md": readme((ROOT / "README.md").read_text(encoding="utf-8")),
    }
    stale = [p for p, text in pages.items() if not p.exists() or p.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not up to date: python docs/make_metrics_table.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
