"""Finds what would wait for a device, without one: fake CUDA tensors, and a look at each operator.

What it knows: reading a number (``item``, ``bool``, ``nonzero``, …), copies between host and device
that are not ``non_blocking``, and indices that lie on the host (they are copied first).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_static"),
    *("masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("repeat_interleave", "linalg_matrix_rank", "bincount"),
}
COPIES = {"_to_copy", "copy_", "_copy_from", "copy", "_pin_memory"}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Waits(AssertionError):
    """An operator would wait for the device."""


class Guard(TorchDispatchMode):
    """Raises `Waits` where an operator would have the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if "cuda" in devices:
            self.operators += 1
            if name in READS:
                raise Waits(f"{func} reads a number of the device")
            if name in INDEXES:
                picks = [x for x in tree_leaves(args[1]) if isinstance(x, torch.Tensor)]
                if any(x.device.type != "cuda" or x.dtype == torch.bool for x in picks):
                    raise Waits(f"{func} with an index of the host, or a mask")
        if name in COPIES and not self._is_free(name, args, kwargs, devices):
            raise Waits(f"{func} copies between host and device, and waits")
        return func(*args, **kwargs)

    @staticmethod
    def _is_free(name: str, args: Any, kwargs: Any, devices: set[str]) -> bool:
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        there = devices | ({to} if to else set())
        if there in ({"cuda"}, {"cpu"}, set()):
            return True
        at = {"copy_": 2, "_copy_from": 2, "copy": 2}.get(name)
        late = kwargs.get("non_blocking", at is not None and len(args) > at and args[at])
        return bool(late)


_ENDS_BEFORE = {
    Tensor.copy_: "copy_",
    Tensor.nonzero: "nonzero",
    Tensor.index_copy_: "index_copy_",
    Tensor.__invert__: "bitwise_not",
    Tensor.__float__: "_local_scalar_dense",
    Tensor.__int__: "_local_scalar_dense",
}


class _WithoutCuda(TorchFunctionMode):
    """Does what a build without CUDA cannot, for tensors of a device that it does not have.

    There indexing in brackets and some methods end before any operator is called. A list as an
    index is a tensor of the host; it is copied to the device, which waits.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _ENDS_BEFORE.get(func)
        if name is not None:
            return getattr(torch.ops.aten, name)(*args, **kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device.type == "cuda":
            return _indexed(*args)
        return func(*args, **kwargs)


def _indexed(self: Tensor, index: Any, value: Any = None) -> Any:
    picks: list[Tensor | None] = []
    for one in index if isinstance(index, tuple) else (index,):
        dim = len(picks)
        if isinstance(one, list):
            raise Waits(f"a list as index, {one}: it is copied to the device")
        if isinstance(one, Tensor):
            picks.append(one)
        elif isinstance(one, int):
            self = torch.ops.aten.select(self, dim, one)
        elif isinstance(one, slice):
            self = torch.ops.aten.slice(self, dim, one.start, one.stop, one.step or 1)
            picks.append(None)
        else:  # None
            self = torch.ops.aten.unsqueeze(self, dim)
            picks.append(None)
    chosen = [pick for pick in picks if pick is not None]
    if value is None:
        return torch.ops.aten.index(self, picks) if chosen else self
    value = value if isinstance(value, Tensor) else torch.full((), value, device=self.device)
    if chosen:
        return torch.ops.aten.index_put_(self, picks, value)
    return torch.ops.aten.copy_(self, value)


@contextmanager
def on_fake_cuda() -> Iterator[Guard]:
    """Within, tensors of ``device="cuda"`` can be made, and nothing may wait for them."""
    with FakeTensorMode(), Guard() as guard, _WithoutCuda():
        yield guard
