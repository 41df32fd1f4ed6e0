"""FSDP1, which Lightning's own strategy runs on CUDA alone: sharded over two processes by gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.fitting import STRICT
from tests.distributed.processes import Rank, results
from tests.memory_models.small import LAYERS, SmallNet, Tap, plain_steps

pytestmark = pytest.mark.distributed


def sharded(net: SmallNet) -> nn.Module:
    """Each block, and what is left of the model."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    on_host = {"device_id": torch.device("cpu"), "use_orig_params": True}
    for at, block in enumerate(net.blocks):
        net.blocks[at] = FullyShardedDataParallel(block, **on_host)
    return FullyShardedDataParallel(net, **on_host)


def _run(rank: Rank, recompute: str, watch: bool) -> dict[str, Any]:
    with rank.together(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(3)
        net = SmallNet(recompute=recompute)
        tap = Tap(patch, net)
        model = sharded(net)
        shard = sum(parameter.numel() for parameter in model.parameters())
        said: dict[str, Any] = {"weights here": shard}
        if not watch:
            return {**said, "losses": [step().hex() for step in plain_steps(model)]}
        monitor = CMRPerformanceMonitor({"log_every_n_steps": 2, **STRICT}, model=model)
        monitor.join_ranks()
        monitor.agree_on_layers()
        losses = []
        for step in plain_steps(model):
            with monitor.track_performance():
                losses.append(step().hex())
        monitor.flush()
        snapshot = monitor.snapshot
        counted = tap.all()
        found = {
            name: {layer: snapshot.value(name, layer=layer) for layer in LAYERS} for name in counted
        }
        monitor.leave_ranks()
        monitor.detach()
        return {
            **said,
            "losses": losses,
            "layers": sorted(map(str, snapshot.layer_ids)),
            "found": found,
            "tap": counted,
            "failures": monitor.failures,
        }


@pytest.mark.parametrize("recompute", ["", "direct"])
def test_a_sharded_model_is_counted_right_and_trained_alike(tmp_path: Path, recompute: str) -> None:
    without = results(_run, 2, tmp_path / "without", recompute, False)
    ranks = results(_run, 2, tmp_path / "with", recompute, True)
    whole = sum(parameter.numel() for parameter in SmallNet().parameters())
    for bare, one in zip(without, ranks, strict=True):
        assert 0 < one["weights here"] < whole
        assert one["losses"] == bare["losses"]
        assert (one["layers"], one["failures"]) == (sorted(map(str, LAYERS)), 0)
        assert one["found"] == ranks[0]["found"]
    for name, layers in ranks[0]["found"].items():
        for layer, value in layers.items():
            taps = [one["tap"][name].get(layer, 0) for one in ranks]
            assert value == sum(taps), (name, layer)
