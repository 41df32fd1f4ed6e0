"""A spare copy of a model, to try things on: the model itself notices nothing.

The copy has the model's own parameters, and copies of all else: buffers, counters, modes. What a
monitor has put on the model is not on the copy.
"""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.probes.declared import switch_off
from cmr_monitor_callbacks.probes.entries import forget_entries, read_entries
from cmr_monitor_callbacks.probes.survey import attributes, survey

_TRAINERS = ("_trainer", "trainer", "_fabric")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LossOf = Callable[[Any], float]


class CannotCompare(CMRMonitorError):
    """A model cannot be tried with and without its memory; the message says why."""


class _Silent:
    """Stands on a copy where the model holds a monitor: it takes any call."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def spare_copy(model: nn.Module, own: Any = None) -> nn.Module:
    """A copy of a model that shares its parameters and nothing else.

    Args:
        model: nothing of it is changed.
        own: a monitor that the model may hold.

    Raises:
        CannotCompare: a copy would reach back to the model, or cannot be made.

    >>> layer = nn.BatchNorm1d(2)
    >>> spare = spare_copy(layer)
    >>> spare.weight is layer.weight, spare.running_mean is layer.running_mean
    (True, False)
    """
    _refuse(model)
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        for name in _TRAINERS:
            held = vars(module).get(name)
            if held is not None:
                memo[id(held)] = None
    if own is not None:
        memo[id(own)] = _Silent()
    try:
        with torch.no_grad():
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise CannotCompare(
            f"the model cannot be copied ({type(error).__name__}: {error})"
        ) from error


def _refuse(model: nn.Module) -> None:
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind in ("OptimizedModule", "FullyShardedDataParallel") or kind.startswith("FSDP"):
            raise CannotCompare(f"{path or 'the model'} is a {kind}, which has no copy of its own")
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        raise CannotCompare("the parameters are spread over ranks")
    parts = {id(part.value) for part in survey(model)} | {id(m) for m in model.modules()}
    for part in survey(model):
        own = attributes(part.value)
        held = [v for v in own.values() if isinstance(v, types.FunctionType)]
        if part.is_module:
            held += [f for name in _HOOKS for f in own.get(name, {}).values()]
        for function in held:
            if _reaches(function, parts):
                where = part.path or "the model"
                raise CannotCompare(f"a function that {where} holds refers to the model itself")


def _reaches(function: Any, parts: set[int]) -> bool:
    """Whether a function's closure holds a part of the model: a copy of it would call that part."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # never assigned
            continue
        bound = getattr(held, "__self__", None)
        if id(held) in parts or (bound is not None and id(bound) in parts):
            return True
    return False


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn within is drawn again after: Python, NumPy, and torch on every device."""
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def compare_memory(
    model: nn.Module, loss_of: LossOf, own: Any = None
) -> tuple[float, float, str] | None:
    """The loss with what the memory holds, and with it left out; both on copies of the model.

    Without memory means that its entries are gone, and that switches such as ``memory_enabled`` are
    off: the model does what it does before anything was stored.

    Args:
        model: nothing of it is changed: no buffer, counter, mode, gradient or random state.
        loss_of: gives the loss of a model, on the same batch each time.
        own: a monitor that the model may hold.

    Returns:
        the loss with memory, that without, and how the memory was left out; None where it is empty.

    Raises:
        CannotCompare: it cannot be done with this model; the message says why.
    """
    held, why = read_entries(model, sample=1)
    if why:
        raise CannotCompare("; ".join(why))
    if held and not any(one.count for one in held):
        return None
    losses = []
    how: list[str] = []
    for without in (False, True):
        spare = spare_copy(model, own).eval()
        if without:
            dropped = forget_entries(spare)
            how = [f"{dropped} entries left out"] if dropped else []
            how += [f"{switch} = False" for switch in switch_off(spare)]
            if not how:
                raise CannotCompare("its entries cannot be left out, and it has no switch")
        with random_state_kept(), torch.no_grad():
            losses.append(float(loss_of(spare)))
    return losses[0], losses[1], ", ".join(how)
