"""What a window's exchange costs, beside torchmetrics' own sync of the same amount of numbers.

In one run, for each number of ranks, on real gloo processes of this machine:

* ``exchange``: one window of 12 layers, every component on, from launch to every rank's numbers;
* ``torchmetrics``: 48 metrics of two scalar states each, in a ``MetricCollection``, synced by
  ``compute()``, as a hand-written monitor of the same numbers would do;
* ``training thread``: what the exchange takes from the training thread where the numbers arrive
  while training goes on, launch and take together, per step of a window of 50.

    python benchmarks/collectives.py       # prints a table, writes benchmarks/results/…json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchmetrics

from cmr_monitor_callbacks.distributed import Exchange, Header, RankGroup, flat
from cmr_monitor_callbacks.packed import Packed

LAYERS = 12
WINDOW = 50
METRICS = 48
MICRO = 1e6


class TwoStates(torchmetrics.Metric):
    """A sum and a count, as most hand-written statistics are."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: float) -> None:
        """Add one value."""
        self.total += value
        self.count += 1

    def compute(self) -> torch.Tensor:
        """Their mean."""
        return self.total / self.count


def counted(names: Counter[str]) -> None:
    """Count the collectives that torch.distributed runs."""
    for name in ("all_gather", "all_reduce", "barrier", "all_gather_into_tensor", "broadcast"):
        original = getattr(dist, name)

        def call(*args: Any, _name: str = name, _f: Any = original, **kwargs: Any) -> Any:
            names[_name] += 1
            return _f(*args, **kwargs)

        setattr(dist, name, call)


def timed(repeats: int, work: Callable[[], None]) -> list[float]:
    """Seconds of each repeat; all ranks start together."""
    spent = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return spent[repeats // 5 :]  # the first ones open connections


def measure(rank: int, size: int, folder: str, repeats: int) -> None:
    """One rank's part; rank 0 writes what it measured."""
    torch.set_num_threads(1)
    path = f"file://{folder}/rendezvous{size}"
    dist.init_process_group("gloo", init_method=path, rank=rank, world_size=size)
    group = RankGroup.create(60.0)
    assert group is not None
    layers = list(range(LAYERS))
    exchange = Exchange(group, flat(group), layers)
    window = Packed.empty(1 + LAYERS)
    window.values[:] = np.random.default_rng(rank).random(window.values.shape)
    window.samples[:] = 1
    window.histograms[:] = 3
    step = 0

    def one_window() -> None:
        nonlocal step
        step += WINDOW
        exchange.launch(Header(step=float(step)), "", window, layers)
        exchange.take()

    thread: list[float] = []
    matrix = torch.rand(200, 200)

    def apart() -> None:
        """The numbers arrive while the training thread does something else."""
        nonlocal step
        step += WINDOW
        start = time.perf_counter()
        exchange.launch(Header(step=float(step)), "", window, layers)
        launched = time.perf_counter()
        end = launched + 0.03
        while time.perf_counter() < end:
            torch.mm(matrix, matrix)
        resumed = time.perf_counter()
        exchange.take()
        thread.append(time.perf_counter() - resumed + launched - start)

    before = group.collectives
    ours = timed(repeats, one_window)
    per_window = (group.collectives - before) / repeats
    timed(repeats, apart)

    collection = torchmetrics.MetricCollection(
        {f"m{i}": TwoStates() for i in range(METRICS)}, compute_groups=False
    )

    def sync() -> None:
        for metric in collection.values():
            metric.update(1.0)
        collection.compute()

    calls: Counter[str] = Counter()
    counted(calls)
    rounds = max(5, repeats // 10)
    theirs = timed(rounds, sync)
    if rank == 0:
        result = {
            "exchange_us": statistics.median(ours) * MICRO,
            "torchmetrics_us": statistics.median(theirs) * MICRO,
            "torchmetrics_over_exchange": statistics.median(theirs) / statistics.median(ours),
            "training_thread_us_per_step": statistics.median(thread[repeats // 5 :])
            / WINDOW
            * MICRO,
            "exchange_collectives": per_window,
            "torchmetrics_collectives": (sum(calls.values()) - rounds) / rounds,
            "payload_bytes": 8 * exchange.payload_length,
        }
        Path(folder, f"{size}.json").write_text(json.dumps(result))
    dist.barrier()
    group.close()
    dist.destroy_process_group()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.ranks:
            mp.spawn(measure, (size, folder, arguments.repeats), size)
            found[str(size)] = json.loads(Path(folder, f"{size}.json").read_text())
    result = {
        "command": "python benchmarks/collectives.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchmetrics": torchmetrics.__version__,
        "processors": os.cpu_count(),
        "layers": LAYERS,
        "window_steps": WINDOW,
        "by_ranks": {
            size: {name: round(value, 2) for name, value in numbers.items()}
            for size, numbers in found.items()
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "collectives.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
