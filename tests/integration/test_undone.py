"""A watched object is a guest: in the end it is as it was, and until then it can be copied."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import io
import pickle
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor
from tests.memory_models.buffers import Entry, ListBuffer, SlotsBuffer
from tests.memory_models.small import (
    DIM,
    LAYERS,
    Reconstructor,
    RelevanceScorer,
    Retriever,
    SmallModule,
    SmallNet,
    loader,
    plain_steps,
)
from tests.models import trainer

STRICT = {"on_monitor_error": "raise"}
EACH = {"log_every_n_steps": 1, "on_monitor_error": "raise"}
PLAIN = (bool, int, float, str, type(None), torch.Tensor)
CLASSES = (SmallNet, ListBuffer, Retriever, Reconstructor, RelevanceScorer, SmallModule, nn.Module)


class Picture:
    """What objects look like from outside: attributes in their order, types, hooks, pickles.

    Values are compared by identity, so they are kept; numbers, texts and plain tensors by type
    alone, for the model itself may have put others in their place.
    """

    def __init__(self, objects: dict[str, Any], *, pickles: tuple[str, ...] = ()) -> None:
        self.objects, self.pickled = objects, pickles
        self.first = self._take()

    def check(self) -> None:
        now = self._take()
        for name, before in self.first.items():
            if isinstance(before, dict):
                after = now[name]
                assert list(after) == list(before), name
                for key, value in before.items():
                    if type(value) in PLAIN:
                        assert type(after[key]) is type(value), (name, key)
                    else:
                        assert after[key] is value, (name, key)
            else:
                assert now[name] == before, name

    def _take(self) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for name, one in self.objects.items():
            taken[f"type of {name}"] = type(one).__name__, id(type(one))
            if hasattr(one, "__dict__"):
                taken[name] = dict(vars(one))
            if isinstance(one, nn.Module):
                taken[f"hooks of {name}"] = [
                    (key, [(id(k) if not isinstance(k, int) else k, id(v)) for k, v in h.items()])
                    for key, h in vars(one).items()
                    if "hooks" in key and h is not None
                ]
        for one in CLASSES:
            kept = {key: v for key, v in vars(one).items() if key != "__slotnames__"}
            taken[f"class {one.__name__}"] = kept  # without what `pickle` itself leaves there
        hooks = vars(nn.modules.module)
        taken["global hooks"] = {
            key: len(value) for key, value in hooks.items() if key.startswith("_global_") and value
        }
        taken["methods"] = [
            getattr(one, method)
            for one in self.objects.values()
            for method in ("store_state", "retrieve_by_layer", "forward")
            if hasattr(type(one), method)
        ]
        for name in self.pickled:
            taken[f"pickle of {name}"] = pickle.dumps(self.objects[name])
        return taken


def parts(net: Any) -> dict[str, Any]:
    """Each object of a small model by its path."""
    modules = {f"module {name}": part for name, part in net.named_modules()}
    return {**modules, "buffer": net.memory_buffer, "retriever": net.retriever}


class Refusing(ListBuffer):
    """Looks at what it is given, and keeps nothing: so it stays as it is."""

    def store_state(
        self, hidden_state: torch.Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool:
        return super().store_state(hidden_state, layer_idx, 0.0, key)


def refusing() -> SmallNet:
    buffer = Refusing(5, 8, LAYERS)
    for layer in LAYERS:
        buffer._insert_entry(Entry(torch.ones(DIM), layer, 1))
    return SmallNet(buffer)


class Stops(SmallModule):
    """Raises in its 4th step, from within or from without a store."""

    def __init__(self, net: SmallNet, error: type[BaseException], within: bool) -> None:
        super().__init__(net)
        self.error, self.within = error, within

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3 and self.within:
            # no tensor: the store fails on it
            self.core.memory_buffer.store_state(Raises(self.error), 2)
        if batch_idx == 3:
            raise self.error("on purpose")
        return super().training_step(batch, batch_idx)


class Raises:
    """Raises when it is used."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def detach(self) -> Any:
        raise self.error("on purpose")


# After it


@pytest.mark.parametrize("within", [False, True], ids=["outside", "in a store"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(error: type[BaseException], within: bool) -> None:
    net = SmallNet() if within else refusing()
    picture = Picture(parts(net), pickles=() if within else ("buffer",))
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = Stops(net, error, within)
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        trainer(None, [callback], logger=False).fit(module, loader())
    assert callback.snapshot.value("capture_calls") == 3 * len(LAYERS)
    picture.check()


def test_fits_leave_nothing_and_begin_anew() -> None:
    net = refusing()
    picture = Picture(parts(net), pickles=("buffer",))
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = SmallModule(net)
    for _ in range(2):  # another Trainer: new totals
        fitter = trainer(None, [callback], logger=False)
        fitter.fit(module, loader(7), loader(2))
        picture.check()
        assert callback.snapshot.layers("capture_calls") == dict.fromkeys(LAYERS, 7.0)
    fitter.fit_loop.max_epochs = 2  # type: ignore[assignment]
    fitter.fit(module, loader(7))
    picture.check()
    assert callback.snapshot.layers("capture_calls") == dict.fromkeys(LAYERS, 14.0)
    for run in (fitter.validate, fitter.test):
        run(module, loader(2), verbose=False)
        picture.check()
    for stage in ("val", "test"):
        calls = callback.snapshots[stage].layers("capture_calls")
        assert calls == dict.fromkeys(LAYERS, 2.0), stage


def test_the_lightning_module_looks_as_it_does_unwatched() -> None:
    seen = []
    for callbacks in ([], [CMRMonitorCallback(monitoring=STRICT)]):
        module = SmallModule(refusing())
        trainer(None, callbacks, logger=False).fit(module, loader(3), loader(1))
        seen.append((list(vars(module)), [k for k, v in vars(module).items() if v and "hook" in k]))
    assert callbacks[0].snapshot.value("capture_calls") == 3 * len(LAYERS)
    assert seen[0] == seen[1]


def test_a_plain_loop_leaves_nothing() -> None:
    net = refusing()
    names = ("buffer", "retriever", "module relevance_scorer")
    picture = Picture(parts(net), pickles=("module ", *names))
    monitor = CMRPerformanceMonitor(EACH, model=net)
    monitor.detach()
    picture.check()  # the weights too: nothing was done
    picture = Picture(parts(net), pickles=("buffer",))
    assert monitor.attach(net) == monitor.attach(net)  # twice is once
    for step in plain_steps(net, 3):
        with monitor.track_performance():
            step()
    assert monitor.snapshot.layers("capture_calls") == dict.fromkeys(LAYERS, 3.0)
    monitor.detach()
    picture.check()
    monitor.detach()
    picture.check()
    next(plain_steps(net))()
    monitor.flush()
    assert monitor.snapshot.layers("capture_calls") == dict.fromkeys(LAYERS, 3.0)


@pytest.mark.parametrize("first", [0, 1])
def test_two_monitors_may_leave_in_any_order(first: int) -> None:
    net = refusing()
    picture = Picture(parts(net), pickles=("buffer",))
    monitors = [CMRPerformanceMonitor(EACH, model=net) for _ in range(2)]
    net(*next(iter(loader(1))))
    monitors[first].detach()
    net(*next(iter(loader(1))))
    monitors[1 - first].detach()
    picture.check()
    calls = []
    for monitor in monitors:
        monitor.close_window()
        value = monitor.snapshot.value("capture_calls")
        calls.append(0.0 if value != value else value)
    # whether the first is left for the second or both look on, none counts what is not there
    assert max(calls) in (2 * len(LAYERS), len(LAYERS))
    assert sum(calls) >= len(LAYERS)


def test_what_a_user_put_on_in_between_stays() -> None:
    net = SmallNet()
    buffer = net.memory_buffer
    monitor = CMRPerformanceMonitor(EACH, model=net)
    beneath, calls = buffer.store_state, []

    def mine(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return beneath(*args, **kwargs)

    buffer.store_state = mine  # type: ignore[method-assign]
    with monitor.track_performance():
        assert buffer.store_state(torch.ones(DIM), 2, key=1) is True
    assert monitor.snapshot.value("states_stored", layer=2) == 1
    monitor.detach()
    assert vars(buffer)["store_state"] is mine
    assert buffer.store_state(torch.ones(DIM), 2, key=2) is True
    monitor.flush()
    assert monitor.snapshot.value("states_stored", layer=2) == 1
    assert len(calls) == len(buffer.layer_buffers[2]) == 2


def test_a_model_may_let_the_monitor_go_from_within() -> None:
    class LetsGo(ListBuffer):
        def _insert_entry(self, entry: Entry) -> None:
            monitor.detach()
            super()._insert_entry(entry)

    buffer = LetsGo(2, 4, LAYERS)
    model = nn.Module()
    model.memory = buffer
    picture = Picture({"buffer": buffer, "model": model})
    monitor = CMRPerformanceMonitor(EACH, model=model)
    assert buffer.store_state(torch.ones(DIM), 2, key=1) is True
    picture.check()
    assert buffer.store_state(torch.ones(DIM), 2, key=2) is True
    assert len(buffer.layer_buffers[2]) == 2


def test_a_buffer_that_was_swapped_out_is_as_it_was() -> None:
    net = SmallNet()
    old, new = net.memory_buffer, ListBuffer(5, 8, LAYERS)
    picture = Picture({"old": old, "new": new}, pickles=("old", "new"))
    monitor = CMRPerformanceMonitor(EACH, model=net)
    with monitor.track_performance():
        net.memory_buffer = net.retriever.buffer = new
    with monitor.track_performance():
        new.retrieve_by_layer(2)
        old.retrieve_by_layer(2)
    assert monitor.snapshot.value("total_retrievals") == 1
    monitor.detach()
    picture.check()


# Objects that are touchy


class OwnMethods(ListBuffer):
    """Chooses its methods when it is made."""

    def __init__(self, how: str) -> None:
        super().__init__(4, 8, LAYERS)
        self.before = 1
        if how == "function":
            self.store_state = lambda *args, **kwargs: self._really(*args, **kwargs)  # type: ignore[method-assign]
        elif how == "bound":
            self.store_state = self._really  # type: ignore[method-assign]
        else:
            self.store_state = functools.partial(ListBuffer.store_state, self)  # type: ignore[method-assign]
        self.after = 2

    def _really(self, hidden_state: torch.Tensor, layer_idx: int, **kwargs: Any) -> bool:
        return ListBuffer.store_state(self, hidden_state, layer_idx, **kwargs)


@pytest.mark.parametrize("how", ["function", "bound", "partial"])
def test_methods_of_an_instance_are_put_back(how: str) -> None:
    buffer = OwnMethods(how)
    model = nn.Module()
    model.memory = buffer
    picture = Picture({"buffer": buffer, "model": model})
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        assert buffer.store_state(torch.ones(DIM), layer_idx=2, key=1) is True
    assert monitor.snapshot.value("states_stored", layer=2) == 1
    monitor.detach()
    picture.check()


class Guarded(ListBuffer):
    """Lets nobody set what it does not know, nor ask for it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("layer_buffers", "max_entries_per_layer", "max_total_entries", "_age"):
            raise TypeError(f"no attribute {name}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise TypeError("nothing is deleted")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"nobody asks for {name}")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Is what it is, but its lists are not."""

    layer_buffers: dict[int, list[Entry]]
    max_entries_per_layer: int = 4

    def store_state(self, hidden_state: torch.Tensor, layer_idx: int, key: int = -1) -> bool:
        """Keep a state."""
        self.layer_buffers[layer_idx].append(Entry(hidden_state, layer_idx, key))
        return True


@pytest.mark.parametrize(
    "make",
    [
        lambda: Guarded(4, 8, LAYERS),
        lambda: Frozen({layer: [] for layer in LAYERS}),
        lambda: SlotsBuffer(4, 8, LAYERS),
    ],
    ids=["guarded", "frozen", "slots"],
)
def test_a_buffer_that_cannot_be_changed_is_watched_as_far_as_that_goes(
    make: Callable[[], Any],
) -> None:
    buffer = make()
    model = nn.Module()
    model.memory = buffer
    picture = Picture({"model": model, "buffer": buffer})
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        for key in range(3):
            assert buffer.store_state(torch.ones(DIM), 2, key=key) is True
    snapshot = monitor.snapshot
    assert snapshot.value("total_entries", layer=2) == 3
    assert snapshot.value("capacity", layer=2) == 4
    stored = snapshot.value("states_stored", layer=2)
    assert stored == 3 or stored != stored, "right, or no data"
    monitor.detach()
    picture.check()
    assert buffer.store_state(torch.ones(DIM), 2, key=9) is True


class Touched:
    """How often something happened that a search must not do."""

    def __init__(self) -> None:
        self.times: list[str] = []

    def __call__(self, what: str) -> None:
        self.times.append(what)


def with_properties(touched: Touched) -> Any:
    """Each look at it costs, and looks like what a search wants."""

    def costly(name: str) -> property:
        return property(lambda self: touched(name))

    names = ("layer_buffers", "entries", "stats", "knns", "cache_hits", "db", "probe", "buffer")
    return type("Properties", (), {name: costly(name) for name in names})()


def buffer_with_properties(touched: Touched) -> Any:
    def costly(name: str) -> property:
        return property(lambda self: touched(name))

    names = ("report", "size_on_disk", "newest", "device", "index")
    return type("Costly", (ListBuffer,), {n: costly(n) for n in names})(4, 8, LAYERS)


def lazy(touched: Touched) -> Any:
    class Lazy:
        """Loads what it stands for when it is first asked for anything."""

        def __getattr__(self, name: str) -> Any:
            touched(name)
            return [torch.zeros(1)]

    return Lazy()


def lazy_to_the_last(touched: Touched) -> Any:
    class Proxy:
        """Says that it is what it stands for, which must be loaded for that."""

        @property  # type: ignore[override]
        def __class__(self) -> Any:
            touched("class")
            return dict

        def __getattr__(self, name: str) -> Any:
            touched(name)
            return 0

    return Proxy()


def generator(touched: Touched) -> Any:
    def run() -> Iterator[int]:
        touched("next")
        yield 1

    return run()


def iterates(touched: Touched) -> Any:
    class Stream:
        """Can be read once."""

        def __iter__(self) -> Any:
            touched("iter")
            return iter(())

        def __len__(self) -> int:
            touched("len")
            return 3

        def __getitem__(self, key: Any) -> Any:
            touched("getitem")
            raise IndexError(key)

        def __call__(self) -> None:
            touched("call")

        def retrieve(self) -> None:
            touched("retrieve")

        def clear(self) -> None:
            touched("clear")

        def reset(self) -> None:
            touched("reset")

    return Stream()


def ill_mannered(touched: Touched) -> Any:
    class Rude:
        """Raises at whatever one may do to any object."""

        def _raise(self, *args: Any) -> Any:
            touched("looked at")
            raise RuntimeError("do not")

        __eq__ = __bool__ = __len__ = __iter__ = __repr__ = __str__ = __contains__ = _raise  # type: ignore[assignment]
        __hash__ = None  # type: ignore[assignment]

    return Rude()


def mock(touched: Touched) -> Any:
    made = MagicMock()
    made.was = sorted(made._mock_children)
    return made


def dead(touched: Touched) -> Any:
    return weakref.proxy(Touched())


def chain(touched: Touched) -> Any:
    """Longer than Python's stack is deep."""
    first: Any = None
    for _ in range(5 * sys.getrecursionlimit()):
        first = SimpleNamespace(next=first)
    return first


def nest(touched: Touched) -> Any:
    inner: list[Any] = []
    for _ in range(5 * sys.getrecursionlimit()):
        inner = [inner]
    return inner


def cycle(touched: Touched) -> Any:
    one, other = SimpleNamespace(), SimpleNamespace()
    one.other, other.other, one.own = other, one, one
    one.items = [one, {"one": one}]
    one.items.append(one.items)
    return one


THINGS: dict[str, Callable[[Touched], Any]] = {
    "properties": with_properties,
    "a buffer's properties": buffer_with_properties,
    "lazy": lazy,
    "lazy to the last": lazy_to_the_last,
    "generator": generator,
    "stream": iterates,
    "rude": ill_mannered,
    "mock": mock,
    "dead": dead,
    "chain": chain,
    "nest": nest,
    "cycle": cycle,
    "lock": lambda _: threading.Lock(),
    "held lock": lambda _: _held(),
    "queue": lambda _: queue.Queue(),
    "file": lambda _: io.StringIO("one\ntwo\n"),
    "stdin": lambda _: sys.stdin,
    "iterator": lambda _: iter([1, 2]),
    "namespace of torch": lambda _: torch.ops,
    "module of Python": lambda _: sys.modules[__name__],
    "class": lambda _: ListBuffer,
}


def _held() -> Any:
    lock = threading.Lock()
    lock.acquire()
    return lock


class Bystander(nn.Module):
    """A buffer, and something else, as an attribute and in containers."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.memory = ListBuffer(4, 8, LAYERS)
        self.box = {"thing": thing, "more": [thing, (thing,)], "deep": SimpleNamespace(one=thing)}
        # by itself torch asks what it is given whether it is a parameter
        self.__dict__["thing"] = thing


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_not_the_memory_is_left_alone(thing: str) -> None:
    touched = Touched()
    made = THINGS[thing](touched)
    model = Bystander(made)
    picture = Picture({"model": model, "memory": model.memory})
    touched.times.clear()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    assert touched.times == []
    with monitor.track_performance():
        model.memory.store_state(torch.ones(DIM), 2, key=1)
        model.memory.retrieve_by_layer(2)
    monitor.detach()
    assert touched.times == []
    assert monitor.snapshot.layers("states_stored")[2] == 1
    assert monitor.snapshot.value("total_retrievals") == 1
    picture.check()
    if thing == "mock":
        assert sorted(made._mock_children) == made.was
        assert not made.mock_calls
    elif thing == "file":
        assert made.tell() == 0
    elif thing == "iterator":
        assert next(made) == 1
    elif thing == "lock":
        assert made.acquire(blocking=False)


def calls_in(run: Callable[[], Any]) -> int:
    """How many calls are made, in Python or C."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("kind", ["tensors", "numbers", "lists"])
def test_a_huge_list_is_looked_at_once(kind: str) -> None:
    items: dict[str, Callable[[int], Any]] = {
        "tensors": lambda i: torch.tensor(i),
        "numbers": float,
        "lists": lambda i: [i, (i,)],
    }
    attaching, stepping = {}, {}
    size = 100_000
    for number in (0, size):
        model = Bystander(None)
        model.cache = [items[kind](i) for i in range(number)]
        monitor = CMRPerformanceMonitor(EACH)
        attaching[number] = calls_in(lambda m=monitor, n=model: m.attach(n))

        def step(monitor: Any = monitor, model: Any = model) -> None:
            with monitor.track_performance():
                model.memory.store_state(torch.ones(DIM), 2, key=1)

        step()
        stepping[number] = calls_in(step)
        assert monitor.snapshot.value("total_entries", layer=2) == 1
        monitor.detach()
    # twenty calls for each object are some tenths of a second for all of them
    assert attaching[size] - attaching[0] <= 20 * size * (3 if kind == "lists" else 1)
    # a sample of the machine, taken on a thread, may be taken over by one of the two steps
    assert abs(stepping[size] - stepping[0]) <= size / 100


# Copies


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": lambda net: _saved(net),
    "average": lambda net: AveragedModel(net).module,
}


def _saved(net: Any) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def held(net: Any) -> dict[int, list[tuple[int, int]]]:
    buffer = net.memory_buffer
    return {layer: [(e.key, e.age) for e in v] for layer, v in buffer.layer_buffers.items()}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_a_model_of_its_own(how: str) -> None:
    torch.manual_seed(1)
    net = SmallNet().eval()
    batches = list(loader(4))
    with torch.no_grad():
        net(*batches[0])
    monitor = CMRPerformanceMonitor(EACH, model=net)
    with torch.no_grad(), monitor.track_performance():
        net(*batches[1])
    other = COPIES[how](net)
    assert type(other) is SmallNet
    assert held(other) == held(net)
    before, counted = held(net), monitor.snapshot.layers("states_stored")
    with torch.no_grad(), monitor.track_performance():
        other(*batches[3])
        other.memory_buffer.retrieve_by_layer(2)
        other.memory_buffer.clear_layer(4)
    assert held(net) == before, "it wrote into the original"
    assert held(other)[4] == []
    snapshot = monitor.snapshot
    assert snapshot.layers("states_stored") == counted
    assert snapshot.value("total_retrievals", over="window") == 0
    assert snapshot.value("states_cleared", over="window") == 0
    # the original goes on, and gives what the copy gives
    again = COPIES[how](net)
    with torch.no_grad(), monitor.track_performance():
        one = net(*batches[1])
    assert torch.equal(again(*batches[1]), one)
    assert held(again) == held(net)
    assert monitor.snapshot.value("capture_calls", over="window") == len(LAYERS)
    monitor.detach()
    assert torch.equal(again(*batches[3]), net(*batches[3]))
    # a copy may be watched by itself, and is undone too
    picture = Picture(parts(other))
    own = CMRPerformanceMonitor(EACH, model=other)
    with torch.no_grad(), own.track_performance():
        other(*batches[1])
    assert own.snapshot.layers("capture_calls") == dict.fromkeys(LAYERS, 1.0)
    own.detach()
    picture.check()
    for name, part in parts(other).items():
        assert_its_own(part, list(vars(parts(net)[name])))


def assert_its_own(other: Any, names: list[str]) -> None:
    """Whatever a copy has more than the original is a method of its own class, bound to it."""
    for name in vars(other):
        if name not in names:
            method = vars(other)[name]
            assert method.__self__ is other, name
            assert method.__func__ is getattr(type(other), name), name


@pytest.mark.parametrize("part", ["memory_buffer", "retriever", "reconstructor"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_parts_can_be_copied_by_themselves(part: str, how: str) -> None:
    net = SmallNet()
    plain = list(vars(getattr(net, part)))
    monitor = CMRPerformanceMonitor(EACH, model=net)
    with monitor.track_performance():
        net(*next(iter(loader(1))))
    one = getattr(net, part)
    other = COPIES[how](one)
    assert_its_own(other, plain)
    before = monitor.snapshot.value("total_retrievals"), monitor.snapshot.value("capture_calls")
    size = len(net.memory_buffer.layer_buffers[2])
    with monitor.track_performance():
        if part == "memory_buffer":
            other.layer_buffers = {2: []}
            other.store_state(torch.ones(DIM), 2, key=1)
            assert len(other.retrieve_by_layer(2)) == 1
        elif part == "retriever":
            other.buffer = ListBuffer(2, 2, LAYERS)
            assert other.retrieve_memories(torch.ones(DIM), 2) == []
        else:
            other(torch.ones(DIM), [], 2)
    snapshot = monitor.snapshot
    assert len(net.memory_buffer.layer_buffers[2]) == size
    assert before == (snapshot.value("total_retrievals"), snapshot.value("capture_calls"))
    assert snapshot.value("reconstruction_calls", over="window") == 0
    monitor.detach()


def test_an_average_kept_while_training_is_not_counted(tmp_path: Path) -> None:
    class Averages(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            average = AveragedModel(module.net)
            average.update_parameters(module.net)
            with torch.no_grad():
                average(*next(iter(loader(1, seed=9))))
            torch.save(module.net, tmp_path / "net.pt")

    callback = CMRMonitorCallback(monitoring=STRICT)
    module = SmallModule()
    trainer(None, [callback, Averages()], logger=False).fit(module, loader(6))
    assert callback.snapshot.layers("capture_calls") == dict.fromkeys(LAYERS, 6.0)
    entries = {layer: float(len(v)) for layer, v in held(module.net).items()}
    assert callback.snapshot.layers("total_entries") == entries
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    assert held(loaded) == held(module.net)
    for name, part in parts(loaded).items():
        assert_its_own(part, list(vars(parts(SmallNet())[name])))


# Nothing is kept


def test_what_leaves_the_buffer_is_freed() -> None:
    buffer = ListBuffer(2, 4, LAYERS)
    model = nn.Module()
    model.memory = buffer
    monitor = CMRPerformanceMonitor(EACH, model=model)
    states: list[Any] = []
    entries: list[Any] = []
    for key in range(6):
        with monitor.track_performance():
            base = torch.ones(DIM)
            buffer.store_state(base, 2, key=key)
            entry = buffer.layer_buffers[2][-1]
            states += [weakref.ref(base), weakref.ref(entry.hidden_state)]
            entries.append(weakref.ref(entry))
            assert len(buffer.retrieve_by_layer(2)) == min(2, key + 1)
            del base, entry
    alive = [ref() is not None for ref in entries]
    assert alive == [False] * 4 + [True] * 2
    assert sum(ref() is not None for ref in states) == 2
    with monitor.track_performance():
        buffer.layer_buffers[2].pop()
        buffer.clear_layer(2)
    assert monitor.snapshot.value("eviction_count") == 4
    assert monitor.snapshot.value("states_cleared") == 2
    assert not any(ref() for ref in entries)
    monitor.detach()


def test_a_buffer_that_was_swapped_out_is_freed() -> None:
    net = SmallNet()
    old = weakref.ref(net.memory_buffer)
    monitor = CMRPerformanceMonitor(EACH, model=net)
    with monitor.track_performance():
        net(*next(iter(loader(1))))
    with monitor.track_performance():
        net.memory_buffer = ListBuffer(5, 8, LAYERS)
        net.retriever = Retriever(net.memory_buffer)
    with monitor.track_performance():
        net(*next(iter(loader(1))))
    gc.collect()
    assert old() is None
    assert monitor.snapshot.value("capture_calls") == 2 * len(LAYERS)
    monitor.detach()


@pytest.mark.parametrize("fails", [False, True], ids=["fit", "failed fit"])
def test_a_model_is_freed_after_a_fit(fails: bool) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = Stops(SmallNet(), RuntimeError, fails) if fails else SmallModule()
    fitter = trainer(None, [callback], logger=False)
    if fails:
        with pytest.raises(RuntimeError):
            fitter.fit(module, loader(6))
    else:
        fitter.fit(module, loader(6))
    core = module.core
    watched = (module, core, core.memory_buffer, core.retriever, core.reconstructor, fitter)
    gone = [weakref.ref(one) for one in watched]
    calls = callback.snapshot.value("capture_calls")
    # Lightning itself gives every callback these methods of the module
    del module, core, watched, fitter, callback.log, callback.log_dict
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    assert calls == (3 if fails else 6) * len(LAYERS)
