"""Columns of numbers as bytes, and the roll-ups of old windows.

A block holds the same stretch of windows for each series. Tier 0 has every window exactly; a row of
tier ``k`` stands for ``10^k`` windows and has five numbers: count of windows with data, mean, min,
max and last value. Bytes of the same place in the numbers are put side by side before they are
compressed: neighbours are alike there, which makes files about half as large.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TIERS: Final = (0, 1, 2, 3)
"""A row of tier ``k`` stands for 10^k windows."""
_LEVEL: Final = 3
"""1 % larger than 6, in three quarters of its time."""


class RollUp(NamedTuple):
    """Summaries of stretches of windows, each of shape ``(rows, ...)``; NaN is no data.

    >>> roll_up(np.array([1.0, 3.0, np.nan, np.nan]), 2).mean
    array([ 2., nan])
    """

    windows: Array
    mean: Array
    minimum: Array
    maximum: Array
    last: Array


def roll_up(values: Array, size: int) -> RollUp:
    """Summaries of each ``size`` values; the last stretch may be shorter.

    Args:
        values: shape ``(windows, ...)``; NaN is no data, and not counted.
        size: values in a summary.
    """
    rows, series = -(-len(values) // size), values.shape[1:]
    padded = np.full((rows * size, *series), np.nan)
    padded[: len(values)] = values
    table = padded.reshape(rows, size, *series)
    given = ~np.isnan(table)
    count = given.sum(axis=1).astype(np.float64)
    mean = np.full(count.shape, np.nan)
    # an infinite value makes an infinite mean, and both infinities none: as arithmetic has it
    with np.errstate(invalid="ignore", over="ignore"):
        np.divide(np.where(given, table, 0.0).sum(axis=1), count, out=mean, where=count > 0)
        low, high = np.fmin.reduce(table, axis=1), np.fmax.reduce(table, axis=1)
    newest = size - 1 - given[:, ::-1].argmax(axis=1, keepdims=True)
    last = np.take_along_axis(table, newest, axis=1)[:, 0]
    return RollUp(count, mean, low, high, last)


def last_of_each(values: NDArray[np.generic], size: int) -> NDArray[np.generic]:
    """The last of each ``size`` values: the steps and times of roll-ups.

    >>> last_of_each(np.arange(5), 2)
    array([1, 3, 4])
    """
    return values[np.minimum(np.arange(size - 1, len(values) + size - 1, size), len(values) - 1)]


def to_bytes(values: NDArray[np.generic]) -> bytes:
    """Numbers of 8 bytes, compressed, exactly."""
    plain = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    planes = plain.view(np.uint8).reshape(-1, 8).T
    return zlib.compress(planes.tobytes(), _LEVEL)


def floats(data: bytes) -> Array:
    """The inverse of `to_bytes`, of float64.

    >>> floats(to_bytes(np.array([0.1, np.nan])))
    array([0.1, nan])
    """
    return _planes(data).view("<f8").ravel().astype(np.float64, copy=False)


def integers(data: bytes) -> NDArray[np.int64]:
    """The inverse of `to_bytes`, of int64."""
    return _planes(data).view("<i8").ravel().astype(np.int64, copy=False)


def _planes(data: bytes) -> NDArray[np.uint8]:
    return np.ascontiguousarray(
        np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(8, -1).T
    )
