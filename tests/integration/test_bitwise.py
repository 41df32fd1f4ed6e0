"""Monitoring must not change training: every bit of it is the same with and without."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.models import MemoryModule, loader, trainer

STEPS = 50


def random_states() -> dict[str, Any]:
    """The state of every generator that training may draw from."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [
            part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()
        ],
        "random": random.getstate(),
    }


def train(
    root: Path, callbacks: list[Any], settings: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    """50 steps with dropout and shuffling; everything that training left behind, as it is."""
    settings = dict(settings)
    validate = settings.pop("validate", False)
    batches = STEPS * settings.get("accumulate_grad_batches", 1)
    torch._dynamo.reset()
    pl.seed_everything(3, verbose=False)
    # compiling takes its time: one layer will do
    module = MemoryModule(layers=(4,) if "backend" in model else (2, 4), **model)
    fitter = trainer(root, callbacks, **settings)
    fitter.fit(module, loader(batches, shuffle=True), loader(3) if validate else None)
    [optimizer] = fitter.optimizers
    moments = [v for state in optimizer.state.values() for v in state.values()]
    return {
        "losses": module.losses,
        "weights": [p.detach().clone() for p in module.parameters()],
        "gradients": [p.grad for p in module.parameters()],
        "stores": [b.clone() for b in module.buffers()],
        "moments": moments,
        "random": random_states(),
        "modes": [m.training for m in module.modules()],
        "steps": fitter.global_step,
        "keys": list(module.state_dict()),
    }


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, NaN included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "eager": ({}, {}),
    "tensors": ({}, {"tensors": True}),
    "validation": ({"validate": True, "val_check_interval": 7, "num_sanity_val_steps": 2}, {}),
    "accumulation of 4": ({"accumulate_grad_batches": 4}, {}),
    "clipping": ({"gradient_clip_val": 0.5}, {}),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {}),
    "recompute": ({}, {"recompute": "direct"}),
    "reentrant recompute": ({}, {"recompute": "reentrant", "tensors": True}),
    "compiled": ({}, {"backend": "inductor", "tensors": True}),
    "compiled recompute": ({}, {"backend": "aot_eager", "tensors": True, "recompute": "direct"}),
    "compiled with breaks": ({}, {"backend": "aot_eager"}),
}


@pytest.mark.parametrize(("settings", "model"), CASES.values(), ids=CASES.keys())
def test_training_is_bitwise_the_same(
    tmp_path: Path, settings: dict[str, Any], model: dict[str, Any]
) -> None:
    without = train(tmp_path / "without", [], settings, model)
    callback = CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})
    with_it = train(tmp_path / "with", [callback], settings, model)
    assert without["steps"] == STEPS
    assert len(without["losses"]) >= STEPS
    for name, value in without.items():
        assert same(value, with_it[name]), name
    # it did watch
    assert callback.monitor.windows == 10
    assert callback.snapshot.value("states_captured") > 0


def test_seeds_matter_to_this_test(tmp_path: Path) -> None:
    """Dropout and shuffling do draw: otherwise the tests above would say nothing of generators."""
    first = train(tmp_path, [], {}, {})
    torch.manual_seed(4)
    before = random_states()["torch"]
    MemoryModule().train()(torch.randn(2, 8), torch.tensor([0, 1]))
    assert random_states()["torch"] != before
    second = train(
        tmp_path, [pl.callbacks.LambdaCallback(on_train_start=lambda *_: torch.rand(1))], {}, {}
    )
    assert not same(first["losses"], second["losses"])
