"""What timing every tenth step saves: ratios within one run, of loops that alternate.

* ``probes``: a step of 12 layers, three timers and three calls of a probe each;
* ``wrapped``: a step of 12 layers, a store, a retrieval and a reconstruction each that the monitor
  watches by itself (`watching.Memory`).

Of each the time with the monitor less that without one is what it costs; ``cost_ratio`` is that
with ``sample_every: 10`` over that with 1, ``step_ratio`` the whole step likewise. Both hold what
the change of steps itself takes (`refresh`), and not the ends of windows: what those and the step's
own end take is ``hooks_ratio``, which is what ``overhead_fraction`` sees.

    python benchmarks/sampling.py            # prints a table, writes benchmarks/results/…json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from watching import LAYERS, QUIET, Memory, spread

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe

WINDOW = 50


class Probed(nn.Module):
    """Layers that do nothing but tell their probes what they did, and how long it took."""

    def __init__(self) -> None:
        super().__init__()
        self.probes = [CMRProbe(layer) for layer in range(LAYERS)]

    def step(self) -> None:
        """Three timed operations in each layer."""
        for probe in self.probes:
            with probe.timer("retrieval") as timer:
                pass
            probe.retrieval(8, 64, 3, timer.seconds)
            with probe.timer("reconstruction") as timer:
                pass
            probe.reconstruction(64, 0.9, timer.seconds)
            with probe.timer("capture") as timer:
                pass
            probe.capture(64, 60, 55, timer.seconds)


class Watched(Memory):
    """The parts of a memory model that nobody instrumented."""

    def __init__(self) -> None:
        super().__init__()
        self.states = torch.zeros(4, 8)

    def step(self, states: Any = None) -> None:
        """A store, a retrieval and a reconstruction in each layer."""
        super().step(self.states)


def seconds(make: Callable[[], Any], every: int | None, steps: int) -> tuple[float, float]:
    """Seconds of a step's calls, and of its end in the monitor; ``every`` None: nobody monitors."""
    model = make()
    monitor = None
    if every is not None:
        config = {"log_every_n_steps": WINDOW, "sample_every": every}
        monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model)
    calls, ends = [0.0], [0.0]
    for step in range(steps):
        if step % WINDOW == 0:
            calls.append(0.0)
            ends.append(0.0)
        start = time.perf_counter()
        if monitor is not None:
            monitor.refresh()
        model.step()
        end = time.perf_counter()
        calls[-1] += end - start
        if monitor is not None:
            monitor.step(step)
            ends[-1] += time.perf_counter() - end
    if monitor is not None:
        monitor.detach()
    # the median window: what else the machine does comes in bursts
    return statistics.median(calls[1:]) / WINDOW, statistics.median(ends[1:]) / WINDOW


def measure(make: Callable[[], Any], steps: int) -> dict[str, float]:
    """One round: without a monitor, with every step timed, and with every tenth."""
    (without, _), (each, ends), (tenth, tenth_ends) = (
        seconds(make, every, steps) for every in (None, 1, 10)
    )
    return {
        "without_us": without * 1e6,
        "every_step_us": (each - without) * 1e6,
        "every_10th_step_us": (tenth - without) * 1e6,
        "cost_ratio": (tenth - without) / (each - without),
        "step_ratio": tenth / each,
        "hooks_ratio": tenth_ends / ends,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": "python benchmarks/sampling.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "layers": LAYERS,
    }
    for name, make in (("probes", Probed), ("wrapped", Watched)):
        measure(make, arguments.steps // 10)  # warm up
        rounds = [measure(make, arguments.steps) for _ in range(arguments.repeats)]
        result[name] = {key: spread([one[key] for one in rounds]) for key in rounds[0]}
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "sampling.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
