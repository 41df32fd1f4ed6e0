"""What one rank tells the others at the end of a window: one vector of float64.

A header of numbers and a short text, then the window's packed statistics on the agreed layers,
their histograms where all ranks keep them, and what a user tracks under the agreed names. Its
length depends only on what was agreed on, for gloo ends a process whose vector is of another length
than its peer's. Histograms and numbers of samples travel as 32-bit counts, two to a
float64; bits are copied, never calculated with.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import RESOURCE_NAMES, STATISTICS, TIMERS
from cmr_monitor_callbacks.custom import MOST, NO_NAMES, WIDTH, Table
from cmr_monitor_callbacks.histogram import BUCKETS
from cmr_monitor_callbacks.layer_histograms import LAYER_TIMERS, LayerHistograms
from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.packed import Packed

_ROWS: Final = len(STATISTICS)
_BUCKETS: Final = len(TIMERS) * BUCKETS
_MOST: Final = 2.0**32 - 1
"""Greatest count that fits."""
NO_RESOURCES: Final = (math.nan,) * len(RESOURCE_NAMES)
KINDS: Final = ("stop", "checkpoint")
"""What ranks can vote for."""
TEXT: Final = 256
"""Bytes of the text in a header."""


class Header(NamedTuple):
    """What is said beside the statistics; every field but the last a number.

    Attributes:
        rank: whose it is.
        layout: hash of the agreed layers and of this version's statistics.
        step: last step of the window.
        window: how many windows were exchanged before.
        next_step: last step of the next window, as this rank proposes it; rank 0's counts.
        time: when the window ended, seconds since the Unix epoch; rank 0's counts.
        new_layers: layers that this rank holds, and names that it tracks, that were not agreed on.
        stop: whether this rank asks to stop training.
        checkpoint: whether this rank asks for a checkpoint.
        events: recorded in the window.
        invalid_samples: values not taken in the window.
        failures: failures of the monitor in the window.
        dropped_events: what was recorded and is lost.
        processing_time: seconds that the last window's end took.
        collection_rate: events per second of the window; NaN is no data, here and below.
        storage_latency: seconds that writing the last window took; rank 0's counts.
        alert_rate: notices per minute.
        compared: batches whose loss was taken with and without memory.
        loss_with: sum of the losses with it.
        loss_without: sum of the losses without it.
        edits: bytes of what rank 0 wants changed in the rules.
        resources: what was sampled of this rank's machine, in the order of ``RESOURCE_NAMES``; NaN
            is no data.

    >>> Header.of(Header(step=3.0).numbers()) == Header(step=3.0)
    True
    """

    rank: float = 0.0
    layout: float = 0.0
    step: float = 0.0
    window: float = 0.0
    next_step: float = 0.0
    time: float = 0.0
    new_layers: float = 0.0
    stop: float = 0.0
    checkpoint: float = 0.0
    events: float = 0.0
    invalid_samples: float = 0.0
    failures: float = 0.0
    dropped_events: float = 0.0
    processing_time: float = 0.0
    collection_rate: float = math.nan
    storage_latency: float = math.nan
    alert_rate: float = 0.0
    compared: float = 0.0
    loss_with: float = 0.0
    loss_without: float = 0.0
    edits: float = 0.0
    resources: tuple[float, ...] = NO_RESOURCES

    def numbers(self) -> list[float]:
        """All of it as `HEADER` numbers."""
        return [*self[:-1], *self.resources]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Header:
        """The inverse of `numbers`."""
        fields = len(cls._fields) - 1
        # one NaN for all: tuples of it are equal
        known = tuple(x if x == x else math.nan for x in numbers)
        names = dict(zip(cls._fields, known[:fields], strict=False))
        return cls(**names, resources=known[fields:])


HEADER: Final = len(Header().numbers())
_START: Final = HEADER + TEXT // 8


def reasons(votes: Mapping[str, str]) -> str:
    """The reasons of votes as one text; what is too long is cut."""
    half = TEXT // 2 - 1
    return "\n".join(
        votes.get(kind, "").replace("\n", " ").encode()[:half].decode(errors="ignore")
        for kind in KINDS
    )


def reason_of(kind: str, text: str) -> str:
    """One vote's reason.

    >>> reason_of("checkpoint", reasons({"stop": "it is enough", "checkpoint": "before the end"}))
    'before the end'
    """
    return [*text.split("\n"), ""][KINDS.index(kind)]


def layout_hash(layers: Sequence[LayerId], names: Sequence[str] = ()) -> float:
    """A number that tells layouts apart, and versions that count other things; exact in float64."""
    rows = [s.name for s in STATISTICS] + [f"{c}/{n}" for c, n in TIMERS] + [BUCKETS]
    known = [rows, RESOURCE_NAMES, list(layers), list(names)]
    digest = hashlib.sha256(json.dumps(known).encode()).digest()
    return float(int.from_bytes(digest[:6], "big"))


def payload_length(width: int, names: int = 0, *, by_layer: bool = False) -> int:
    """Float64 numbers in a payload of so many columns and names of a user's own numbers."""
    layers = sum(_layer_words(width)) if by_layer else 0
    return _START + _ROWS * width + _words(width) + 2 * len(TIMERS) + layers + names * WIDTH


def parts_of(length: int, width: int) -> tuple[int, bool]:
    """How many names a payload of such a length has, and whether histograms of layers are in it.

    >>> parts_of(payload_length(13, 5), 13), parts_of(payload_length(2, 5, by_layer=True), 2)
    ((5, False), (5, True))
    """
    rest = length - payload_length(width)
    # those of one column take more than the most names
    by_layer = rest > MOST * WIDTH
    return (rest - by_layer * sum(_layer_words(width))) // WIDTH, by_layer


def _layer_words(width: int) -> tuple[int, int]:
    """Float64 numbers that the counts and the extremes of layers take."""
    histograms = len(LAYER_TIMERS) * width
    return -(-histograms * BUCKETS // 2), 2 * histograms


def _words(width: int) -> int:
    """Float64 numbers that the counts take."""
    return -(-(_ROWS * width + _BUCKETS) // 2)


def encode(
    header: Header, text: str, packed: Packed, custom: Table = NO_NAMES
) -> NDArray[np.float64]:
    """One rank's vector, as long as `payload_length` says."""
    counts = np.zeros(2 * _words(packed.width), dtype=np.uint32)
    cells = packed.samples.size
    counts[:cells] = np.minimum(packed.samples, _MOST).ravel()
    counts[cells : cells + _BUCKETS] = packed.histograms.ravel()
    raw = text.encode()[:TEXT].ljust(TEXT, b"\0")
    return np.concatenate(
        (
            header.numbers(),
            np.frombuffer(raw, np.float64),
            packed.values.ravel(),
            counts.view(np.float64),
            packed.extremes.ravel(),
            *_encode_layers(packed.by_layer),
            custom.ravel(),
        )
    )


def _encode_layers(layers: LayerHistograms | None) -> list[NDArray[np.float64]]:
    if layers is None:
        return []
    counts = np.zeros(2 * _layer_words(layers.width)[0], dtype=np.uint32)
    counts[: layers.counts.size] = np.minimum(layers.counts, _MOST).ravel()
    return [counts.view(np.float64), layers.extremes.ravel()]


def _decode_layers(matrix: NDArray[np.float64], width: int) -> LayerHistograms:
    """Of all ranks together, from their stretches of the payload."""
    shape = (len(matrix), len(LAYER_TIMERS), width)
    at = _layer_words(width)[0]
    counts = np.ascontiguousarray(matrix[:, :at]).view(np.uint32)
    counts = counts[:, : len(LAYER_TIMERS) * width * BUCKETS]
    whole = LayerHistograms.empty(width)
    whole.counts += counts.sum(axis=0, dtype=np.int64).reshape(whole.counts.shape)
    extremes = matrix[:, at:].reshape(*shape, 2)
    whole.extremes[..., 0] = extremes[..., 0].min(axis=0)
    whole.extremes[..., 1] = extremes[..., 1].max(axis=0)
    return whole


@dataclass(frozen=True)
class Ranks:
    """What all ranks said.

    Attributes:
        headers: by rank.
        texts: by rank.
        cells: shape ``(ranks, 2 * statistics, width)``, float64: values, then samples.
        counts: shape ``(ranks, timers * BUCKETS)``, uint32.
        extremes: shape ``(ranks, timers, 2)``, float64.
        custom: shape ``(ranks, names, 6)``, see `custom.Table`.
        by_layer: histograms of layers, of all ranks together; None where not all keep them.
    """

    headers: list[Header]
    texts: list[str]
    cells: NDArray[np.float64]
    counts: NDArray[np.uint32]
    extremes: NDArray[np.float64]
    custom: NDArray[np.float64]
    by_layer: LayerHistograms | None = None


def decode(matrix: NDArray[np.float64], width: int) -> Ranks:
    """The inverse of `encode`, for every rank's row."""
    size, cells = len(matrix), _ROWS * width
    headers = [Header.of(row) for row in matrix[:, :HEADER].tolist()]
    spoke = any(header.stop or header.checkpoint for header in headers)
    texts = [_text(row) if spoke else "" for row in matrix[:, HEADER:_START]]
    at = _START + cells
    extremes = at + _words(width)
    layers = extremes + 2 * len(TIMERS)
    names, by_layer = parts_of(matrix.shape[1], width)
    custom = matrix.shape[1] - names * WIDTH
    counts = np.ascontiguousarray(matrix[:, at:extremes]).view(np.uint32)
    values = matrix[:, _START:at]
    both = np.concatenate((values, counts[:, :cells].astype(np.float64)), axis=1)
    return Ranks(
        headers,
        texts,
        both.reshape(size, 2 * _ROWS, width),
        counts[:, cells : cells + _BUCKETS],
        matrix[:, extremes:layers].reshape(size, len(TIMERS), 2),
        matrix[:, custom:].reshape(size, -1, WIDTH),
        _decode_layers(matrix[:, layers:custom], width) if by_layer else None,
    )


def _text(row: NDArray[np.float64]) -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="replace")
