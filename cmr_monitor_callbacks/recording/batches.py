"""How much is in a batch, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
_TOKEN_KEYS = ("input_ids", "tokens", "x")


def batch_shape(batch: Any) -> tuple[int | None, int | None]:
    """Samples and token positions of a batch.

    Args:
        batch: a tensor, or tensors in mappings, lists and tuples, nested; the first one found
            counts (in a mapping ``input_ids``, ``tokens`` or ``x`` before others).

    Returns:
        the size of its first dimension; that times the second one if it holds 2-d integers, which
        are taken for token ids. None where it cannot be told.

    >>> import torch
    >>> batch_shape({"labels": torch.zeros(4), "input_ids": torch.zeros(4, 128, dtype=torch.long)})
    (4, 512)
    >>> batch_shape([torch.zeros(8, 3, 32, 32), torch.zeros(8)])
    (8, None)
    """
    # most loaders give a list or tuple of tensors
    plain = type(batch) in (list, tuple) and batch and type(batch[0]) is Tensor
    tensor = batch[0] if plain else first_tensor(batch)
    if tensor is None:
        return None, None
    shape = tensor.shape
    if len(shape) == 2 and tensor.dtype in _INTEGERS:
        return shape[0], shape[0] * shape[1]
    return shape[0] if shape else None, None


def first_tensor(batch: Any) -> Tensor | None:
    """The tensor of a batch that says how much is in it, see `batch_shape`."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, (list, tuple)):
        items = list(batch)
    elif isinstance(batch, Mapping):
        keys = [key for key in _TOKEN_KEYS if key in batch]
        items = [*(batch[key] for key in keys), *batch.values()]
    else:
        return None
    for item in items:
        found = first_tensor(item)
        if found is not None:
            return found
    return None
