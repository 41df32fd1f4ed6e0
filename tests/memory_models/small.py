"""A small memory model that nobody instrumented, and a count of its own calls.

What is kept depends on integer keys alone, so that counts do not depend on how a compiler or a
lower precision rounds.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.data import DataLoader, TensorDataset

from tests.memory_models.buffers import Entry, ListBuffer

LAYERS = (2, 4)
DIM = 8
ROWS, POSITIONS = 3, 4


class Retriever:
    """Asks a buffer, and remembers the answer until the layer has changed."""

    def __init__(self, buffer: ListBuffer) -> None:
        self.buffer = buffer
        self.retrieval_stats = {"cache_hits": 0, "cache_misses": 0}
        self._known: dict[int, tuple[list[int], list[Entry]]] = {}

    def retrieve_memories(self, query: Tensor, layer_idx: int, top_k: int = 3) -> list[Entry]:
        """The newest entries of a layer."""
        keys = [entry.age for entry in self.buffer.layer_buffers[layer_idx]]
        known = self._known.get(layer_idx)
        if known is not None and known[0] == keys:
            self.retrieval_stats["cache_hits"] += 1
            return known[1]
        self.retrieval_stats["cache_misses"] += 1
        found = self.buffer.retrieve_by_layer(layer_idx, top_k)
        self._known[layer_idx] = keys, found
        return found


class Reconstructor(nn.Module):
    """Adds what is remembered to the stream; says how many memories it used, and how well."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(DIM, DIM)

    def forward(
        self, hidden_states: Tensor, memories: list[Entry], layer_idx: int
    ) -> tuple[Tensor, dict[str, Any]]:
        info: dict[str, Any] = {"num_memories_used": len(memories)}
        memory = torch.zeros(DIM)
        if memories:
            info["reconstruction_quality"] = len(memories) / 4
            memory = torch.stack([entry.hidden_state.float() for entry in memories]).mean(0)
        # the last thing that a backward needs is made here: an early stop leaves from within
        return hidden_states * torch.tanh(self.mix(memory)), info


class RelevanceScorer(nn.Module):
    """How relevant each position is: a function of its key."""

    relevance_threshold = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.keys = torch.zeros(0, dtype=torch.long)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return (self.keys % 8).float() / 8


class SmallNet(nn.Module):
    """Blocks, each followed by a look into its memory and a capture.

    Attributes:
        recompute: how blocks are checkpointed: empty, ``reentrant``, ``direct``, ``nested``.
        early_stop: whether a recompute may end as soon as it has what it needs.
        live: off in a backward: what is recomputed is not stored again.
        guarded: whether ``live`` is heeded.
        stores_without_grad: whether a pass without grad stores, too.
    """

    def __init__(self, buffer: ListBuffer | None = None, recompute: str = "") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(DIM, DIM) for _ in LAYERS)
        self.reconstructor = Reconstructor()
        self.relevance_scorer = RelevanceScorer()
        self.head = nn.Linear(DIM, 1)
        self.dropout = nn.Dropout(0.1)
        self.memory_buffer = ListBuffer(5, 8, LAYERS) if buffer is None else buffer
        self.retriever = Retriever(self.memory_buffer)
        self.recompute, self.early_stop = recompute, True
        self.live = self.guarded = self.stores_without_grad = True

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Shapes ``(rows, positions, DIM)`` and ``(rows, positions)``; a number per position."""
        self.relevance_scorer.keys = keys
        for place, layer in enumerate(LAYERS):
            x = self._checkpointed(place, layer, x)
        out: Tensor = self.head(x)
        return out

    def _checkpointed(self, place: int, layer: int, x: Tensor) -> Tensor:
        if not self.recompute or not torch.is_grad_enabled():
            return self._segment(place, layer, x)
        reentrant = self.recompute == "reentrant"
        run: Callable[..., Any] = functools.partial(self._segment, place, layer)
        if self.recompute == "nested":
            inner = run

            def run(x: Tensor) -> Any:
                return checkpoint(inner, x, use_reentrant=False)

        x = x if x.requires_grad else x.requires_grad_()
        with ExitStack() as stack:
            if not self.early_stop:
                stack.enter_context(set_checkpoint_early_stop(False))
            return checkpoint(run, x, use_reentrant=reentrant)

    def _segment(self, place: int, layer: int, x: Tensor) -> Tensor:
        x = x + self.dropout(torch.relu(self.blocks[place](x)))
        memories = self.retriever.retrieve_memories(x.detach(), layer_idx=layer)
        x, _ = self.reconstructor(x, memories, layer)
        if torch.is_grad_enabled() or self.stores_without_grad or self.recompute == "reentrant":
            self._capture_states(x.detach(), layer)
        return x

    def _capture_states(self, hidden_states: Tensor, layer_idx: int) -> int:
        """Store the positions that are relevant; the buffer has its own idea of that."""
        if self.guarded and not self.live:
            return 0
        scores = self.relevance_scorer(hidden_states)
        keys = self.relevance_scorer.keys
        stored = 0
        for row, at in (scores >= self.relevance_scorer.relevance_threshold).nonzero().tolist():
            stored += self.memory_buffer.store_state(
                hidden_states[row][at],
                layer_idx,
                relevance=float(scores[row, at]),
                key=int(keys[row, at]),
            )
        return stored


class SmallModule(pl.LightningModule):
    """Trains a `SmallNet`.

    Args:
        net: the model.
        passes: forwards in each step.
    """

    def __init__(self, net: Any = None, passes: int = 1) -> None:
        super().__init__()
        self.net = SmallNet() if net is None else net
        self.passes = passes
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outs = [self.net(*batch) for _ in range(self.passes)]
        loss = torch.stack([out.float().square().mean() for out in outs]).mean()
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(*batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.net(*batch)

    def on_before_backward(self, loss: Tensor) -> None:
        self.core.live = False

    def on_after_backward(self) -> None:
        self.core.live = True

    @property
    def core(self) -> SmallNet:
        """The model itself, whatever is around it."""
        return next(part for part in self.net.modules() if isinstance(part, SmallNet))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader(batches: int = 12, seed: int = 1) -> Any:
    """Random states and keys, the same in every call; of every third batch nothing is kept."""
    make = torch.Generator().manual_seed(seed)
    count = batches * ROWS
    states = torch.randn(count, POSITIONS, DIM, generator=make)
    keys = torch.randint(0, 40, (count, POSITIONS), generator=make)
    irrelevant = (torch.arange(count) // ROWS % 3 == 2)[:, None]
    keys = torch.where(irrelevant, keys // 8 * 8 + 2, keys)
    return DataLoader(TensorDataset(states, keys), ROWS)


COUNTED = (
    "states_considered",
    "states_attempted",
    "states_captured",
    "states_stored",
    "states_rejected",
    "capture_calls",
    "eviction_count",
    "states_overwritten",
    "states_cleared",
    "states_loaded",
    "total_retrievals",
    "entries_retrieved",
    "cache_hits",
    "reconstruction_calls",
    "total_reconstructions",
)


class Tap:
    """Counts the calls of one model at its classes, beneath whatever is put on its objects.

    Attributes:
        counts: by stage, name and layer.
        crossings: recomputes that ended early, from within the reconstruction.
        recomputed: reconstructions made again in a backward.
        used, qualities: sums over the reconstructions that gave one, and how many those are.
    """

    def __init__(self, patch: pytest.MonkeyPatch, net: SmallNet) -> None:
        self.net = net
        self.stage = "train"
        self.counts: dict[str, dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
        self.crossings = self.recomputed = 0
        self.qualities: list[float] = []
        self._depth = self._clearing = 0
        for owner, name, around in (
            (SmallNet, "_capture_states", self._capture),
            (ListBuffer, "store_state", self._store),
            (ListBuffer, "_remove_entry", self._remove),
            (ListBuffer, "retrieve_by_layer", self._retrieve),
            (Retriever, "retrieve_memories", self._retrieve),
            (Reconstructor, "forward", self._reconstruct),
        ):
            patch.setattr(owner, name, self._tapped(owner, name, around))

    def of(self, name: str, stage: str = "train") -> dict[int, float]:
        """A count by layer."""
        return {layer: float(self.counts[stage][name][layer]) for layer in LAYERS}

    def all(self, stage: str = "train") -> dict[str, dict[int, float]]:
        """Every count by layer, and what is held now."""
        held = {layer: float(len(v)) for layer, v in self.net.memory_buffer.layer_buffers.items()}
        return {**{name: self.of(name, stage) for name in COUNTED}, "total_entries": held}

    def _tapped(self, owner: Any, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        method = getattr(owner, name)

        @functools.wraps(method)
        def tapped(this: Any, *args: Any, **kwargs: Any) -> Any:
            net = self.net
            mine = (net, net.memory_buffer, net.retriever, net.reconstructor)
            if not any(this is one for one in mine):
                return method(this, *args, **kwargs)
            return around(functools.partial(method, this), *args, **kwargs)

        return tapped

    def _say(self, name: str, layer: int, number: float = 1) -> None:
        if self.net.live:
            self.counts[self.stage][name][layer] += number  # type: ignore[assignment]

    def _capture(self, method: Any, hidden_states: Tensor, layer_idx: int) -> Any:
        self._say("capture_calls", layer_idx)
        if self.net.live:
            self._say("states_considered", layer_idx, hidden_states[..., 0].numel())
        return method(hidden_states, layer_idx)

    def _store(
        self, method: Any, hidden_state: Tensor, layer_idx: int, relevance: float, key: int
    ) -> Any:
        again = any(e.key == key for e in self.net.memory_buffer.layer_buffers[layer_idx])
        stored = method(hidden_state, layer_idx, relevance, key)
        self._say("states_attempted", layer_idx)
        self._say("states_captured", layer_idx)
        self._say("states_stored" if stored else "states_rejected", layer_idx)
        self._say("states_overwritten", layer_idx, stored and again)
        return stored

    def _remove(self, method: Any, entry: Entry) -> None:
        assert entry.layer_idx is not None
        self._say("eviction_count", entry.layer_idx)
        method(entry)

    def _retrieve(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        layer = kwargs.get("layer_idx", args[0] if isinstance(args[0], int) else None)
        hits = self.net.retriever.retrieval_stats["cache_hits"]
        self._depth += 1
        try:
            found = method(*args, **kwargs)
        finally:
            self._depth -= 1
        if self._depth == 0:
            self._say("total_retrievals", layer)
            self._say("entries_retrieved", layer, len(found))
            self._say("cache_hits", layer, self.net.retriever.retrieval_stats["cache_hits"] > hits)
        return found

    def _reconstruct(
        self, method: Any, hidden_states: Tensor, memories: list[Entry], layer_idx: int
    ) -> Any:
        try:
            out, info = method(hidden_states, memories, layer_idx)
        except Exception:
            self.crossings += 1
            raise
        self._say("reconstruction_calls", layer_idx)
        self._say("total_reconstructions", layer_idx, info["num_memories_used"] > 0)
        if not self.net.live:
            self.recomputed += 1
        elif self.stage == "train" and "reconstruction_quality" in info:
            self.qualities.append(info["reconstruction_quality"])
        return out, info


def plain_steps(net: Any, batches: int = 12) -> Iterator[Callable[[], float]]:
    """A plain loop: each item runs one step, and gives its loss."""
    core = next(part for part in net.modules() if isinstance(part, SmallNet))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)

    def step(x: Tensor, keys: Tensor) -> float:
        loss = net(x, keys).square().mean()
        optimizer.zero_grad()
        core.live = False
        loss.backward()
        core.live = True
        optimizer.step()
        return float(loss.detach())

    for batch in loader(batches):
        yield functools.partial(step, *batch)
