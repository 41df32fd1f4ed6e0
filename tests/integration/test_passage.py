"""Values of what enters and leaves a watched language model, against torch and NumPy."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor
from tests.memory_models.buffers import Entry, ListBuffer
from tests.memory_models.small import Retriever, SmallNet, plain_steps
from tests.models import trainer

VOCABULARY, DIM, LAYER = 11, 8, 2
STRICT: dict[str, Any] = {"on_monitor_error": "raise"}
QUIET: dict[str, Any] = {"enable_alerts": False}
SHAPES = ((3, 7), (3, 7), (2, 5), (2, 5), (1, 9))
"""Rows and positions of each batch."""


class Reconstructor(nn.Module):
    """Moves each state towards what is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(DIM, DIM)

    def forward(self, hidden_states: Tensor, memories: list[Entry], layer_idx: int) -> Tensor:
        memory = torch.stack([entry.hidden_state for entry in memories]).mean(0)
        return hidden_states + self.mix(memory)


class LanguageModel(nn.Module):
    """Token ids in, logits out, a memory in between.

    Attributes:
        named: whether logits come in a mapping that names them.
        before, after: the states around the reconstruction of the last forward.
    """

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.reconstructor = Reconstructor()
        self.head = nn.Linear(DIM, VOCABULARY)
        self.memory_buffer = ListBuffer(5, 8, (LAYER,))
        self.named = named
        self.before = self.after = self.logits = torch.empty(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        states = self.embedding(input_ids)
        self.memory_buffer.store_state(states[0, 0], LAYER, key=int(input_ids[0, 0]))
        memories = self.memory_buffer.retrieve_by_layer(LAYER)
        self.before = states.detach()
        states = self.reconstructor(states, memories, LAYER)
        self.after = states.detach()
        logits = self.head(states)
        self.logits = logits.detach()
        return {"logits": logits} if self.named else logits


def batches() -> list[dict[str, Tensor]]:
    """Padded on the right: each row is one token shorter than the row before."""
    make = torch.Generator().manual_seed(5)
    made = []
    for rows, positions in SHAPES:
        ids = torch.randint(0, VOCABULARY, (rows, positions), generator=make)
        mask = (torch.arange(positions) < positions - torch.arange(rows)[:, None]).long()
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def entropy(logits: Tensor) -> float:
    """Mean over positions, in nats."""
    x = logits.double().numpy().reshape(-1, VOCABULARY)
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return float(-(p * np.log(p)).sum(-1).mean())


def similarity(before: Tensor, after: Tensor) -> float:
    """Mean cosine over positions."""
    one, other = (x.double().numpy().reshape(-1, DIM) for x in (before, after))
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return float(((one * other).sum(-1) / norms).mean())


def expected_of_all() -> dict[str, float]:
    """Of all batches, what shapes and masks say."""
    rows = np.array([r for r, _ in SHAPES])
    positions = np.array([r * p for r, p in SHAPES])
    padded = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches())
    return {
        "batch_size": float(rows.mean()),
        "tokens": float(positions.sum()),
        "sequence_length": positions.sum() / rows.sum(),
        "padding_share": padded / positions.sum(),
    }


def check_sampled(snapshot: Any, looked_at: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """The numbers of tensors are those of the steps that were looked at."""
    entropies = [entropy(logits) for _, _, logits in looked_at]
    cosines = [similarity(before, after) for before, after, _ in looked_at]
    assert snapshot.value("output_entropy") == pytest.approx(np.mean(entropies), rel=1e-5)
    assert snapshot.value("output_nonfinite_share") == 0
    shown = snapshot.value("reconstruction_similarity", layer=LAYER)
    assert shown == pytest.approx(np.mean(cosines), rel=1e-5)
    assert snapshot.value("reconstruction_similarity") == shown
    assert 0 < shown < 1


CALLS: dict[str, Callable[[nn.Module, dict[str, Tensor]], Any]] = {
    "by name": lambda model, batch: model(**batch),
    "by name, the mask first": lambda model, batch: model(**dict(reversed(batch.items()))),
    "by place": lambda model, batch: model(batch["input_ids"], batch["attention_mask"]),
    "both": lambda model, batch: model(batch["input_ids"], attention_mask=batch["attention_mask"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("named", [False, True])
def test_plain_loop(call: str, named: bool) -> None:
    torch.manual_seed(0)
    model = LanguageModel(named)
    config = {**STRICT, "log_every_n_steps": 2}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model)
    seen = []
    for batch in batches():
        with monitor.track_performance():
            CALLS[call](model, batch)
        seen.append((model.before, model.after, model.logits))
    monitor.close_window()
    for name, value in expected_of_all().items():
        assert monitor.snapshot.value(name) == pytest.approx(value), name
    check_sampled(monitor.snapshot, seen[1:4:2])
    assert monitor.snapshot.value("batch_size", over="window") == SHAPES[-1][0]
    assert monitor.snapshot.value("throughput") > 0
    assert monitor.snapshot.value("tokens_per_second") > monitor.snapshot.value("throughput")
    monitor.detach()


class Batches(Dataset[dict[str, Tensor]]):
    """Whole batches."""

    def __len__(self) -> int:
        return len(SHAPES)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return batches()[at]


class Module(pl.LightningModule):
    """Trains a language model on the next token.

    Attributes:
        seen: states before and after the reconstruction, and logits, of each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = LanguageModel()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(**batch)
        self.seen.append((self.model.before, self.model.after, self.model.logits))
        return nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_trainer(tmp_path: Path) -> None:
    pl.seed_everything(3, verbose=False)
    module = Module()
    callback = CMRMonitorCallback(monitoring={**STRICT, "log_every_n_steps": 2})
    fitter = trainer(tmp_path, [callback], logger=False)
    fitter.fit(module, DataLoader(Batches(), batch_size=None))
    for name, value in expected_of_all().items():
        assert callback.snapshot.value(name) == pytest.approx(value), name
    check_sampled(callback.snapshot, module.seen[1:4:2])


def test_a_batch_that_is_a_mapping_is_looked_into() -> None:
    class Whole(LanguageModel):
        def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
            return super().forward(**batch)

    model = Whole()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    for batch in batches():
        with monitor.track_performance():
            model(batch)
    for name, value in expected_of_all().items():
        assert monitor.snapshot.value(name) == pytest.approx(value), name
    assert monitor.snapshot.value("output_entropy", over="window") == pytest.approx(
        entropy(model.logits), rel=1e-5
    )
    monitor.detach()


def test_several_passes_of_a_step_are_one_batch_and_those_between_steps_none() -> None:
    """Accumulation: a step's batch is what entered in all of its passes."""
    model = LanguageModel()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    first, second = batches()[1:3]
    model(**first)  # a look at it before training
    with monitor.track_performance():
        model(**first)
        model(**second)
    assert monitor.snapshot.value("batch_size") == 3 + 2
    assert monitor.snapshot.value("tokens") == 3 * 7 + 2 * 5
    monitor.detach()


def test_a_pass_without_grad_that_is_run_again_counts_once() -> None:
    model = LanguageModel()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    batch = batches()[0]
    with monitor.track_performance():
        with torch.no_grad():
            model(**batch)
        model(**batch)
    assert monitor.snapshot.value("batch_size") == 3
    assert monitor.snapshot.value("tokens") == 21
    assert monitor.snapshot.value("sequence_length") == 7
    monitor.detach()


def test_without_a_pass_a_step_has_no_batch() -> None:
    model = LanguageModel()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    for batch in batches()[:1]:
        with monitor.track_performance():
            model(**batch)
    with monitor.track_performance():
        pass
    assert monitor.snapshot.value("batch_size") == 3, "of the steps that had one"
    assert monitor.snapshot.value("tokens") == 21
    assert math.isnan(monitor.snapshot.value("batch_size", over="window"))
    monitor.detach()


def test_states_have_no_entropy() -> None:
    """What is no token in is no prediction out, where nothing calls it logits."""

    class States(LanguageModel):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.memory_buffer.store_state(x[0, 0].detach(), LAYER, key=1)
            return self.head(x)

    model = States()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    with monitor.track_performance():
        model(x=torch.randn(3, 7, DIM))
    assert monitor.snapshot.value("batch_size") == 3
    assert monitor.snapshot.value("sequence_length") == 7
    for name in ("tokens", "padding_share", "output_entropy"):
        assert math.isnan(monitor.snapshot.value(name)), name
    assert monitor.snapshot.value("output_nonfinite_share") == 0
    monitor.detach()


def test_what_is_not_finite_is_seen_wherever_it_stands() -> None:
    """A vocabulary entry that is NaN is a share of each position; a position is one of many."""
    model = LanguageModel()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    with torch.no_grad():
        model.head.bias[4] = math.inf
    with monitor.track_performance():
        model(**batches()[0])
    assert monitor.snapshot.value("output_nonfinite_share") == pytest.approx(1 / VOCABULARY)
    assert math.isnan(monitor.snapshot.value("output_entropy"))
    with torch.no_grad():
        model.head.bias[4] = 0.0
        model.embedding.weight[3] = math.nan
    ids = torch.zeros(1, 511, dtype=torch.long)
    ids[:, 256:] = 3  # of the later half, which a look at the first 256 would miss
    with monitor.track_performance():
        model(input_ids=ids)
    shown = monitor.snapshot.value("output_nonfinite_share", over="window")
    assert shown == pytest.approx(0.5, abs=0.01)
    monitor.detach()


def test_padding_by_a_mask_that_marks_it() -> None:
    class Masked(LanguageModel):
        def forward(  # type: ignore[override]
            self, input_ids: Tensor, key_padding_mask: Tensor | None = None
        ) -> Any:
            return super().forward(input_ids)

    model = Masked()
    monitor = CMRPerformanceMonitor({**STRICT, "log_every_n_steps": 1}, model=model)
    batch = batches()[0]
    with monitor.track_performance():
        model(batch["input_ids"], key_padding_mask=batch["attention_mask"] == 0)
    assert monitor.snapshot.value("padding_share") == (1 + 2) / 21
    monitor.detach()


def test_threads_that_step_have_batches_of_their_own() -> None:
    """What entered in one thread's step is not in another's that begins meanwhile."""
    model = LanguageModel()
    config = {**STRICT, "log_every_n_steps": 1000}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model)
    first, second = batches()[1:3]
    entered, begun = threading.Event(), threading.Event()

    def other() -> None:
        entered.wait(10)
        with monitor.track_performance():
            begun.set()
            model(**second)

    thread = threading.Thread(target=other)
    thread.start()
    with monitor.track_performance():
        model(**first)
        entered.set()
        begun.wait(10)
    thread.join()
    monitor.close_window()
    assert monitor.snapshot.value("batch_size") == (3 + 2) / 2
    assert monitor.snapshot.value("tokens") == 3 * 7 + 2 * 5
    monitor.detach()


class Asking(LanguageModel):
    """Asks its memory with a state.

    Attributes:
        asked: of each forward the query and the states that it was given.
    """

    def __init__(self, named: bool = False) -> None:
        super().__init__(named)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        query = self.embedding(input_ids)[:, -1].detach()
        self.memory_buffer.store_state(query[0], LAYER, key=int(input_ids[0, -1]))
        found = self.memory_buffer.retrieve_similar(query, top_k=4)
        self.asked.append((query, torch.stack([entry.hidden_state for entry in found])))
        return super().forward(input_ids)


def retrieval_similarity(query: Tensor, states: Tensor) -> float:
    """Mean over all pairs."""
    pairs = [similarity(one[None], other[None]) for one in query for other in states]
    return float(np.mean(pairs))


@pytest.mark.parametrize("wrap", [True, False])
def test_retrieval_similarity_is_that_of_the_steps_that_are_looked_at(wrap: bool) -> None:
    torch.manual_seed(0)
    model = Asking()
    config = {**STRICT, "log_every_n_steps": 2}
    probes = {"wrap": wrap}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model, probes=probes)
    for batch in batches()[:4]:
        with monitor.track_performance():
            model(**batch)
    snapshot = monitor.snapshot
    shown = snapshot.value("retrieval_similarity")
    if wrap:
        of_each = [retrieval_similarity(*asked) for asked in model.asked[1::2]]
        assert shown == pytest.approx(np.mean(of_each), rel=1e-5)
        last = snapshot.value("retrieval_similarity", over="window")
        assert last == pytest.approx(of_each[-1], rel=1e-5)
        assert snapshot.source("retrieval_similarity").startswith("wrapped:memory_buffer.")
        assert snapshot.value("total_retrievals") == 8, "counted in every step"
        # retrieve_by_layer asks with nothing: of that layer it is no data
        assert math.isnan(snapshot.value("retrieval_similarity", layer=LAYER))
        # a checkpoint has it
        again = CMRPerformanceMonitor(config, alert_config=QUIET)
        again.load_state_dict(monitor.state_dict())
        assert again.snapshot.value("retrieval_similarity") == shown
        again.detach()
    else:
        assert math.isnan(shown)
    monitor.detach()


def test_retrieval_similarity_by_layer_and_of_a_retriever_with_a_cache() -> None:
    """`SmallNet` asks with a layer's stream; its retriever remembers answers."""
    torch.manual_seed(3)
    net = SmallNet()
    asked: dict[int, list[float]] = {2: [], 4: []}

    class Telling(Retriever):
        def retrieve_memories(self, query: Tensor, layer_idx: int, top_k: int = 3) -> list[Entry]:
            found = super().retrieve_memories(query, layer_idx, top_k)
            states = [entry.hidden_state for entry in found]
            rows = query.reshape(-1, query.shape[-1])
            shown = retrieval_similarity(rows, torch.stack(states)) if states else math.nan
            asked[layer_idx].append(shown)
            return found

    net.retriever = Telling(net.memory_buffer)
    config = {**STRICT, "log_every_n_steps": 3}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=net)
    for step in plain_steps(net, 9):
        with monitor.track_performance():
            step()
    for layer, of_each in asked.items():
        looked_at = [x for x in of_each[2::3] if not math.isnan(x)]
        shown = monitor.snapshot.value("retrieval_similarity", layer=layer)
        assert shown == pytest.approx(np.mean(looked_at), rel=1e-5)
    monitor.detach()
