"""What profiling costs while no profile is on, and while one is.

Ratios within one run, of loops that alternate, at 12 layers; each step is a store, a retrieval and
a reconstruction of a model that nobody instrumented, or three timers and three calls of a probe:

* ``allowed``: a step with profiling allowed and no profile on, in those of a monitor that knows of
  no profiling; 1.0 is no cost;
* ``on``: a step within a profile, in the same;
* ``training``: a step of a small transformer (forward, backward, optimizer) within a profile, in
  those of the same without a profile: what is left of it when the model does some work;
* ``stop_seconds``: what the end of a profile of 5 such steps takes, results included.

    python benchmarks/profiling.py            # prints a table, writes benchmarks/results/…json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from watching import LAYERS, QUIET, Memory, spread

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe


class Probes(nn.Module):
    """Layers that tell of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.probes = [CMRProbe(layer) for layer in range(LAYERS)]

    def step(self, states: torch.Tensor) -> None:
        """What a forward tells."""
        for probe in self.probes:
            with probe.timer("retrieval") as timer:
                pass
            probe.retrieval(1, 4, seconds=timer.seconds)
            with probe.timer("reconstruction") as timer:
                pass
            probe.reconstruction(4, seconds=timer.seconds)
            with probe.timer("capture") as timer:
                pass
            probe.capture(4, 4, 4, timer.seconds)


def per_step(step: Callable[[], Any], times: int) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times


def memory(make: Callable[[], Any], steps: int) -> tuple[float, float]:
    """A step with profiling allowed, and within a profile, in steps of a monitor without it."""
    states = torch.zeros(4, 8)
    never, allowed = make(), make()
    CMRPerformanceMonitor(alert_config=QUIET, model=never)
    monitor = CMRPerformanceMonitor(alert_config=QUIET, model=allowed)
    monitor.enable_profiling()
    for model in (never, allowed):
        per_step(lambda model=model: model.step(states), steps // 10)
    base = per_step(lambda: never.step(states), steps)
    off = per_step(lambda: allowed.step(states), steps)
    with monitor.profile_execution():
        on = per_step(lambda: allowed.step(states), 50)
    return off / base, on / base


def training(steps: int) -> tuple[float, float]:
    """A training step within a profile in those without one, and the seconds that its end takes."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    model = nn.TransformerEncoder(layer, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    given = torch.randn(8, 64, 128)
    monitor = CMRPerformanceMonitor(alert_config=QUIET, model=model)
    monitor.enable_profiling()

    def step() -> None:
        optimizer.zero_grad()
        model(given).square().mean().backward()
        optimizer.step()

    per_step(step, 3)
    base = per_step(step, steps)
    with monitor.profile_execution():
        on = per_step(step, steps)
        end = time.perf_counter()
    return on / base, time.perf_counter() - end


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": "python benchmarks/profiling.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "layers": LAYERS,
        "ratios": {},
    }
    for name, make in (("watched", Memory), ("probes", Probes)):
        found = [memory(make, arguments.steps) for _ in range(arguments.repeats)]
        result["ratios"][name] = {
            "allowed": spread([off for off, _ in found]),
            "on": spread([on for _, on in found]),
        }
    trained = [training(5) for _ in range(arguments.repeats)]
    result["ratios"]["training"] = spread([ratio for ratio, _ in trained])
    result["stop_seconds"] = spread([seconds for _, seconds in trained])
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "profiling.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
