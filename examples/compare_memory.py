"""Trains the example with and without its memory, on the same data, and writes down what came out.

python examples/compare_memory.py [--steps 400] [--seeds 2]

The two models have the same blocks, with the same initial weights; the one with memory has its
memory layers besides (16 % more parameters), and does more work for each step. Both are printed
beside the loss. All layers have the default capacity; none is made too small, as in the demo.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

# the example is run from a clone, as a script
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.cmr_lm.data import PythonDocs
from examples.cmr_lm.module import CMRLanguageModule

ROOT = Path(__file__).resolve().parent.parent


def train(*, memory: bool, steps: int, seed: int) -> dict[str, float]:
    """Validation loss (nats per byte), parameters and training time of one run."""
    pl.seed_everything(seed, verbose=False)
    data = PythonDocs(seed=seed)
    module = CMRLanguageModule(memory_enabled=memory, capacity_of={})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    start, cpu_start = time.perf_counter(), time.process_time()
    trainer.fit(module, data)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    [result] = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    ).validate(module, data.val_dataloader(), verbose=False)
    return {
        "val_loss": result["val/loss"],
        "parameters": float(sum(p.numel() for p in module.parameters())),
        "seconds": seconds,
        # of all threads; says more than the clock does on a machine that is busy with other work
        "cpu_seconds": cpu_seconds,
    }


def main() -> None:
    """Train, print and write ``docs/compare_memory.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "compare_memory.json")
    arguments = parser.parse_args()
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", text)

    runs: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    for seed in range(arguments.seeds):
        for name, memory in (("without", False), ("with", True)):
            runs[name].append(train(memory=memory, steps=arguments.steps, seed=seed))
            print(f"seed {seed} {name} memory: {runs[name][-1]}", flush=True)
    result = report(runs, arguments.steps, arguments.seeds)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def report(runs: dict[str, list[dict[str, float]]], steps: int, seeds: int) -> dict[str, Any]:
    """Print a table and give the figures."""

    def mean(name: str, key: str) -> float:
        return statistics.mean(run[key] for run in runs[name])

    table = Table(title=f"{steps} steps, mean of {seeds} seeds")
    for heading in ("", "nats/byte", "bits/byte", "parameters", "seconds", "CPU seconds"):
        table.add_column(heading, justify="right")
    for name in ("without", "with"):
        loss = mean(name, "val_loss")
        table.add_row(
            f"{name} memory",
            f"{loss:.4f}",
            f"{loss / math.log(2):.4f}",
            f"{mean(name, 'parameters'):,.0f}",
            f"{mean(name, 'seconds'):.0f}",
            f"{mean(name, 'cpu_seconds'):.0f}",
        )
    Console().print(table)
    ratios = [
        a["val_loss"] / b["val_loss"] for a, b in zip(runs["with"], runs["without"], strict=True)
    ]
    print(f"loss with / without memory: {statistics.mean(ratios):.4f}, per seed {ratios}")
    return {
        "command": f"python examples/compare_memory.py --steps {steps} --seeds {seeds}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": version("pytorch-lightning"),
        "unigram_entropy_nats_per_byte": PythonDocs().unigram_entropy,
        "runs": runs,
        "val_loss_with_over_without": {
            "per_seed": ratios,
            "mean": statistics.mean(ratios),
        },
        "cpu_seconds_with_over_without": mean("with", "cpu_seconds")
        / mean("without", "cpu_seconds"),
    }


if __name__ == "__main__":
    main()
