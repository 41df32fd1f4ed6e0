"""What sampling the machine costs: a sample, and the training thread's part of it.

In one run, on this machine:

* ``sample``: one sample of processor, memory, disk and (where there is one) GPU, on the sampling
  thread; processor time of that thread, median and 95th percentile;
* ``look``: a sample that also looks for new children, every 10 s;
* ``step``: what the training thread adds in a step, and in the end of a window of one sample; the
  least of several runs, for other processes only ever add to it;
* ``loop``: pairs of the same plain loop with and without the thread, in turns; the ratio of their
  times, with the middle half of all pairs.

    python benchmarks/resources.py            # prints a table, writes benchmarks/results/…json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from cmr_monitor_callbacks.config import ResourcesConfig
from cmr_monitor_callbacks.resources import ResourceWatch
from cmr_monitor_callbacks.resources.samples import Sample, whole_of, window_of
from cmr_monitor_callbacks.resources.watch import Readers

MICRO = 1e6
WINDOW = 50


def sample(repeats: int, *, looks: bool) -> list[float]:
    """Processor seconds of each sample."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.zeros(1, device=device)
    readers = Readers(ResourcesConfig(), Path.cwd(), device)
    spent = []
    for i in range(repeats):
        start = time.thread_time()
        readers.read(float(i * 100 if looks else 0.001 * i))
        spent.append(time.thread_time() - start)
    readers.close()
    return spent[1:]


def least(run: Callable[[], None], times: int = 20) -> float:
    """Seconds of the fastest run."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent)


def beat(repeats: int) -> float:
    """Seconds that a step's part takes."""
    watch = ResourceWatch(ResourcesConfig())

    def run() -> None:
        for _ in range(repeats):
            watch.beats += 1

    return least(run) / repeats


def window(repeats: int) -> float:
    """Seconds that the end of a window takes, of one sample."""
    values = Readers(ResourcesConfig(), Path.cwd(), torch.device("cpu")).read(0.0)
    samples = [Sample(0.0, 0, values)]

    def run() -> None:
        for _ in range(repeats):
            whole_of([window_of(samples)])

    return least(run) / repeats


def loop(seconds: float, watch: ResourceWatch, size: int = 192) -> float:
    """Seconds of a step of a loop that takes about so long."""
    matrix = torch.rand(size, size)
    start = time.perf_counter()
    steps = 0
    while time.perf_counter() - start < seconds:
        for _ in range(20):
            matrix = torch.mm(matrix, matrix).clamp_(-1, 1)
        watch.beats += 1
        steps += 1
    return (time.perf_counter() - start) / steps


def pairs(count: int, seconds: float, interval: float) -> list[float]:
    """Ratios of a step's time with the thread and without it."""
    found = []
    for i in range(count):
        times = {}
        for on in (True, False) if i % 2 else (False, True):  # in turns: machines drift
            watch = ResourceWatch(ResourcesConfig(enabled=on, interval=interval))
            watch.start(Path.cwd())
            times[on] = loop(seconds, watch)
            watch.stop()
        found.append(times[True] / times[False])
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = sorted(sample(arguments.repeats, looks=False))
    looks = sorted(sample(arguments.repeats // 3, looks=True))
    ratios = sorted(pairs(arguments.pairs, arguments.seconds, 2.0))
    per_window = window(200)
    quarter = len(ratios) // 4
    result = {
        "command": "python benchmarks/resources.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "psutil": psutil.__version__,
        "processors": os.cpu_count(),
        "processes_of_the_machine": len(psutil.pids()),
        "gpu": torch.cuda.is_available(),
        "sample_us": round(statistics.median(plain) * MICRO, 1),
        "sample_p95_us": round(plain[int(0.95 * len(plain))] * MICRO, 1),
        "look_us": round(statistics.median(looks) * MICRO, 1),
        "step_ns": round(beat(100_000) * 1e9, 1),
        "window_us": round(per_window * MICRO, 1),
        "window_us_per_step": round(per_window * MICRO / WINDOW, 2),
        "interval_s": 2.0,
        "share_of_one_core": round(statistics.median(plain) / 2.0, 6),
        "loop_pairs": len(ratios),
        "loop_ratio": round(statistics.median(ratios), 4),
        "loop_ratio_low": round(ratios[quarter], 4),
        "loop_ratio_high": round(ratios[-1 - quarter], 4),
    }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "resources.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
