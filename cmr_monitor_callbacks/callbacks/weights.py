"""Whether weights are worth keeping."""

from __future__ import annotations

import torch

from cmr_monitor_callbacks.callbacks.lightning_api import Trainer


def weights_are_finite(trainer: Trainer) -> bool:
    """Whether no weight is NaN or infinite, on any rank; all of them call it at once."""
    finite = True
    for parameter in trainer.lightning_module.parameters():
        shard = parameter.detach()
        if hasattr(shard, "to_local"):  # of a DTensor this rank's part
            shard = shard.to_local()
        finite = finite and bool(torch.isfinite(shard).all())
    return bool(trainer.strategy.reduce_boolean_decision(finite, all=True))
