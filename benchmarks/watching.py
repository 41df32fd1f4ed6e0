"""What it costs to watch a model that nobody instrumented.

Ratios within one run, of loops that alternate every `WINDOW_CALLS` calls, as many as one method
has in a window of 50 steps at 12 layers; after each stretch the window ends, as in training:

* ``wrapped``: a call of a wrapped ``store_state``, beside one with a hand-written wrapper of two
  clock readings and one ``extend``;
* ``hooked``: a reconstructor's pair of hooks, beside an empty pair that reads the clock;
* ``polled``: the look at a buffer at the end of a window, beside reading the same attributes;
* ``step``: all of it at 12 layers (a store, a retrieval and a reconstruction each) in a real
  Trainer with TensorBoard: what the calls take more, and the callback's hooks; beside it what the
  same calls take more with hand-written wrappers and an empty pair of hooks, which count nothing.

    python benchmarks/watching.py            # prints a table, writes benchmarks/results/…json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from step_overhead import Bare, Timed, fit
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor

LAYERS = 12
WINDOW_CALLS = 50 * LAYERS
QUIET: dict[str, Any] = {"enable_alerts": False}


class Buffer:
    """A layered buffer as strangers write it; its calls do next to nothing."""

    def __init__(self, capacity: int = 64) -> None:
        self.max_entries_per_layer = capacity
        self.max_total_entries = capacity * LAYERS
        self.layer_buffers: dict[int, list[Any]] = {layer: [] for layer in range(LAYERS)}

    def store_state(self, hidden_state: Any, layer_idx: int) -> bool:
        """Keep a state, at the cost of the oldest."""
        held = self.layer_buffers[layer_idx]
        if len(held) >= self.max_entries_per_layer:
            return False
        self._insert_entry(hidden_state, layer_idx)
        return True

    def retrieve_by_layer(self, layer_idx: int) -> list[Any]:
        """All of a layer."""
        return self.layer_buffers[layer_idx]

    def _insert_entry(self, entry: Any, layer_idx: int) -> None:
        self.layer_buffers[layer_idx].append(entry)

    def _remove_entry(self, entry: Any, layer_idx: int) -> None:
        self.layer_buffers[layer_idx].remove(entry)


class Reconstructor(nn.Module):
    """Gives the states back as they are."""

    def forward(
        self, hidden_states: torch.Tensor, memories: list[Any], layer_idx: int
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The states, and how many memories there were."""
        return hidden_states, {"num_memories_used": len(memories)}


class Memory(nn.Module):
    """The parts of a memory model, without a model."""

    def __init__(self) -> None:
        super().__init__()
        self.memory_buffer = Buffer()
        self.reconstructor = Reconstructor()

    def step(self, states: torch.Tensor) -> None:
        """What a forward does with its memory."""
        buffer, reconstruct = self.memory_buffer, self.reconstructor
        for layer in range(LAYERS):
            buffer.store_state(states, layer)
            reconstruct(states, buffer.retrieve_by_layer(layer), layer)


def by_hand(memory: Memory) -> None:
    """Put hand-written wrappers and hooks on a memory: clock readings, one ``extend`` each."""
    clock, events, started = time.perf_counter, deque[Any](maxlen=1000), [0.0]
    buffer = memory.memory_buffer

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            out = original(*args, **kwargs)
            events.extend((4, 1, 1, out, clock() - start))
            return out

        return call

    def before(module: Any, args: Any, kwargs: Any) -> None:
        started[0] = clock()

    def after(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        started[0] = clock() - started[0]

    buffer.store_state = timed(buffer.store_state)  # type: ignore[method-assign]
    buffer.retrieve_by_layer = timed(buffer.retrieve_by_layer)  # type: ignore[method-assign]
    part = memory.reconstructor
    part.register_forward_pre_hook(before, with_kwargs=True)
    part.register_forward_hook(after, with_kwargs=True, always_call=True)


class Watched(Bare):
    """A LightningModule with a memory and nothing else; its step is timed."""

    def __init__(self) -> None:
        super().__init__(0)
        self.memory = Memory()
        self.states = torch.zeros(4, 8)
        self.spent = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The memory's calls, timed."""
        start = time.perf_counter()
        self.memory.step(self.states)
        self.spent += time.perf_counter() - start
        return self.weight.sum()


def per_call(call: Callable[[], Any], times: int) -> float:
    """Seconds of one call in a tight loop."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def ratio(
    monitor: CMRPerformanceMonitor, ours: Callable[[], Any], other: Callable[[], Any], times: int
) -> float:
    """Our call's time, in those of another: the medians of stretches of a window's calls each."""
    spent: tuple[list[float], list[float]] = [], []
    for stretch in range(2 + times // WINDOW_CALLS):
        monitor.refresh()  # as before each step
        for found, call in zip(spent, (ours, other), strict=True):
            seconds = per_call(call, WINDOW_CALLS)
            if stretch >= 2:  # the first two warm up
                found.append(seconds)
        monitor.close_window()
    return statistics.median(spent[0]) / statistics.median(spent[1])


def wrapped(times: int) -> float:
    """A wrapped call's time, in those of a hand-written wrapper."""
    hand, ours, state = Memory(), Memory(), torch.zeros(8)
    by_hand(hand)
    monitor = CMRPerformanceMonitor(alert_config=QUIET, model=ours)
    found = ratio(
        monitor,
        lambda: ours.memory_buffer.store_state(state, 4),
        lambda: hand.memory_buffer.store_state(state, 4),
        times,
    )
    monitor.detach()
    return found


def hooked(times: int) -> float:
    """A hooked call's time, in those of one with an empty pair of hooks that reads the clock."""
    hand, ours, states, memories = Memory(), Memory(), torch.zeros(4, 8), [1, 2, 3]
    by_hand(hand)
    monitor = CMRPerformanceMonitor(alert_config=QUIET, model=ours)
    found = ratio(
        monitor,
        lambda: ours.reconstructor(states, memories, 4),
        lambda: hand.reconstructor(states, memories, 4),
        times,
    )
    monitor.detach()
    return found


def polled(times: int) -> float:
    """The look at a buffer at a window's end, in readings of the same attributes."""
    model = Memory()
    for layer in range(LAYERS):
        for _ in range(64):
            model.memory_buffer.store_state(torch.zeros(8), layer)
    monitor = CMRPerformanceMonitor(alert_config=QUIET, model=model)
    watch = next(iter(monitor._listening.automatic._watched.values()))[1][0]

    found: list[int] = []

    def read() -> None:
        buffer = model.memory_buffer
        for entries in buffer.layer_buffers.values():
            len(entries)
            for entry in entries[::4]:  # the sixteen of which the size is read
                entry.nelement() * entry.element_size()
            found.append(buffer.max_entries_per_layer)
            found.append(buffer.max_total_entries)
        found.clear()

    found_ratio = per_call(watch.holdings, times // 100) / per_call(read, times // 100)
    monitor.detach()
    return found_ratio


def step(steps: int) -> tuple[float, float, float]:
    """Microseconds a step: what the calls take more, the callback's hooks, the calls by hand."""
    with_monitor, without, hand = Watched(), Watched(), Watched()
    by_hand(hand.memory)
    Timed.spent = 0.0
    fit(with_monitor, steps, [Timed()])
    hooks = Timed.spent
    for module in (without, hand):
        fit(module, steps, [])
    calls = (module.spent - without.spent for module in (with_monitor, hand))
    ours, others = (spent / steps * 1e6 for spent in calls)
    return ours, hooks / steps * 1e6, others


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    step(200)  # warm up imports and caches
    ratios = {
        name: [measure(arguments.calls) for _ in range(arguments.repeats)]
        for name, measure in (("wrapped", wrapped), ("hooked", hooked), ("polled", polled))
    }
    steps = [step(arguments.steps) for _ in range(arguments.repeats)]
    result = {
        "command": "python benchmarks/watching.py",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "layers": LAYERS,
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "microseconds_per_step": {
            "calls": spread([calls for calls, _, _ in steps]),
            "callback_hooks": spread([hooks for _, hooks, _ in steps]),
            "total": spread([calls + hooks for calls, hooks, _ in steps]),
            "the_same_calls_by_hand": spread([hand for _, _, hand in steps]),
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "watching.json").write_text(text + "\n")


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and greatest."""
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }


if __name__ == "__main__":
    main()
