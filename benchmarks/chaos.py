"""Random faults in random runs of several ranks: does anything hang, does anybody lie?

Each run starts 2 to 4 real gloo processes that record and exchange windows; one of them does
something wrong at a random step. A run is *hung* where a rank that did nothing wrong does not end
in time, *wrong* where its totals are not those of all ranks up to some window and its own from
there on.

    python benchmarks/chaos.py             # 200 runs, ten of them with a Trainer; some minutes
    python benchmarks/chaos.py --runs 20   # a taste
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe

FAULTS = (
    "none",
    "late",
    "too late",
    "skips a step",
    "raises",
    "killed",
    "hangs",
    "ends early",
    "other windows",
    "no monitor",
    "new layer",
)
TIMEOUT = 1.0
LIMIT = 40.0
STEPS = 40
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed", "cmr_monitor_callbacks.monitor", "numpy"])


def plain(rank: int, plan: dict[str, Any]) -> dict[str, Any]:
    """A rank of a plain loop."""
    faulty = rank == plan["rank"]
    fault = plan["fault"] if faulty else "none"
    if fault == "no monitor":
        time.sleep(1.5 * TIMEOUT)
        return {}
    model = nn.Module()
    model.probes = [CMRProbe(4)]
    window = plan["window"] + (1 if fault == "other windows" else 0)
    monitor = CMRPerformanceMonitor({"log_every_n_steps": window, "reduction_timeout": TIMEOUT})
    monitor.join_ranks()
    monitor.attach(model)
    monitor.agree_on_layers()
    try:
        for step in range(STEPS):
            if step == plan["step"] and misbehave(fault, model, monitor):
                break
            if step == plan["step"] and fault == "skips a step":
                continue
            for probe in model.probes:
                probe.capture(4, 3, 1, 0.001)
            monitor.step()
            time.sleep(plan["pause"])
        monitor.flush()
    finally:
        monitor.leave_ranks()
    return {
        "calls": monitor.snapshot.value("capture_calls", layer=4),
        "world": monitor.snapshot.world_size,
        "failures": monitor.failures,
    }


def misbehave(fault: str, model: Any, monitor: CMRPerformanceMonitor) -> bool:
    """Do it; gives whether the loop ends here."""
    if fault == "late":
        time.sleep(0.4 * TIMEOUT)
    elif fault == "too late":
        time.sleep(2.5 * TIMEOUT)
    elif fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "raises":
        raise RuntimeError("on purpose")
    elif fault == "new layer":
        model.probes.append(CMRProbe("late"))
        monitor.attach(model)
    return fault == "ends early"


def with_trainer(rank: int, plan: dict[str, Any]) -> dict[str, Any]:
    """A rank of a Lightning run; whatever ends one rank ends the job, with or without us."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    from cmr_monitor_callbacks import CMRMonitorCallback

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1")
    os.environ.update(WORLD_SIZE=str(plan["size"]), MASTER_PORT="29511")
    callback = CMRMonitorCallback(monitoring={"reduction_timeout": TIMEOUT})

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.probes = [CMRProbe(4)]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if rank == plan["rank"] and batch_idx == plan["step"]:
                misbehave(plan["fault"], self, callback.monitor)
            self.probes[0].capture(4, 3, 1, 0.001)
            loss: torch.Tensor = self.layer(batch[0]).mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=plan["size"],
        strategy="ddp",
        max_steps=STEPS,
        log_every_n_steps=plan["window"],
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = DataLoader(TensorDataset(torch.ones(STEPS, 2)), batch_size=1)
    try:
        trainer.fit(Module(), data)
    except RuntimeError:  # a peer is gone: the job ends, as it does without the monitor
        return {"ended": True}
    return {
        "calls": callback.snapshot.value("capture_calls", layer=4),
        "world": callback.snapshot.world_size,
        "failures": callback.monitor.failures,
    }


def process(rank: int, plan: dict[str, Any], folder: str) -> None:
    """A rank's process."""
    torch.set_num_threads(1)
    logging.getLogger("cmr_monitor_callbacks").setLevel(logging.CRITICAL)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=plan["size"])
    try:
        found = with_trainer(rank, plan) if plan["trainer"] else plain(rank, plan)
    except Exception:
        found = {"raised": traceback.format_exc()}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def plan_of(number: int, trainers: int) -> dict[str, Any]:
    """What happens in a run; the same for the same number."""
    choose = random.Random(number)
    trainer = number < trainers
    faults = ("none", "late", "killed", "raises", "new layer") if trainer else FAULTS
    size = 2 if trainer else choose.choice([2, 2, 3, 4])
    return {
        "trainer": trainer,
        "size": size,
        "fault": faults[number % len(faults)],
        "rank": choose.randrange(size),
        "step": choose.randrange(2, STEPS - 2),
        "window": choose.choice([1, 3, 5, 10]),
        "pause": choose.choice([0.0, 0.0, 0.002]),
    }


def run(plan: dict[str, Any]) -> str:
    """One run; gives ``ok``, ``hung`` or what is wrong."""
    gone = {plan["rank"]} if plan["fault"] in ("killed", "hangs") else set()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            CONTEXT.Process(target=process, args=(rank, plan, folder))
            for rank in range(plan["size"])
        ]
        for one in ranks:
            one.start()
        end = time.monotonic() + LIMIT
        staying = [rank for rank in range(plan["size"]) if rank not in gone]
        for rank in staying:
            ranks[rank].join(max(0.0, end - time.monotonic()))
        hung = any(ranks[rank].is_alive() for rank in staying)
        for one in ranks:
            if one.is_alive():
                one.kill()
            one.join()
        if hung:
            return "hung"
        answers = {
            rank: json.loads(Path(folder, f"{rank}.json").read_text())
            for rank in staying
            if rank != plan["rank"] or plan["fault"] in ("none", "late", "new layer")
        }
    return judge(plan, answers)


def judge(plan: dict[str, Any], answers: dict[int, dict[str, Any]]) -> str:
    """Whether the ranks that did nothing wrong say what is true."""
    size, window = plan["size"], plan["window"]
    for rank, answer in answers.items():
        if answer.get("ended"):
            continue
        if "raised" in answer:
            return f"wrong: rank {rank} raised {answer['raised'][-200:]}"
        calls, world = answer["calls"], answer["world"]
        if plan["fault"] in ("none", "late", "new layer"):
            if (calls, world, answer["failures"]) != (size * STEPS, size, 0):
                return f"wrong: rank {rank} says {answer}"
            continue
        # so many windows of all ranks, and from then on its own
        possible = {size * shared + STEPS - shared for shared in (*range(0, STEPS, window), STEPS)}
        if calls not in possible or answer["failures"] > 1:
            return f"wrong: rank {rank} says {answer}, possible are {sorted(possible)}"
    return "ok"


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--trainers", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    start, outcomes = time.monotonic(), Counter[str]()
    by_fault: dict[str, Counter[str]] = {}
    for number in range(arguments.runs):
        plan = plan_of(number, arguments.trainers)
        outcome = run(plan)
        if outcome != "ok":
            print(number, plan, outcome, flush=True)
        word = outcome.split(":")[0]
        outcomes[word] += 1
        kind = plan["fault"] + (" (Trainer)" if plan["trainer"] else "")
        by_fault.setdefault(kind, Counter())[word] += 1
    result = {
        "command": f"python benchmarks/chaos.py --runs {arguments.runs}",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start),
        "outcomes": dict(outcomes),
        "by_fault": {fault: dict(counts) for fault, counts in sorted(by_fault.items())},
    }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "chaos.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
