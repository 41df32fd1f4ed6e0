"""The loss of one validation batch, from a copy of the module that no Trainer knows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from cmr_monitor_callbacks.errors import CMRMonitorError


def validation_loss(batch: Any, batch_idx: int, dataloader_idx: int, module: Any) -> float:
    """What ``validation_step`` returns as loss, else what it logs under a name with ``loss``.

    Args:
        batch: as the Trainer gave it.
        batch_idx: likewise.
        dataloader_idx: likewise; passed on where the step takes it.
        module: a copy, whose ``log`` goes nowhere else.

    Raises:
        CMRMonitorError: it neither returns nor logs a loss.
    """
    logged: dict[str, Any] = {}

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged[name] = value

    def log_dict(values: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        logged.update(values)

    module.__dict__.update(log=log, log_dict=log_dict)
    takes_loader = "dataloader_idx" in inspect.signature(module.validation_step).parameters
    more = {"dataloader_idx": dataloader_idx} if takes_loader else {}
    out = module.validation_step(batch, batch_idx, **more)
    if isinstance(out, Mapping):
        out = out.get("loss")
    if out is None:
        out = next((value for name, value in logged.items() if "loss" in name), None)
    if not isinstance(out, (int, float, torch.Tensor)):
        raise CMRMonitorError("validation_step neither returns nor logs a loss")
    return float(out)
