"""What the diagnostics cost, on the example model as its preset makes it.

Ratios within one run, to one validation pass of the same model:

* ``run``: one ``run_diagnostics``;
* ``compare``: one batch with and without memory (two copies of the memory, two passes);
* ``look``: one look at all entries (``look_every``), beside one training step.

    python benchmarks/diagnostics.py    # prints them, writes benchmarks/results/diagnostics.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cmr_monitor_callbacks import CMRPerformanceMonitor
from examples.cmr_lm.model import CMRConfig, FullCMRModel

ROWS = 16


def timed(call: Callable[[], object], times: int) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(steps: int, times: int) -> dict[str, float]:
    """Train until the memory holds something, then time each part."""
    torch.manual_seed(0)
    model = FullCMRModel(CMRConfig(capacity_of={}))
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 10}, model=model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def batch() -> Tensor:
        return torch.randint(0, 256, (ROWS, model.config.context + 1))

    def loss_of(of: FullCMRModel, ids: Tensor) -> Tensor:
        loss: Tensor = of(ids[:, :-1], ids[:, 1:])["loss"]
        return loss

    def step() -> None:
        with monitor.track_performance():
            loss = loss_of(model, batch())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    step_seconds = timed(step, steps)
    ids = batch()
    model.eval()
    with torch.no_grad():
        passed = timed(lambda: loss_of(model, ids), times)
        compared = timed(
            lambda: monitor.compare_memory(model, lambda of: float(loss_of(of, ids))), times
        )
    run = timed(monitor.run_diagnostics, times)
    look = timed(monitor._parts.examiner._look, times)
    return {
        "entries": float(model.memory_buffer.total_entries),
        "step_seconds": step_seconds,
        "validation_pass_seconds": passed,
        "run_seconds": run,
        "compare_over_pass": compared / passed,
        "run_over_pass": run / passed,
        "look_over_step": look / step_seconds,
    }


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--times", type=int, default=9)
    arguments = parser.parse_args()
    result = measure(arguments.steps, arguments.times)
    for name, value in result.items():
        print(f"{name:>24} {value:.4g}")
    told = {"python": platform.python_version(), "torch": torch.__version__, **result}
    path = Path(__file__).parent / "results" / "diagnostics.json"
    path.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
