"""How the ranks' numbers reach each other: all at once, or by way of one rank of each node.

A flat gather sends every rank's window to every rank: one collective, and with a thousand ranks
25 MB for each of them. The tree merges on each node first, then among the nodes' first ranks, which
hand the result down: three collectives at most, and what grows with the ranks is only their
columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, TIMERS
from cmr_monitor_callbacks.custom import WIDTH
from cmr_monitor_callbacks.distributed.group import ExchangeError, Group, RankGroup, Vector
from cmr_monitor_callbacks.distributed.merge import Exchanged, check, join, merge
from cmr_monitor_callbacks.distributed.payload import HEADER, TEXT, Header, decode, parts_of
from cmr_monitor_callbacks.histogram import BUCKETS
from cmr_monitor_callbacks.layer_histograms import LAYER_TIMERS, LayerHistograms
from cmr_monitor_callbacks.packed import Packed

Route = Callable[[Vector, int], Exchanged]
"""From this rank's payload and the number of its columns to the window of all ranks; waits."""
_ROWS = len(STATISTICS)


def flat(group: Group) -> Route:
    """One gather of all ranks."""

    def route(vector: Vector, width: int) -> Exchanged:
        ranks = decode(group.gather(vector), width)
        check(ranks.headers, ranks.headers[group.rank])
        return merge(ranks)

    return route


def tree(group: RankGroup, node: str) -> Route:
    """By way of the first rank of each node; all ranks make it at the same time.

    Args:
        group: all ranks.
        node: a name of this rank's node.
    """
    names = group.submit(lambda: group.gather_bytes(node.encode())).take()
    members: dict[bytes, list[int]] = {}
    for rank, name in enumerate(names):
        members.setdefault(name, []).append(rank)
    mine = members[node.encode()]
    leaders = [ranks[0] for ranks in members.values()]
    group.trees += 1
    inside = group.submit(lambda: group.part(mine, f"tree {group.trees}/node {mine[0]}")).take()
    among = None
    if group.rank in leaders:
        among = group.submit(lambda: group.part(leaders, f"tree {group.trees}/leaders")).take()
    return _Tree(inside, among, max(map(len, members.values())), group.size)


class _Tree:
    """See `tree`.

    Args:
        inside: the ranks of this node, its leader first.
        among: the leaders of all nodes; None where this rank is none.
        most: ranks of the largest node.
        size: ranks of the job.
    """

    def __init__(self, inside: Group, among: Group | None, most: int, size: int) -> None:
        self._inside = inside
        self._among = among
        self._most = most
        self._size = size

    def __call__(self, vector: Vector, width: int) -> Exchanged:
        ranks = decode(self._inside.gather(vector), width)
        names, by_layer = parts_of(len(vector), width)
        if self._among is None:
            row = np.empty(part_length(width, self._size, names, by_layer=by_layer))
            self._inside.broadcast(row)
            return _unpack(row, width, self._size, by_layer)
        try:
            check(ranks.headers, ranks.headers[0])
            part = _pack(merge(ranks), self._most)
        except ExchangeError:
            # the other nodes must not wait
            part = np.full(part_length(width, self._most, names, by_layer=by_layer), -1.0)
        return self._finish(part, width, names, by_layer)

    def _finish(self, part: Vector, width: int, names: int, by_layer: bool) -> Exchanged:
        """A leader's work: the other nodes' parts, and the whole for its own node."""
        assert self._among is not None
        try:
            rows = self._among.gather(part)
            parts = [_unpack(row, width, self._most, by_layer) for row in rows]
            headers = [header for one in parts for header in one.headers]
            check(headers, headers[0])
            whole = _in_order(join(parts))
        except ExchangeError:
            length = part_length(width, self._size, names, by_layer=by_layer)
            self._inside.broadcast(np.full(length, -1.0))
            raise
        self._inside.broadcast(_pack(whole, self._size))
        return whole


def part_length(width: int, ranks: int, names: int = 0, *, by_layer: bool = False) -> int:
    """Float64 numbers that stand for a part of a job."""
    layers = len(LAYER_TIMERS) * width * (BUCKETS + 2) if by_layer else 0
    cells = 2 * _ROWS * width
    lines = ranks * (HEADER + TEXT // 8 + 2 * _ROWS)
    return 1 + lines + cells + len(TIMERS) * (BUCKETS + 2) + layers + names * WIDTH


def _pack(part: Exchanged, ranks: int) -> Vector:
    """A part of a job as numbers, with room for so many ranks."""
    count = len(part.headers)
    by_rank = np.zeros((ranks, HEADER + TEXT // 8 + 2 * _ROWS))
    for row, header, text in zip(by_rank, part.headers, part.texts, strict=False):
        row[:HEADER] = header.numbers()
        raw = text.encode()[:TEXT].ljust(TEXT, b"\0")
        row[HEADER : HEADER + TEXT // 8] = np.frombuffer(raw, np.float64)
    columns = np.concatenate((part.by_rank.values[:, 1:], part.by_rank.samples[:, 1:]))
    by_rank[:count, HEADER + TEXT // 8 :] = columns.T
    whole = part.statistics
    return np.concatenate(
        (
            [float(count)],
            by_rank.ravel(),
            whole.values.ravel(),
            whole.samples.ravel(),
            whole.histograms.ravel().astype(np.float64),
            whole.extremes.ravel(),
            *_numbers_of(whole.by_layer),
            part.custom.ravel(),
        )
    )


def _numbers_of(layers: LayerHistograms | None) -> list[NDArray[np.float64]]:
    return (
        []
        if layers is None
        else [layers.counts.ravel().astype(np.float64), layers.extremes.ravel()]
    )


def _layers_of(numbers: NDArray[np.float64], width: int) -> LayerHistograms | None:
    if not len(numbers):
        return None
    whole = LayerHistograms.empty(width)
    whole.counts += numbers[: whole.counts.size].reshape(whole.counts.shape).astype(np.int64)
    whole.extremes[:] = numbers[whole.counts.size :].reshape(whole.extremes.shape)
    return whole


def _unpack(row: NDArray[np.float64], width: int, ranks: int, by_layer: bool) -> Exchanged:
    """The inverse of `_pack`.

    Raises:
        ExchangeError: the part says that its ranks did not agree, or were not reached.
    """
    count = int(row[0])
    if count < 0:
        raise ExchangeError("the ranks of another node did not come, or are at another window")
    line = HEADER + TEXT // 8 + 2 * _ROWS
    cells = _ROWS * width
    layered = len(LAYER_TIMERS) * width * (BUCKETS + 2) if by_layer else 0
    lengths = [1, ranks * line, cells, cells, len(TIMERS) * BUCKETS, 2 * len(TIMERS), layered]
    at = np.cumsum(lengths)
    by_rank, values, samples, counts, extremes, layers, custom = np.split(row[1:], at[1:] - 1)
    lines = by_rank.reshape(ranks, line)[:count]
    headers = [Header.of(one) for one in lines[:, :HEADER].tolist()]
    texts = [
        one.tobytes().rstrip(b"\0").decode(errors="replace")
        for one in lines[:, HEADER : HEADER + TEXT // 8]
    ]
    apart = Packed.empty(1 + count)
    columns = lines[:, HEADER + TEXT // 8 :].T
    apart.values[:, 1:], apart.samples[:, 1:] = columns[:_ROWS], columns[_ROWS:]
    whole = Packed(
        values.reshape(_ROWS, width).copy(),
        samples.reshape(_ROWS, width).copy(),
        counts.reshape(len(TIMERS), BUCKETS).astype(np.int64),
        extremes.reshape(len(TIMERS), 2).copy(),
        _layers_of(layers, width),
    )
    return Exchanged(headers, texts, whole, apart, custom=custom.reshape(-1, WIDTH).copy())


def _in_order(window: Exchanged) -> Exchanged:
    """Ranks in their own order, whatever node they are on."""
    order: Sequence[int] = sorted(range(len(window.headers)), key=lambda i: window.headers[i].rank)
    columns = [0, *(1 + i for i in order)]
    apart = window.by_rank
    apart.values, apart.samples = apart.values[:, columns], apart.samples[:, columns]
    return Exchanged(
        [window.headers[i] for i in order],
        [window.texts[i] for i in order],
        window.statistics,
        apart,
        custom=window.custom,
    )
