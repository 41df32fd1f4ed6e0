"""A model that nobody instrumented is counted right, and trained alike, whatever is around it.

Counts are compared with a tap at the model's classes, training to the bit with a run that nobody
watched.
"""

from __future__ import annotations

import math
import random
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, Snapshot
from cmr_monitor_callbacks.clock import ManualClock
from tests.memory_models.buffers import Entry, ListBuffer
from tests.memory_models.small import (
    COUNTED,
    DIM,
    LAYERS,
    Reconstructor,
    Retriever,
    SmallModule,
    SmallNet,
    Tap,
    loader,
    plain_steps,
)
from tests.models import trainer

STRICT = {"on_monitor_error": "raise"}
EACH = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


def generators() -> dict[str, Any]:
    """The state of every generator that training may draw from."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [p.tolist() if hasattr(p, "tolist") else p for p in np.random.get_state()],
        "random": random.getstate(),
    }


def left_by(module: Any) -> dict[str, Any]:
    """What training leaves behind, to the bit."""
    held = module.core.memory_buffer.layer_buffers
    return {
        "losses": list(map(float.hex, getattr(module, "losses", []))),
        "weights": [p.detach().numpy().tobytes() for p in module.parameters()],
        "gradients": [
            None if p.grad is None else p.grad.numpy().tobytes() for p in module.parameters()
        ],
        "memory": {
            layer: [(e.key, e.age, e.hidden_state.float().numpy().tobytes()) for e in entries]
            for layer, entries in held.items()
        },
        "random": generators(),
        "names": list(module.state_dict()),
    }


class Stages(pl.Callback):
    """Tells the tap which stage it is."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.tap.stage = "val"

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.tap.stage = "train"


def fit(
    make: Callable[[], SmallModule],
    callbacks: list[Any],
    *,
    tap: bool = False,
    val: bool = False,
    batches: int = 12,
    **settings: Any,
) -> tuple[dict[str, Any], Tap | None, SmallModule]:
    """Train from the same start; what was left behind, and what the tap counted."""
    with pytest.MonkeyPatch.context() as patch:
        pl.seed_everything(3, verbose=False)
        module = make()
        tapped = Tap(patch, module.core) if tap else None
        more = [Stages(tapped)] if tapped is not None else []
        # the tap hears of a stage before the monitor does, and leaves it after it
        fitter = trainer(None, [*more, *callbacks], logger=False, **settings)
        fitter.fit(module, loader(batches), loader(2, seed=7) if val else None)
    return left_by(module), tapped, module


def check(snapshot: Snapshot, tap: Tap, stage: str = "train") -> None:
    """Every number of the model, by layer and for the whole, is what the tap counted."""
    expected = tap.all(stage)
    assert sum(expected["states_stored"].values()) > 0
    assert sum(expected["eviction_count"].values()) > 0
    for name, layers in expected.items():
        if name == "cache_hits" and not tap.net.retriever.retrieval_stats["cache_hits"]:
            assert math.isnan(snapshot.value(name))
            continue
        assert filled(snapshot.layers(name)) == layers, (stage, name)
        assert snapshot.value(name) == sum(layers.values()), (stage, name)
    if stage == "train" and not tap.counts["val"]:  # the law is of all stages together
        conserved(snapshot)
    if stage == "train":
        mean = sum(tap.qualities) / len(tap.qualities)
        assert snapshot.value("reconstruction_quality") == pytest.approx(mean, rel=1e-9)
    assert snapshot.value("error_count") == 0


def filled(layers: dict[Any, float]) -> dict[Any, float]:
    """A layer in which nothing of the kind happened need not be there."""
    return {layer: layers.get(layer, 0.0) for layer in (*LAYERS, *layers)}


LAW = {
    "states_stored": 1,
    "states_loaded": 1,
    "eviction_count": -1,
    "states_overwritten": -1,
    "states_cleared": -1,
}


def conserved(snapshot: Snapshot, *others: Snapshot) -> None:
    """What entered and did not leave is there; other stages use the same buffer."""
    for layer in LAYERS:
        held = 0.0
        for part in (snapshot, *others):
            terms = {name: part.value(name, layer=layer) for name in LAW}
            held += sum(LAW[name] * v for name, v in terms.items() if not math.isnan(v))
        assert held == snapshot.value("total_entries", layer=layer)
    assert snapshot.value("total_entries") > 0


def both(make: Callable[[], SmallModule], **settings: Any) -> tuple[CMRMonitorCallback, Tap]:
    """Train with and without the monitor: nothing differs, and every number is right."""
    without, _, _ = fit(make, [], **settings)
    callback = CMRMonitorCallback(monitoring=STRICT)
    with_it, tap, _ = fit(make, [callback], tap=True, **settings)
    for name, value in without.items():
        assert with_it[name] == value, name
    assert tap is not None
    check(callback.snapshot, tap)
    return callback, tap


# What is around the model


def small(**given: Any) -> Callable[[], SmallModule]:
    """Makes the same module each time."""
    passes = given.pop("passes", 1)

    def make() -> SmallModule:
        net = SmallNet(recompute=given.get("recompute", ""))
        for name, value in given.items():
            setattr(net, name, value)
        return SmallModule(net, passes)

    return make


class LoRALinear(nn.Module):
    """A linear layer that is left as it is, and what is learned beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


class Outer(nn.Module):
    """A model around a model."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_model = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


def with_lora() -> SmallModule:
    net = SmallNet()
    net.requires_grad_(False)
    net.blocks[0] = LoRALinear(net.blocks[0])
    net.reconstructor.mix = LoRALinear(net.reconstructor.mix)
    return SmallModule(Outer(net))


class LateLoRA(SmallModule):
    """Wraps a linear layer when some steps are done."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:
            self.core.reconstructor.mix = LoRALinear(self.core.reconstructor.mix)


AROUND: dict[str, tuple[Callable[[], SmallModule], dict[str, Any]]] = {
    "nothing": (small(), {}),
    "two forwards": (small(passes=2), {}),
    "accumulation": (small(), {"accumulate_grad_batches": 4}),
    "bf16": (small(), {"precision": "bf16-mixed"}),
    "bf16 recomputed": (small(recompute="direct"), {"precision": "bf16-mixed"}),
    "LoRA": (with_lora, {}),
    "LoRA later": (LateLoRA, {}),
}


@pytest.mark.parametrize(("make", "settings"), AROUND.values(), ids=AROUND.keys())
def test_numbers_and_training_are_right(
    make: Callable[[], SmallModule], settings: dict[str, Any]
) -> None:
    callback, tap = both(make, **settings)
    assert sum(tap.of("cache_hits").values()) > 0
    sources = {name: callback.snapshot.source(name) for name in ("states_stored", "cache_hits")}
    assert all(source.startswith("wrapped:") for source in sources.values()), sources


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("recompute", ["reentrant", "direct", "nested"])
def test_what_is_recomputed_is_counted_once(recompute: str, early_stop: bool) -> None:
    _, tap = both(small(recompute=recompute, early_stop=early_stop))
    if recompute != "reentrant" and early_stop:
        assert tap.crossings > 0, "the recompute ends within the reconstruction"
    else:
        assert tap.recomputed == tap.counts["train"]["reconstruction_calls"].total() * (
            2 if recompute == "nested" else 1
        )


@pytest.mark.parametrize("recompute", ["reentrant", "direct"])
def test_a_model_that_stores_again_in_a_recompute_keeps_its_books(recompute: str) -> None:
    """Nothing is counted there, but what it brought in is in the buffer."""
    callback = CMRMonitorCallback(monitoring=STRICT)
    make = small(recompute=recompute, early_stop=False, guarded=False)
    _, tap, module = fit(make, [callback], tap=True)
    snapshot = callback.snapshot
    assert tap is not None
    for name in ("states_attempted", "states_stored", "capture_calls", "total_retrievals"):
        assert snapshot.layers(name) == tap.of(name), name
    held = {layer: len(v) for layer, v in module.core.memory_buffer.layer_buffers.items()}
    assert snapshot.layers("total_entries") == held
    conserved(snapshot)


class Collects(pl.Callback):
    """Keeps the numbers of each validation."""

    def __init__(self, callback: CMRMonitorCallback) -> None:
        self.callback = callback
        self.found: list[Snapshot] = []

    def on_validation_end(self, *args: Any) -> None:
        self.found.append(self.callback.snapshots["val"])


def test_validation_is_apart() -> None:
    settings = {"val": True, "val_check_interval": 4}
    without, _, _ = fit(small(), [], **settings)
    callback = CMRMonitorCallback(monitoring=STRICT)
    collects = Collects(callback)
    with_it, tap, _ = fit(small(), [callback, collects], tap=True, **settings)
    assert with_it == without
    assert tap is not None
    check(callback.snapshot, tap)
    conserved(callback.snapshot, *collects.found)
    assert tap.of("capture_calls", "val") == dict.fromkeys(LAYERS, 6.0)  # three times two batches
    last = callback.snapshots["val"]
    assert last.layers("capture_calls") == dict.fromkeys(LAYERS, 2.0)
    assert last.layers("total_retrievals") == dict.fromkeys(LAYERS, 2.0)
    assert last.layers("reconstruction_calls") == dict.fromkeys(LAYERS, 2.0)
    assert last.layers("total_entries") == tap.all()["total_entries"]


def test_a_validation_by_itself_is_counted() -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    with pytest.MonkeyPatch.context() as patch:
        module = small()()
        tap = Tap(patch, module.core)
        tap.stage = "val"
        trainer(None, [callback], logger=False).validate(module, loader(6), verbose=False)
    check(callback.snapshots["val"], tap, "val")
    assert math.isnan(callback.snapshot.value("states_stored"))


class FirstWithoutGrad(SmallModule):
    """Makes each pass without grad first, and again with grad."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.net(*batch)
        return super().training_step(batch, batch_idx)


def test_a_pass_made_again_with_grad_counts_once() -> None:
    def twice() -> SmallModule:
        made = small(stores_without_grad=False)()
        return FirstWithoutGrad(made.net)

    callback = CMRMonitorCallback(monitoring=STRICT)
    fit(twice, [callback])
    _, tap, _ = fit(small(), [], tap=True)
    assert tap is not None
    for name in ("reconstruction_calls", "total_retrievals", "capture_calls", "states_stored"):
        assert callback.snapshot.layers(name) == tap.of(name), name
    assert callback.snapshot.value("error_count") == 0


class OnlyWithoutGrad(SmallModule):
    """Trains its head alone; what is beneath it runs without grad, once."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            out = self.net(*batch)
        return self.core.head(torch.ones(DIM)).square().mean() + out.mean()


def test_a_pass_made_only_without_grad_counts() -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    _, tap, _ = fit(lambda: OnlyWithoutGrad(SmallNet()), [callback], tap=True)
    assert tap is not None
    check(callback.snapshot, tap)


class LearnsWhileStoring(SmallNet):
    """Takes gradients of its own, with a backward of its own, in the midst of a capture."""

    def _capture_states(self, hidden_states: Tensor, layer_idx: int) -> int:
        with torch.enable_grad():
            surprise = torch.ones(DIM, requires_grad=True)
            (hidden_states * surprise).square().sum().backward()
        assert surprise.grad is not None
        stored = SmallNet._capture_states(self, hidden_states, layer_idx)
        self.retriever.retrieve_memories(surprise.grad, layer_idx=layer_idx)
        return stored


def test_a_backward_within_a_wrapped_method_ends_nothing() -> None:
    _, tap = both(lambda: SmallModule(LearnsWhileStoring()))
    assert tap.of("total_retrievals") == dict.fromkeys(LAYERS, 24.0)
    assert tap.of("capture_calls") == dict.fromkeys(LAYERS, 12.0)


# Compiled


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("what", "backend"),
    [
        ("net", "eager"),
        ("net", "aot_eager"),
        ("around", "eager"),
        ("reconstructor", "aot_eager"),
        ("blocks", "aot_eager"),
    ],
)
def test_compiled_code_is_counted_right_or_not_at_all(
    fresh_compiler: None, backend: str, what: str
) -> None:
    def make() -> SmallModule:
        module = small()()
        if what == "net":
            module.core.compile(backend=backend)
        elif what == "around":
            module.net = torch.compile(module.net, backend=backend)
        elif what == "reconstructor":
            module.core.reconstructor.compile(backend=backend)
        else:
            for block in module.core.blocks:
                block.compile(backend=backend)
        return module

    _, tap, _ = fit(small(), [], tap=True)
    assert tap is not None
    torch._dynamo.reset()
    without, _, _ = fit(make, [])
    torch._dynamo.reset()
    callback = CMRMonitorCallback(monitoring=STRICT)
    with_it, _, _ = fit(make, [callback])
    for name, value in without.items():
        assert with_it[name] == value, name
    snapshot = callback.snapshot
    known = 0
    for name, layers in tap.all().items():
        for layer, value in layers.items():
            got = snapshot.value(name, layer=layer)
            assert got == value or math.isnan(got), (name, layer, got, value)
            known += got == value
        whole = snapshot.value(name)
        assert whole == sum(layers.values()) or math.isnan(whole), (name, whole)
    # what holds at a window's end needs no call to be seen
    assert snapshot.layers("total_entries") == tap.all()["total_entries"]
    assert snapshot.value("error_count") == 0
    if what == "blocks":  # the memory itself is plain Python
        assert known >= len(LAYERS) * (len(COUNTED) - 2)


# Several processes, of which there is one


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Room for a process group of one, and nothing left of it."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.setenv(name, "0")  # so that it is undone
        monkeypatch.delenv(name)
    yield tmp_path
    if dist.is_initialized():
        dist.destroy_process_group()


def test_ddp(alone: Path) -> None:
    def settings() -> dict[str, Any]:
        return {"strategy": "ddp", "devices": 1}

    without, _, _ = fit(small(), [], **settings())
    callback = CMRMonitorCallback(monitoring=STRICT)
    with_it, tap, _ = fit(small(), [callback], tap=True, **settings())
    assert dist.is_initialized(), "it ran as ddp"
    for name, value in without.items():
        assert with_it[name] == value, name
    assert tap is not None
    check(callback.snapshot, tap)


def test_ddp_around_the_model_in_a_plain_loop(alone: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{alone}/store", rank=0, world_size=1)
    watched_loop(nn.parallel.DistributedDataParallel, "")


@pytest.mark.parametrize("recompute", ["", "direct"])
def test_fsdp1(alone: Path, recompute: str) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{alone}/store", rank=0, world_size=1)
    on_host = {"device_id": torch.device("cpu"), "use_orig_params": True}

    def shard(net: SmallNet) -> nn.Module:
        for at, block in enumerate(net.blocks):
            net.blocks[at] = FullyShardedDataParallel(block, **on_host)
        return FullyShardedDataParallel(net, **on_host)

    watched_loop(shard, recompute)


def test_fsdp2(alone: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{alone}/store", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))

    def shard(net: SmallNet) -> SmallNet:
        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(net.reconstructor, mesh=mesh)
        fully_shard(net, mesh=mesh)
        return net

    watched_loop(shard, "")
    watched_loop(shard, "direct")


def watched_loop(around: Callable[[SmallNet], Any], recompute: str) -> None:
    """A plain loop with and without the monitor, that is attached to what is around the model."""
    losses: list[list[str]] = []
    for watch in (False, True):
        torch.manual_seed(3)
        net = SmallNet(recompute=recompute)
        with pytest.MonkeyPatch.context() as patch:
            tap = Tap(patch, net)
            wrapped = around(net)
            monitor = CMRPerformanceMonitor(EACH, model=wrapped) if watch else None
            lost = []
            for step in plain_steps(wrapped):
                if monitor is None:
                    lost.append(step())
                    continue
                with monitor.track_performance():
                    lost.append(step())
        losses.append(list(map(float.hex, lost)))
    assert losses[0] == losses[1]
    assert monitor is not None
    monitor.detach()
    check(monitor.snapshot, tap)
    assert set(monitor.snapshot.layer_ids) == set(LAYERS)


# Random numbers, threads, time


def test_no_generator_is_drawn_from() -> None:
    model = SmallNet().eval()
    batch = next(iter(loader(1)))
    before = generators()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    assert generators() == before
    with torch.no_grad(), monitor.track_performance():
        model(*batch)
    assert monitor.windows == 1
    assert monitor.snapshot.value("capture_calls") == len(LAYERS)
    monitor.detach()
    assert generators() == before


def test_calls_from_many_threads_are_all_counted() -> None:
    model = SmallNet()
    for key in range(3):
        for layer in LAYERS:
            model.memory_buffer.store_state(torch.ones(DIM), layer, key=key)
    monitor = CMRPerformanceMonitor(EACH, model=model)
    threads, calls = 8, 400
    together = threading.Barrier(threads)
    failed: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            together.wait()
            for _ in range(calls):
                layer = LAYERS[number % 2]
                model.memory_buffer.retrieve_by_layer(layer, top_k=2)
                model.retriever.retrieve_memories(torch.ones(DIM), layer_idx=layer)
        except BaseException as error:
            failed.append(error)

    with monitor.track_performance():
        running = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert not failed
    each = threads // 2 * calls
    assert monitor.snapshot.layers("total_retrievals") == dict.fromkeys(LAYERS, 2.0 * each)
    assert monitor.snapshot.layers("entries_retrieved") == dict.fromkeys(LAYERS, 5.0 * each)
    monitor.detach()


class Meets(ListBuffer):
    """A retrieval that ends only when another one, in another thread, has been made."""

    inside: threading.Event
    other: threading.Event

    def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Any]:
        if threading.current_thread().name == "slow":
            self.inside.set()
            assert self.other.wait(60)
        return super().retrieve_by_layer(layer_idx, top_k)


def test_a_call_in_another_thread_is_not_within_this_ones() -> None:
    buffer = Meets(4, 8, LAYERS)
    buffer.inside, buffer.other = threading.Event(), threading.Event()
    model = nn.Module()
    model.memory = buffer
    monitor = CMRPerformanceMonitor(EACH, model=model)
    slow = threading.Thread(name="slow", target=buffer.retrieve_by_layer, args=(2,))
    with monitor.track_performance():
        slow.start()
        assert buffer.inside.wait(60)
        for _ in range(3):
            buffer.retrieve_by_layer(4)
        buffer.store_state(torch.ones(DIM), 4, key=1)
        buffer.clear_layer(4)
        buffer.other.set()
        slow.join()
    snapshot = monitor.snapshot
    assert filled(snapshot.layers("total_retrievals")) == {2: 1.0, 4: 3.0}
    assert snapshot.value("states_stored", layer=4) == 1
    assert snapshot.value("states_cleared", layer=4) == 1
    monitor.detach()


class Slow(Retriever):
    """Takes a second to ask, and the buffer two more."""

    def __init__(self, buffer: ListBuffer, clock: ManualClock) -> None:
        super().__init__(buffer)
        self.clock = clock

    def retrieve_memories(self, query: Tensor, layer_idx: int, top_k: int = 3) -> list[Entry]:
        self.clock.advance(1.0)
        return super().retrieve_memories(query, layer_idx, top_k)


class SlowBuffer(ListBuffer):
    clock: ManualClock

    def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Any]:
        self.clock.advance(2.0)
        return super().retrieve_by_layer(layer_idx, top_k)


def test_the_time_of_an_operation_is_that_of_its_outermost_call() -> None:
    clock = ManualClock(50.0)
    buffer = SlowBuffer(4, 8, LAYERS)
    buffer.clock = clock
    buffer.store_state(torch.ones(DIM), 2, key=1)
    model = nn.Module()
    model.retriever = Slow(buffer, clock)
    monitor = CMRPerformanceMonitor(EACH, model=model, clock=clock)
    with monitor.track_performance():
        model.retriever.retrieve_memories(torch.ones(DIM), 2)  # 1 + 2 s
        model.retriever.retrieve_memories(torch.ones(DIM), 2)  # cached: 1 s
        buffer.retrieve_by_layer(2)  # 2 s
    snapshot = monitor.snapshot
    assert snapshot.value("total_retrievals", layer=2) == 3
    assert snapshot.value("avg_retrieval_time", layer=2) == pytest.approx(2.0)
    assert snapshot.value("cache_hits", layer=2) == 1
    monitor.detach()


class TimedNet(SmallNet):
    """Takes a second to capture and four to reconstruct; each store takes half a second."""

    clock: ManualClock

    def _capture_states(self, hidden_states: Tensor, layer_idx: int) -> int:
        self.clock.advance(1.0)
        return super()._capture_states(hidden_states, layer_idx)


class TimedReconstructor(Reconstructor):
    clock: ManualClock

    def forward(
        self, hidden_states: Tensor, memories: list[Entry], layer_idx: int
    ) -> tuple[Tensor, dict[str, Any]]:
        self.clock.advance(4.0)
        return super().forward(hidden_states, memories, layer_idx)


class TimedBuffer(ListBuffer):
    clock: ManualClock

    def store_state(
        self, hidden_state: Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool:
        self.clock.advance(0.5)
        return super().store_state(hidden_state, layer_idx, relevance, key)


def test_the_time_of_a_capture_is_that_of_its_whole_call() -> None:
    clock = ManualClock(50.0)
    net = TimedNet(TimedBuffer(5, 8, LAYERS))
    net.reconstructor = TimedReconstructor()
    net.clock = net.memory_buffer.clock = net.reconstructor.clock = clock
    monitor = CMRPerformanceMonitor(EACH, model=net, clock=clock)
    with pytest.MonkeyPatch.context() as patch:
        tap = Tap(patch, net)
        with monitor.track_performance():
            net(*next(iter(loader(1))))
    attempted = tap.of("states_attempted")
    assert min(attempted.values()) > 1
    for layer in LAYERS:
        seconds = monitor.snapshot.value("avg_capture_time", layer=layer)
        assert seconds == pytest.approx(1.0 + 0.5 * attempted[layer])
        seconds = monitor.snapshot.value("avg_reconstruction_time", layer=layer)
        assert seconds == pytest.approx(4.0)
    monitor.detach()


# Errors


class Refused(Exception):
    """Raised on purpose."""


class FailingBuffer(ListBuffer):
    """Cannot take in or give out some layers, and says so from deep within."""

    fails: str = ""

    def _insert_entry(self, entry: Entry) -> None:
        if self.fails == "store":
            self._fail(entry.hidden_state)
        super()._insert_entry(entry)

    def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Any]:
        if self.fails == "retrieve":
            self._fail(torch.ones(DIM))
        return super().retrieve_by_layer(layer_idx, top_k)

    def _fail(self, state: Tensor) -> None:
        raise Refused(self.fails)


class FailingReconstructor(Reconstructor):
    """Cannot be used, either."""

    fails = False

    def forward(
        self, hidden_states: Tensor, memories: list[Entry], layer_idx: int
    ) -> tuple[Tensor, dict[str, Any]]:
        if self.fails:
            raise Refused("forward")
        return super().forward(hidden_states, memories, layer_idx)


class FailingHead(nn.Linear):
    """Nothing of the memory, but within the model's forward."""

    fails = False

    def forward(self, input: Tensor) -> Tensor:
        if self.fails:
            raise Refused("head")
        return super().forward(input)


def failing() -> SmallNet:
    net = SmallNet(FailingBuffer(5, 8, LAYERS))
    net.reconstructor = FailingReconstructor()
    net.head = FailingHead(DIM, 1)
    return net


def fail_in(net: Any, where: str) -> None:
    net.memory_buffer.fails = where
    net.reconstructor.fails = where == "forward"
    net.head.fails = where == "head"


def tail(error: BaseException, frames: int) -> list[tuple[str, str, int | None]]:
    """Where an error came from, the innermost frames last."""
    found = traceback.extract_tb(error.__traceback__)[-frames:]
    return [(frame.name, frame.filename, frame.lineno) for frame in found]


DEEP = {"store": 2, "retrieve": 2, "forward": 1, "head": 1}
"""Frames between the outermost call of the memory's own and the error, that no wrapper parts."""


@pytest.mark.parametrize("where", DEEP)
def test_an_error_counts_once_and_passes_unchanged(where: str) -> None:
    batch = next(iter(loader(1)))
    errors: list[Refused] = []
    counted: list[float] = []
    for watch in (False, True):
        net = failing()
        monitor = CMRPerformanceMonitor(EACH, model=net) if watch else None
        fail_in(net, where)
        for _ in range(2):
            with pytest.raises(Refused, match=where) as caught:
                net(*batch)
            errors.append(caught.value)
        fail_in(net, "")
        if monitor is not None:
            with monitor.track_performance():
                net(*batch)
            counted.append(monitor.snapshot.value("error_count"))
            if where != "head":
                assert monitor.snapshot.layers("error_count")[2] == 2
            monitor.detach()
    assert counted == [2]
    for error in errors:
        assert error.__cause__ is None
        assert error.__context__ is None
        assert not getattr(error, "__notes__", [])
        assert error.args == (where,)
        assert tail(error, DEEP[where]) == tail(errors[0], DEEP[where])
    innermost = {"store": "_fail", "retrieve": "_fail"}.get(where, "forward")
    assert tail(errors[0], 1)[0][0] == innermost


class Swallows(SmallNet):
    """Goes on without what it cannot store."""

    def _capture_states(self, hidden_states: Tensor, layer_idx: int) -> int:
        try:
            return super()._capture_states(hidden_states, layer_idx)
        except Refused:
            return 0


def test_an_error_that_the_model_gets_over_is_counted_all_the_same() -> None:
    net = Swallows(FailingBuffer(5, 8, LAYERS))
    monitor = CMRPerformanceMonitor(EACH, model=net)
    batch = next(iter(loader(1)))
    with monitor.track_performance():
        net(*batch)
    before = monitor.snapshot.value("states_stored")
    net.memory_buffer.fails = "store"
    with monitor.track_performance():
        net(batch[0], batch[1] + 1000)
    snapshot = monitor.snapshot
    assert snapshot.layers("error_count") == dict.fromkeys(LAYERS, 1.0)
    assert snapshot.value("error_count", over="window") == len(LAYERS)
    assert before > 0
    conserved(snapshot)
    # after an error calls are outermost again
    net.memory_buffer.fails = ""
    with monitor.track_performance():
        net.memory_buffer.store_state(torch.ones(DIM), 2, key=5000)
        net.memory_buffer.retrieve_by_layer(2)
        net.memory_buffer.clear_layer(4)
    snapshot = monitor.snapshot
    assert snapshot.value("states_stored", layer=2, over="window") == 1
    assert snapshot.value("total_retrievals", layer=2, over="window") == 1
    assert snapshot.value("clear_count", over="window") == 1
    conserved(snapshot)
    monitor.detach()


def test_an_error_in_training_counts_once_and_ends_it() -> None:
    class Fails(SmallModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            fail_in(self.core, "store" if batch_idx == 6 else "")

    ends: list[list[tuple[str, str, int | None]]] = []
    callback = CMRMonitorCallback(monitoring=STRICT)
    for callbacks in ([], [callback]):
        with pytest.raises(Refused) as caught:
            fit(lambda: Fails(failing()), callbacks)
        ends.append(tail(caught.value, 2))
        assert caught.value.__context__ is None
    assert ends[0] == ends[1]
    assert callback.snapshot.value("error_count") == 1


def test_an_error_keeps_no_tensor_alive() -> None:
    net = failing()
    monitor = CMRPerformanceMonitor(EACH, model=net)
    fail_in(net, "store")
    state = torch.ones(DIM)
    gone = weakref.ref(state)
    with monitor.track_performance():
        try:
            net.memory_buffer.store_state(state, 2, key=1)
        except Refused:
            pass
        else:
            raise AssertionError("it should have failed")
    del state
    assert monitor.snapshot.value("error_count") == 1
    assert gone() is None
    monitor.detach()


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
def test_what_is_no_error_passes_too(error: type[BaseException]) -> None:
    class Interrupted(ListBuffer):
        def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Any]:
            raise error

    buffer = Interrupted(2, 4, LAYERS)
    model = nn.Module()
    model.memory = buffer
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with pytest.raises(error):
        buffer.retrieve_by_layer(2)
    with monitor.track_performance():
        buffer.store_state(torch.ones(DIM), 2, key=1)
    assert monitor.snapshot.value("states_stored", layer=2) == 1
    monitor.detach()
