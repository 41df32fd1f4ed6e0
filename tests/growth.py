"""How much memory a process takes on while the monitor runs, measured in a process of its own.

    python -m tests.growth loop|fit STEPS [BYTES]

prints how many bytes the process holds more at the end than after the first tenth of the steps,
when everything that is bounded is full. BYTES are leaked on purpose in each step, to see that it is
seen.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import nn

WINDOW: Final = 500
KEPT: Final = {"max_history_size": 20, "on_monitor_error": "raise"}


def held() -> int:
    """Bytes of memory that the process holds now, not at its peak."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def grown(step: Callable[[int], None], steps: int, leaks: int) -> int:
    """Bytes that the process takes on after the first tenth of the steps."""
    leaked, before = [], 0
    for i in range(steps):
        if i == steps // 10:
            before = held()
        step(i)
        if leaks:
            leaked.append(bytes(leaks))
    return held() - before


def loop(steps: int, leaks: int) -> int:
    """A plain loop of a model with probes: every kind of call, and the step itself."""
    from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe

    model = nn.Module()
    model.probes = [CMRProbe(layer) for layer in (2, 4, 6)]  # type: ignore[assignment]
    monitor = CMRPerformanceMonitor({**KEPT, "log_every_n_steps": WINDOW}, model=model)

    def step(_: int) -> None:
        for probe in model.probes:
            probe.capture(64, 60, 55, 0.001)
            probe.buffer(900, 1024, 460800, 5)
        monitor.record_step(0.01, 0.001, 0.004, 0.004, 0.002, 0.0001, 1, 16, 2048)
        monitor.step()

    more = grown(step, steps, leaks)
    assert monitor.snapshot.value("states_captured") == 3 * 60 * steps
    return more


def fit(steps: int, leaks: int) -> int:
    """The callback's own hooks, TensorBoard's writer and a buffer that is watched.

    In a real fit, but the steps are made by hand: a Trainer's own take ten times as long.
    """
    import pytorch_lightning as pl

    from cmr_monitor_callbacks import CMRMonitorCallback
    from tests.memory_models.small import LAYERS, SmallModule, loader
    from tests.models import trainer

    callback = CMRMonitorCallback(monitoring={**KEPT, "log_every_n_steps": WINDOW})
    states, found = torch.zeros(8), []

    class ByHand(pl.Callback):
        """Makes the steps before the Trainer makes its own."""

        def on_train_start(self, fitter: pl.Trainer, module: Any) -> None:
            buffer, batch = module.core.memory_buffer, (torch.zeros(3, 4, 8), torch.zeros(3, 4))
            hooks, batches = (fitter, module), fitter.fit_loop.epoch_loop
            loss, [optimizer] = torch.zeros(()), fitter.optimizers

            def step(i: int) -> None:
                callback.on_train_batch_start(*hooks, batch, i)
                for layer in LAYERS:
                    buffer.store_state(states, layer, key=i)
                    buffer.retrieve_by_layer(layer)
                callback.on_before_backward(*hooks, loss)
                callback.on_after_backward(*hooks)
                callback.on_before_optimizer_step(*hooks, optimizer)
                callback._after_optimizer()
                batches._batches_that_stepped += 1
                callback.on_train_batch_end(*hooks, {"loss": loss}, batch, i)

            found.append(grown(step, steps, leaks))

    with tempfile.TemporaryDirectory() as folder:
        fitter = trainer(folder, [callback, ByHand()], max_steps=1)
        fitter.fit(SmallModule(), loader(1))
        [events] = Path(folder).rglob("events*")
        assert events.stat().st_size > steps // WINDOW * 1000, "windows were written"
    assert callback.snapshot.value("states_stored") >= len(LAYERS) * steps
    return found[0]


if __name__ == "__main__":
    which = {"loop": loop, "fit": fit}[sys.argv[1]]
    torch.set_num_threads(1)
    print(which(int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
