"""How alike a query is to what it was given: whatever shape queries and entries have."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cmr_monitor_callbacks.probes.watches.retrieval import similarity

DIM = 6


def cosines(queries: Tensor, states: Tensor) -> np.ndarray[Any, Any]:
    """Of each query with each state, in NumPy."""
    one, other = (x.double().numpy().reshape(-1, DIM) for x in (queries, states))
    one = one / np.linalg.norm(one, axis=-1, keepdims=True)
    other = other / np.linalg.norm(other, axis=-1, keepdims=True)
    out: np.ndarray[Any, Any] = one @ other.T
    return out


@dataclass
class Entry:
    relevance: float
    hidden_state: Tensor


class Slotted:
    __slots__ = ("age", "key")

    def __init__(self, key: Tensor) -> None:
        self.key, self.age = key, 3


class Named(NamedTuple):
    score: float
    state: Tensor


@pytest.fixture
def states() -> Tensor:
    return torch.randn(5, DIM, generator=torch.Generator().manual_seed(2))


FORMS: dict[str, Any] = {
    "tensors": list,
    "one tensor": lambda states: states,
    "objects": lambda states: [Entry(0.5, s) for s in states],
    "slots": lambda states: [Slotted(s) for s in states],
    "named tuples": lambda states: [Named(0.5, s) for s in states],
    "mappings": lambda states: [{"score": 0.5, "hidden_state": s} for s in states],
    "entry and score": lambda states: [(Entry(0.5, s), 0.5) for s in states],
    "state and score": lambda states: [(s, 0.5) for s in states],
    "with scores": lambda states: (list(states), torch.ones(5)),
    "deque": lambda states: deque(states),
    "by layer": lambda states: {2: list(states[:2]), 4: list(states[2:])},
    "under a key": lambda states: {"memories": states, "scores": torch.ones(5)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(DIM,), (1, DIM), (3, DIM), (2, 3, DIM)])
def test_every_position_with_every_entry(form: str, shape: tuple[int, ...], states: Tensor) -> None:
    query = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    shown = similarity((4, query, "mixed"), FORMS[form](states))
    assert shown == pytest.approx(cosines(query, states).mean(), rel=1e-9)


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
@pytest.mark.parametrize("each", [None, 1, 4])
def test_each_position_with_its_own_entries(leading: tuple[int, ...], each: int | None) -> None:
    make = torch.Generator().manual_seed(4)
    query = torch.randn(*leading, DIM, generator=make)
    own = () if each is None else (each,)
    out = torch.randn(*leading, *own, DIM, generator=make)
    pairs = zip(query.reshape(-1, DIM), out.reshape(-1, each or 1, DIM), strict=True)
    expected = np.mean([cosines(one, some).mean() for one, some in pairs])
    assert similarity((query,), out) == pytest.approx(expected, rel=1e-9)


def test_many_are_sampled_evenly() -> None:
    """1,000 positions and 2,000 entries: the first half is one vector, the later one another."""
    one, other = torch.eye(DIM)[:2]
    query = torch.stack([one] * 500 + [other] * 500)
    entries = [one] * 1000 + [other] * 1000
    assert similarity((query,), entries) == pytest.approx(0.5, abs=0.01)
    assert similarity((query[:1],), entries) == pytest.approx(0.5, abs=0.01)
    # a long segment in each entry
    assert similarity((query[:1],), [query, query]) == pytest.approx(0.5, abs=0.01)
    own = torch.stack([one] * 300 + [other] * 100).expand(1000, 400, DIM)
    assert similarity((query,), own) == pytest.approx(0.5, abs=0.01)


def test_extremes() -> None:
    query = torch.tensor([1.0, 2.0, 3.0]) / 3
    assert similarity((query,), [5 * query]) == pytest.approx(1.0)
    assert similarity((query,), [query.half()]) == pytest.approx(1.0, abs=1e-3)
    assert similarity((query,), [-query]) == pytest.approx(-1.0)
    for value in (similarity((query,), [5 * query] * 7), similarity((query,), [-query] * 7)):
        assert value is not None and -1.0 <= value <= 1.0
    assert similarity((query,), [torch.zeros(3)]) == 0


@pytest.mark.parametrize(
    ("given", "out"),
    [
        ((4, 3), [torch.ones(DIM)]),
        ((torch.ones(DIM, dtype=torch.long),), [torch.ones(DIM)]),
        ((torch.tensor(0.5),), [torch.ones(DIM)]),
        ((torch.ones(DIM),), []),
        ((torch.ones(DIM),), None),
        ((torch.ones(DIM),), 7),
        ((torch.ones(DIM),), [3, 4]),
        ((torch.ones(DIM),), [torch.ones(DIM), "text"]),
        ((torch.ones(DIM),), [torch.ones(DIM + 1)]),
        ((torch.ones(DIM),), torch.empty(0, DIM)),
        ((torch.ones(DIM),), torch.ones(2, dtype=torch.long)),
        ((torch.ones(DIM),), [torch.full((DIM,), float("nan"))]),
        ((torch.ones(DIM, device="meta"),), [torch.ones(DIM)]),
        ((torch.ones(DIM),), [torch.ones(DIM, device="meta")]),
        ((torch.ones(3, DIM),), torch.ones(3, 2, DIM, device="meta")),
    ],
)
def test_no_data_where_query_or_entries_cannot_be_told(given: tuple[Any, ...], out: Any) -> None:
    assert similarity(given, out) is None
