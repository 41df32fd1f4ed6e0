"""How much is in a batch, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
    plain = type(batch) in (list, tuple) and batch and isinstance(batch[0], Tensor)
    tensor = batch[0] if plain else _first_tensor(batch)
    if tensor is None or tensor.ndim == 0:
        return None, None
    shape = tensor.shape
    samples = int(shape[0])
    if len(shape) == 2 and not tensor.is_floating_point() and not tensor.is_complex():
        return samples, samples * int(shape[1])
    return samples, None


def _first_tensor(batch: Any) -> Tensor | None:
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
        found = _first_tensor(item)
        if found is not None:
            return found
    return None
