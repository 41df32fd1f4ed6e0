"""What the monitor costs on the training thread, per step, beside hand-written torchmetrics.

Drives the real callback's hooks and real probes in a tight loop at 12 layers, without a model, so
that nothing but the monitor is timed:

* ``record``: 48 probe calls a step (capture, reconstruction, retrieval, buffer at each layer);
* ``hooks``: the callback's hooks of a step, the fold, the rules and TensorBoard's event every 50
  steps among them; of these the ends of windows, and of these the rules, which are judged on some
  500 series and of which some always hold here, where the steps do nothing;
* ``hand-written``: the same numbers in 48 torchmetrics updated each step and ``self.log``ged, in a
  real Trainer, as many users do today.

Microseconds are those of a machine. ``extends`` says the same in the time of one ``list.extend`` of
a tuple of four in a tight loop: the least that recording one event can cost.

What it does not see, measured beside it: the Trainer's dispatch of a callback, TensorBoard's writer
thread, the whole process.

    python benchmarks/step_overhead.py            # prints a table, writes benchmarks/results/…json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import timeit
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cmr_monitor_callbacks import CMRMonitorCallback, CMRProbe

LAYERS = 12
WINDOW = 50


class Layer(nn.Module):
    """A layer that only speaks to its probe."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.probe = CMRProbe(index)


class Bare(pl.LightningModule):
    """A LightningModule with nothing to compute."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(i) for i in range(layers))
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Probe calls of a step, and a loss."""
        record_step(self.probes)
        return self.weight.sum()

    @property
    def probes(self) -> list[CMRProbe]:
        """The probes of all layers."""
        return [layer.probe for layer in self.layers]  # type: ignore[union-attr]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.0)


def record_step(probes: list[CMRProbe]) -> None:
    """One step's probe calls: four for each layer, Python numbers."""
    for probe in probes:
        probe.capture(64, 60, 55, 0.0011, considered=512)
        probe.buffer(900, 1024, 460800, 5)
        probe.retrieval(8, 64, 3, 0.0007, 0.8)
        probe.reconstruction(64, 0.9, 0.0021)


class HandWritten(Bare):
    """What users write today: a torchmetric for each number, updated and logged each step."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = nn.ModuleList(
            torchmetrics.MeanMetric() if i % 2 else torchmetrics.SumMetric()
            for i in range(4 * LAYERS)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Update and log 48 metrics."""
        start = time.perf_counter()
        for i, metric in enumerate(self.stats):
            metric.update(float(i))  # type: ignore[operator]
            self.log(f"stat/{i}", metric)  # type: ignore[arg-type]
        self.spent.append(time.perf_counter() - start)
        return self.weight.sum()

    spent: ClassVar[list[float]] = []


class Timed(CMRMonitorCallback):
    """The callback with each hook of a step timed from outside."""

    spent = 0.0

    def _timed(self, hook: Any, *args: Any) -> None:
        start = time.perf_counter()
        hook(*args)
        Timed.spent += time.perf_counter() - start

    def on_train_batch_start(self, *args: Any) -> None:
        """Timed."""
        self._timed(super().on_train_batch_start, *args)

    def on_before_backward(self, *args: Any) -> None:
        """Timed."""
        self._timed(super().on_before_backward, *args)

    def on_after_backward(self, *args: Any) -> None:
        """Timed."""
        self._timed(super().on_after_backward, *args)

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Timed."""
        self._timed(super().on_before_optimizer_step, *args)

    def _after_optimizer(self, *args: Any) -> None:
        """Timed: the optimizer's own hook."""
        self._timed(super()._after_optimizer, *args)

    def on_train_batch_end(self, *args: Any) -> None:
        """Timed."""
        self._timed(super().on_train_batch_end, *args)


class TimedBare(Bare):
    """The bare module with its probe calls timed."""

    spent = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Probe calls of a step, timed."""
        probes = self.probes
        start = time.perf_counter()
        record_step(probes)
        TimedBare.spent += time.perf_counter() - start
        return self.weight.sum()


def loader(steps: int) -> DataLoader[Any]:
    """A loader of tiny batches."""
    return DataLoader(TensorDataset(torch.zeros(steps, 1)), batch_size=1)


def fit(module: pl.LightningModule, steps: int, callbacks: list[Any]) -> float:
    """Seconds that a fit of so many steps takes."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            callbacks=callbacks,
            default_root_dir=folder,
            log_every_n_steps=WINDOW,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        start = time.perf_counter()
        trainer.fit(module, loader(steps))
        return time.perf_counter() - start


def monitored(steps: int) -> tuple[float, float, float, float]:
    """Microseconds a step in probe calls, in hooks, of these in window ends, of these in rules."""
    Timed.spent = TimedBare.spent = 0.0
    callback = Timed()
    fit(TimedBare(), steps, [callback])
    parts = callback.monitor.overhead()["seconds"]
    seconds = TimedBare.spent, Timed.spent, parts["window_end"], parts["rules"]
    return tuple(spent / steps * 1e6 for spent in seconds)  # type: ignore[return-value]


def extend_seconds(times: int = 200_000) -> float:
    """Seconds of one ``list.extend`` of a tuple of four, in a tight loop."""
    return min(timeit.repeat("e((1, 2, 3, 4))", "e = [].extend", number=times, repeat=5)) / times


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fit(Bare(), 200, [CMRMonitorCallback()])  # warm up imports and caches

    record, hooks, ends, rules, bare, whole, hand, extends = ([] for _ in range(8))
    for _ in range(arguments.repeats):
        measured = monitored(arguments.steps)
        for found, microseconds in zip((record, hooks, ends, rules), measured, strict=True):
            found.append(microseconds)
        extends.append(sum(measured[:2]) / (extend_seconds() * 1e6))
        bare.append(fit(Bare(), arguments.steps, []) / arguments.steps * 1e6)
        whole.append(fit(Bare(), arguments.steps, [CMRMonitorCallback()]) / arguments.steps * 1e6)
        HandWritten.spent = []
        fit(HandWritten(), arguments.steps // 10, [])
        hand.append(statistics.mean(HandWritten.spent) * 1e6)
    in_hook = [a + b for a, b in zip(record, hooks, strict=True)]
    result = {
        "command": "python benchmarks/step_overhead.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "layers": LAYERS,
        "window_steps": WINDOW,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "microseconds_per_step": {
            "probe_calls": _spread(record),
            "callback_hooks": _spread(hooks),
            "of_these_window_ends": _spread(ends),
            "of_these_rules": _spread(rules),
            "in_hook_total": _spread(in_hook),
            "hand_written_torchmetrics_and_self_log": _spread(hand),
            "whole_process_without": _spread(bare),
            "whole_process_with": _spread(whole),
            "whole_process_difference": _spread([w - b for w, b in zip(whole, bare, strict=True)]),
        },
        "in_hook_total_in_list_extends": _spread(extends),
        "hand_written_over_monitor": _spread([h / m for h, m in zip(hand, in_hook, strict=True)]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "step_overhead.json").write_text(text + "\n")


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


if __name__ == "__main__":
    main()
