"""Nothing enters or leaves a buffer uncounted, whatever is done to it and however it is built.

A count by hand runs beside the buffer: it keeps its own list of what must be held, from what the
buffer was told to do alone. The monitor sees the buffer, and never the count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.memory_models.buffers import KINDS, SLOTS, CountingBuffer, Kind, ListBuffer, SingleBuffer

LAYERS = (3, 5, 8)
PATH = "memory"
"""Where the model keeps its buffer: the layer of one that knows of none."""
STORED = ("states_attempted", "states_captured", "states_stored", "states_rejected")
MOVED = ("eviction_count", "states_cleared", "states_loaded", "states_overwritten")
READ = ("total_retrievals", "entries_retrieved")
GROUPS = (STORED, MOVED, READ)
UNSEEN = (
    *STORED[:2],
    "states_rejected",
    "capture_calls",
    "states_overwritten",
    "clear_count",
    *READ,
)
"""What no counter of a buffer and no look at it can tell."""

Layer = int | str
Op = tuple[str, int, int]
Windows = Sequence[Sequence[Op]]

# Shrinking a failure takes minutes and says little more: what is drawn is short.
quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


# What is done, and the count by hand


@dataclass
class Held:
    age: int
    key: int
    size: int


@dataclass
class Hand:
    """Counts what a buffer must do, from its limits alone."""

    kind: Kind
    limit: int
    total: int
    held: dict[Layer, list[Held]] = field(default_factory=dict)
    counts: Counter[tuple[str, Layer | None]] = field(default_factory=Counter)
    ever: set[Layer] = field(default_factory=set)
    ages: Any = field(default_factory=count)

    def say(self, name: str, layer: Layer | None, number: int = 1) -> None:
        self.counts[name, layer] += number

    def store(self, layer: Layer, key: int, size: int, *, relevant: bool) -> None:
        for name in STORED[:2]:
            self.say(name, layer)
        self.say("states_stored" if relevant else "states_rejected", layer)
        if not relevant:
            return
        same = [one for one in self.held.get(layer, []) if one.key == key]
        if same:
            self.say("states_overwritten", layer)
            same[0].size = size
        else:
            self.enter(layer, key, size)

    def enter(self, layer: Layer, key: int, size: int) -> None:
        """Take one in, and drop what no longer fits."""
        if self.kind.by_layer and len(self.held.get(layer, [])) >= self.limit:
            self.evict(layer)
        if self.kind.by_total and self.size >= self.total:
            self.evict(min((one.age, at) for at, held in self.held.items() for one in held)[1])
        self.held.setdefault(layer, []).append(Held(next(self.ages), key, size))
        self.ever.add(layer)

    def evict(self, layer: Layer) -> None:
        self.held[layer].pop(0)
        self.say("eviction_count", layer)

    def clear(self, layer: Layer) -> None:
        self.say("states_cleared", layer, len(self.held.get(layer, [])))
        self.held[layer] = []

    def load(self, layer: Layer, key: int, size: int) -> None:
        self.say("states_loaded", layer)
        self.enter(layer, key, size)

    @property
    def size(self) -> int:
        return sum(map(len, self.held.values()))

    def room(self, layer: Layer) -> int:
        """Entries that fit without dropping another."""
        room = self.limit - len(self.held.get(layer, [])) if self.kind.by_layer else 99
        return min(room, self.total - self.size) if self.kind.by_total else room

    def of(self, name: str, layer: Layer | None) -> int:
        """A count of one layer, or of the whole."""
        if layer is not None:
            return self.counts[name, layer]
        return sum(n for (other, _), n in self.counts.items() if other == name)

    def bytes(self, layer: Layer | None = None) -> int:
        return sum(
            one.size for at, held in self.held.items() for one in held if layer in (None, at)
        )


@dataclass(frozen=True)
class Setup:
    """A buffer, what it holds when the monitor comes, and how the model holds it."""

    name: str
    limit: int = 2
    total: int = 5
    fill: tuple[int, ...] = ()
    alias: bool = False
    wrap: bool = True

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]


class Model(nn.Module):
    """Holds a buffer as a plain attribute."""

    def __init__(self, buffer: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.memory = buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Run:
    """Does things to a buffer, counts them by hand, and has a monitor look on."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.kind = setup, setup.kind
        self.keys = count(100)
        self.buffer = self._make()
        self.hand = Hand(self.kind, setup.limit, setup.total)
        for layer in setup.fill:
            self.do(("store", layer, 1))
        self.hand.counts.clear()
        self.hand.ever = {layer for layer, held in self.hand.held.items() if held}
        self.before = {layer: len(held) for layer, held in self.hand.held.items()}
        self.at_ends: set[Layer] = set()
        self.retired: Any = None
        self.touched: set[Layer] = set()
        self.replaced = False
        self.model = Model(self.buffer)
        if setup.alias:
            self.model.too = [self.buffer, self.buffer]
        self.monitor: CMRPerformanceMonitor | None = None

    @property
    def ever(self) -> set[Layer]:
        """Layers that hold or have held an entry, as far as the monitor can know."""
        polled = not self.setup.wrap or self.setup.name in SLOTS
        return self.at_ends if polled else self.hand.ever

    def attach(self) -> CMRPerformanceMonitor:
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 1, "on_monitor_error": "raise"},
            model=self.model,
            probes=None if self.setup.wrap else {"wrap": False},
        )
        return self.monitor

    def window(self, ops: Sequence[Op]) -> Counter[tuple[str, Layer | None]]:
        """Do all that is done in one window; what was counted in it."""
        before = self.hand.counts.copy()
        self.touched, self.replaced = set(), False
        self.at_ends |= {layer for layer, held in self.hand.held.items() if held}
        if self.monitor is None:
            for op in ops:
                self.do(op)
        else:
            with self.monitor.track_performance():
                for op in ops:
                    self.do(op)
        self.at_ends |= {layer for layer, held in self.hand.held.items() if held}
        return Counter({key: n - before[key] for key, n in self.hand.counts.items()})

    def do(self, op: Op) -> None:
        name, layer, number = op
        if getattr(self, "replaced", False):
            return  # the new object is known from the window's end on
        getattr(self, f"_{name}")(layer, number)

    # by the buffer's own methods

    def _store(self, layer: int, number: int, relevance: float = 1.0, key: int = -1) -> None:
        for _ in range(number):
            state, used = self._state(), next(self.keys) if key < 0 else key
            args = (state, layer) if self.kind.layered else (state,)
            self.buffer.store_state(*args, relevance=relevance, key=used)
            size = state.nelement() * state.element_size()
            self.hand.store(self._id(layer), used, size, relevant=relevance >= 0.5)

    def _refuse(self, layer: int, number: int) -> None:
        self._store(layer, number, relevance=0.1)

    def _overwrite(self, layer: int, number: int) -> None:
        held = self.hand.held.get(self._id(layer))
        if not self.kind.methods and self.setup.limit == 1:
            return  # who looks at a full container of one cannot tell it from an eviction
        if held:
            self._store(layer, 1, key=held[number % len(held)].key)

    def _evict(self, layer: int, number: int) -> None:
        if self.kind.methods and self.hand.held.get(layer):
            self.buffer.prune_layer(layer_idx=layer)
            self.hand.evict(layer)
        elif not self.kind.methods:
            self._store(layer, self.setup.limit + 1)

    def _clear(self, layer: int, number: int) -> None:
        if self.kind.layered:
            self.buffer.clear_layer(layer)
            self.hand.clear(layer)
            self.hand.say("clear_count", layer)

    def _clear_all(self, layer: int, number: int) -> None:
        self.buffer.clear_all()
        for at in list(self.hand.held):
            self.hand.clear(at)
        self.hand.say("clear_count", None)

    def _retrieve(self, layer: int, number: int) -> None:
        if not self.kind.layered:
            self._retrieve_all(layer, number)
            return
        given = self.buffer.retrieve_by_layer(layer, top_k=number)
        assert len(given) == min(number, len(self.hand.held.get(layer, [])))
        self.hand.say("total_retrievals", layer)
        self.hand.say("entries_retrieved", layer, len(given))

    def _retrieve_all(self, layer: int, number: int) -> None:
        given = self.buffer.retrieve_similar(self._state(), top_k=number)
        assert len(given) == sum(min(number, len(held)) for held in self.hand.held.values())
        at = None if self.kind.layered else PATH
        self.hand.say("total_retrievals", at)
        self.hand.say("entries_retrieved", at, len(given))

    def _load(self, layer: int, number: int) -> None:
        at = self._id(layer)
        if not self.kind.methods:
            if not self._may_touch(at):
                return
            number = min(number, self.hand.room(at))
        states = [self._state() for _ in range(number)]
        keys = [next(self.keys) for _ in states]
        entries: list[Any] = [
            self.kind.entry(state, layer, key) for state, key in zip(states, keys, strict=True)
        ]
        deques = self.setup.name == "deques"
        self.buffer.load_entries([(layer, e) for e in entries] if deques else entries)
        for state, key in zip(states, keys, strict=True):
            self.hand.load(at, key, state.nelement() * state.element_size())

    # past the buffer's methods: once per layer and window, for only the sum of two is seen

    def _may_touch(self, layer: Layer) -> bool:
        if layer in self.touched:
            return False
        self.touched.add(layer)
        return True

    def _append(self, layer: int, number: int) -> None:
        at = self._id(layer)
        if self.hand.room(at) < 1 or not self._may_touch(at):
            return
        state, key = self._state(), next(self.keys)
        self.kind.append(self.buffer, layer, self._aged(state, layer, key))
        self.hand.load(at, key, state.nelement() * state.element_size())

    def _wipe(self, layer: int, number: int) -> None:
        if self._may_touch(self._id(layer)):
            self.kind.wipe(self.buffer, layer)
            self.hand.clear(self._id(layer))

    def _assign(self, layer: int, number: int) -> None:
        """A new container: an empty one, or one with entries where there were none."""
        at = self._id(layer)
        if not self._may_touch(at):
            return
        if self.hand.held.get(at):
            self.kind.put(self.buffer, layer, [])
            self.hand.clear(at)
            return
        self.kind.put(self.buffer, layer, self._fresh(layer, min(number, self.hand.room(at))))
        self.hand.held.setdefault(at, [])  # without room it is an empty one

    def _fresh(self, layer: int, number: int) -> list[Any]:
        entries = []
        for _ in range(number):
            state, key = self._state(), next(self.keys)
            entries.append(self._aged(state, layer, key))
            self.hand.load(self._id(layer), key, state.nelement() * state.element_size())
        return entries

    def _aged(self, state: Tensor, layer: int, key: int) -> Any:
        """An entry that takes its turn in the buffer's order."""
        entry = self.kind.entry(state, layer, key)
        if self.kind.methods:
            entry.age = self.buffer.next_age()
        return entry

    def _replace(self, layer: int, number: int) -> None:
        """Another object in the buffer's place, which holds some entries already."""
        if self.touched or self.setup.alias:
            return
        for at in list(self.hand.held):
            self.hand.clear(at)
        self.retired, self.buffer = self.buffer, self._make()
        self.kind.put(self.buffer, layer, self._fresh(layer, min(number, self.setup.limit)))
        self.model.memory = self.buffer
        self.replaced = True

    def _ghost(self, layer: int, number: int) -> None:
        """What is done to an object that the model no longer holds is nobody's."""
        if self.retired is not None:
            args = (self._state(), layer) if self.kind.layered else (self._state(),)
            self.retired.store_state(*args, key=next(self.keys))

    def _make(self) -> Any:
        return self.kind.make(self.setup.limit, self.setup.total, LAYERS)

    def _id(self, layer: int) -> Layer:
        return layer if self.kind.layered else PATH

    def _state(self) -> Tensor:
        """A row of something larger: what it holds itself is all that counts."""
        number = next(self.keys)
        dtype = (torch.float32, torch.bfloat16, torch.float64)[number % 3]
        return torch.zeros(4, 1 + number % 5, dtype=dtype)[1]


# What is checked


def quiet(hand: Hand, name: str, layer: Layer) -> bool:
    """Whether nothing of this kind ever happened in a layer, so that it need not be there."""
    group = next(group for group in GROUPS if name in group)
    return layer not in hand.ever and not any(hand.counts[other, layer] for other in group)


def check_wrapped(run: Run, window: Counter[tuple[str, Layer | None]]) -> None:
    """Every number, whole and per layer, since the start and of the window."""
    assert run.monitor is not None
    snapshot, hand = run.monitor.snapshot, run.hand
    layers: tuple[Layer, ...] = LAYERS if run.kind.layered else (PATH,)
    of_window = Hand(run.kind, 0, 0, counts=window)
    for name in (*STORED, *MOVED, *READ):
        for over, counted in (("run", hand), ("window", of_window)):
            got = snapshot.value(name, over=over)
            assert got == counted.of(name, None), (name, over)
            for layer in layers:
                got = snapshot.value(name, layer=layer, over=over)
                want = counted.of(name, layer)
                absent = math.isnan(got) and (name not in MOVED or quiet(hand, name, layer))
                assert got == want or (want == 0 and absent), (name, layer, over, got, want)
    assert set(snapshot.layer_ids) <= set(layers)
    assert snapshot.value("clear_count") == hand.of("clear_count", None)
    assert snapshot.value("capture_calls") == hand.of("states_attempted", None)
    check_gauges(run)
    for layer in hand.ever:
        parts = {name: snapshot.value(name, layer=layer) for name in (*MOVED, "states_stored")}
        parts = {name: 0.0 if math.isnan(v) else v for name, v in parts.items()}
        assert law(parts, run.before.get(layer, 0)) == snapshot.value("total_entries", layer=layer)


def law(parts: dict[str, float], at_attach: int) -> float:
    """The entries that must be there now."""
    entered = parts["states_stored"] + parts["states_loaded"]
    left = parts["eviction_count"] + parts["states_cleared"] + parts["states_overwritten"]
    return at_attach + entered - left


def check_gauges(run: Run) -> None:
    """What holds now: entries, limits, bytes."""
    assert run.monitor is not None
    snapshot, hand, setup = run.monitor.snapshot, run.hand, run.setup
    ever = run.ever
    for layer in ever:
        entries = len(hand.held.get(layer, []))
        assert snapshot.value("total_entries", layer=layer) == entries, layer
        size = snapshot.value("memory_size_mb", layer=layer)
        assert size * 2**20 == pytest.approx(hand.bytes(layer)), layer
        if run.kind.by_layer:
            assert snapshot.value("capacity", layer=layer) == setup.limit
            utilization = snapshot.value("utilization_rate", layer=layer)
            assert utilization == pytest.approx(entries / setup.limit)
    assert snapshot.value("total_entries") == hand.size
    assert snapshot.value("memory_size_mb") * 2**20 == pytest.approx(hand.bytes())
    if ever:
        limits = [setup.total] if run.kind.by_total else []
        limits += [setup.limit * len(ever)] if run.kind.by_layer else []
        assert snapshot.value("capacity") == min(limits)
        assert snapshot.value("utilization_rate") == pytest.approx(hand.size / min(limits))


def check_container(run: Run) -> None:
    """The count by hand and the buffer agree; looking at it has made no layer."""
    layers: tuple[Any, ...] = LAYERS if run.kind.layered else (None,)
    for layer in layers:
        held = run.kind.held(run.buffer, layer)
        by_hand = run.hand.held.get(PATH if layer is None else layer, [])
        assert [entry.key for entry in held] == [one.key for one in by_hand], layer
    if run.setup.name == "defaultdict":
        assert all(run.hand.held.get(layer) is not None for layer in run.buffer.layer_buffers)


# What is drawn

layer_of = st.sampled_from(LAYERS)
METHODS = ("store", "refuse", "overwrite", "evict", "clear", "clear_all", "retrieve")
ANYTHING = (*METHODS, "retrieve_all", "load", "append", "wipe", "assign", "replace", "ghost")


def ops(names: Sequence[str]) -> st.SearchStrategy[Op]:
    often = [*names, "store", "store", "store"]
    return st.tuples(st.sampled_from(often), layer_of, st.integers(1, 3))


def windows_of(names: Sequence[str]) -> st.SearchStrategy[list[list[Op]]]:
    return st.lists(st.lists(ops(names), max_size=8), min_size=1, max_size=4)


def setups(names: Sequence[str], *, wrap: bool = True) -> st.SearchStrategy[Setup]:
    return st.builds(
        Setup,
        name=st.sampled_from(list(names)),
        limit=st.integers(1, 3),
        total=st.integers(2, 6),
        fill=st.lists(layer_of, max_size=6).map(tuple),
        alias=st.booleans(),
        wrap=st.just(wrap),
    )


WRAPPED = tuple(name for name in KINDS if name not in SLOTS)


@settings(quick, max_examples=300)
@given(setups(tuple(KINDS)), windows_of(ANYTHING))
def test_the_count_by_hand_is_right_by_itself(setup: Setup, windows: Windows) -> None:
    run = Run(setup)
    check_container(run)
    for window in windows:
        run.window(window)
        check_container(run)
        for layer in run.hand.ever:
            parts = {name: run.hand.counts[name, layer] for name in (*MOVED, "states_stored")}
            assert law(parts, run.before.get(layer, 0)) == len(run.hand.held[layer])


@pytest.mark.parametrize("name", WRAPPED)
def test_every_delta_is_right_and_the_law_holds(name: str) -> None:
    @quick
    @given(setups((name,)), windows_of(ANYTHING))
    @example(Setup(name, fill=(3, 3, 5)), [[], [("store", 3, 3)], [("clear_all", 3, 1)], []])
    @example(Setup(name, limit=1, fill=(8,)), [[("replace", 5, 1)], [("ghost", 5, 1)]])
    @example(Setup(name), [[("load", 8, 1), ("clear_all", 8, 2), ("store", 5, 1)]])
    def hold(setup: Setup, windows: Windows) -> None:
        run = Run(setup)
        monitor = run.attach()
        for window in windows:
            counted = run.window(window)
            check_container(run)
            check_wrapped(run, counted)
        monitor.detach()

    hold()


# By looking alone


def check_unknown(run: Run, names: Sequence[str]) -> None:
    assert run.monitor is not None
    for name in names:
        for layer in (None, *LAYERS):
            for over in ("run", "window"):
                got = run.monitor.snapshot.value(name, layer=layer, over=over)
                assert math.isnan(got), (name, layer, over, got)


@pytest.mark.parametrize("name", ["lists", "deques", "defaultdict", "flat", "slots"])
def test_by_looking_alone_only_what_holds_now_is_known(name: str) -> None:
    """A buffer without counters may have taken in and dropped any number in between."""

    @quick
    @given(setups((name,), wrap=name in SLOTS), windows_of([n for n in ANYTHING if n != "replace"]))
    def hold(setup: Setup, windows: Windows) -> None:
        run = Run(setup)
        monitor = run.attach()
        for window in windows:
            run.window(window)
            check_container(run)
            check_gauges(run)
            check_unknown(run, (*UNSEEN, "states_stored", "eviction_count", "avg_capture_time"))
        monitor.detach()

    hold()


@dataclass
class Reading:
    """What a buffer's own counters say of a window to one who reads them at its end only."""

    insertions: int
    evictions: int
    certain: bool


class Meter:
    """Reads `stats` as one must who sees them fall to 0 in between."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.last = dict(run.buffer.stats)

    def window(self, ops: Sequence[Op]) -> tuple[Counter[tuple[str, Layer | None]], Reading]:
        untouched = True
        certain = True
        start = self.last
        for place, op in enumerate(ops):
            if op[0] == "clear_all":
                untouched = place == 0
                certain = certain and untouched
        counted = self.run.window(ops)
        now = dict(self.run.buffer.stats)
        if any(op[0] == "clear_all" for op in ops):
            # where all rose again over what they were, they never fell to one who looks at the end
            fell = any(now[name] < start[name] for name in now)
            certain = certain and (fell or not any(start.values()))
            reading = Reading(now["total_insertions"], now["total_evictions"], certain)
        else:
            gained = {name: now[name] - start[name] for name in now}
            reading = Reading(gained["total_insertions"], gained["total_evictions"], True)
        self.last = now
        return counted, reading


COUNTED_OPS = ("store", "refuse", "evict", "clear", "clear_all", "retrieve", "load", "wipe")


@pytest.mark.parametrize("name", ["counting", "counting slots"])
def test_a_buffers_own_counters_are_read_across_their_resets(name: str) -> None:
    @quick
    @given(setups((name,), wrap=name in SLOTS), windows_of(COUNTED_OPS))
    @example(
        Setup(name, limit=3, fill=(3, 3, 5, 5), wrap=name in SLOTS),
        [[("store", 3, 1)], [("clear_all", 3, 1), ("store", 5, 1)], [("store", 3, 2)]],
    )
    def hold(setup: Setup, windows: Windows) -> None:
        run = Run(setup)
        monitor = run.attach()
        meter = Meter(run)
        certain, net = True, 0
        sums = Counter[str]()
        for window in windows:
            entries = run.hand.size
            counted, reading = meter.window(window)
            snapshot = monitor.snapshot
            check_container(run)
            check_gauges(run)
            check_unknown(run, UNSEEN)
            certain = certain and reading.certain
            sums["states_stored"] += reading.insertions
            sums["eviction_count"] += reading.evictions
            if reading.certain:
                truth = Hand(run.kind, 0, 0, counts=counted)
                # first that this test reads the counters right, then that the monitor does
                assert reading.insertions == truth.of("states_stored", None)
                assert reading.evictions == truth.of("eviction_count", None)
                stored = snapshot.value("states_stored", over="window")
                evicted = snapshot.value("eviction_count", over="window")
                # a counter that never moved may be a dead one: it says nothing until it does
                assert (number(stored), number(evicted)) == (reading.insertions, reading.evictions)
                net = entries + reading.insertions - reading.evictions - run.hand.size
                cleared = number(snapshot.value("states_cleared", over="window"))
                loaded = number(snapshot.value("states_loaded", over="window"))
                assert cleared - loaded == net
                assert 0 <= cleared <= truth.of("states_cleared", None)
                assert 0 <= loaded <= truth.of("states_loaded", None)
            if certain:
                for key, value in sums.items():
                    assert number(snapshot.value(key)) == value
            parts = {key: number(snapshot.value(key)) for key in (*MOVED, "states_stored")}
            assert law(parts, sum(run.before.values())) == snapshot.value("total_entries")
        monitor.detach()

    hold()


def number(value: float) -> float:
    """No data adds nothing."""
    return 0.0 if math.isnan(value) else value


# Single cases, by hand


def watched(buffer: Any, *, wrap: bool = True) -> tuple[Model, CMRPerformanceMonitor]:
    model = Model(buffer)
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1, "on_monitor_error": "raise"},
        model=model,
        probes=None if wrap else {"wrap": False},
    )
    return model, monitor


def filled(make: Any, number: int, layer: int = 3, limit: int = 4) -> Any:
    buffer = make(limit, 100, LAYERS)
    for key in range(number):
        buffer.store_state(torch.ones(2), layer, key=key)
    return buffer


def moved(monitor: CMRPerformanceMonitor, layer: Layer = 3) -> dict[str, float]:
    snapshot = monitor.snapshot
    values = {name: snapshot.value(name, layer=layer) for name in (*MOVED, "total_entries")}
    # in a layer where nobody tried to store there need be no count of that
    return {"states_stored": number(snapshot.value("states_stored", layer=layer)), **values}


def expected(**given: float) -> dict[str, float]:
    zero = dict.fromkeys(("states_stored", *MOVED, "total_entries"), 0.0)
    return {**zero, **given}


# What is done past a buffer's methods is seen by its net effect: entries are counted, not compared.


def test_other_entries_in_a_new_list_are_seen_by_how_many_they_are() -> None:
    buffer = filled(ListBuffer, 3)
    _, monitor = watched(buffer)
    with monitor.track_performance():
        buffer.store_state(torch.ones(2), 3, key=3)
        buffer.layer_buffers[3] = [KINDS["lists"].entry(torch.ones(2), 3, k) for k in (10, 11)]
    assert moved(monitor) == expected(
        states_stored=1, states_cleared=2, states_loaded=0, total_entries=2
    )


def test_entries_that_stay_in_a_new_list_were_never_gone() -> None:
    buffer = filled(ListBuffer, 4)
    _, monitor = watched(buffer)
    with monitor.track_performance():
        buffer.layer_buffers[3] = buffer.layer_buffers[3][2:]
    with monitor.track_performance():
        buffer.layer_buffers = {layer: list(held) for layer, held in buffer.layer_buffers.items()}
    assert moved(monitor) == expected(states_cleared=2, total_entries=2)


def test_an_entry_replaced_from_outside_changes_no_count() -> None:
    buffer = filled(ListBuffer, 3)
    _, monitor = watched(buffer)
    with monitor.track_performance():
        buffer.layer_buffers[3][1] = KINDS["lists"].entry(torch.ones(2), 3, 10)
    assert moved(monitor) == expected(total_entries=3)


def test_as_many_entries_as_were_taken_out_change_no_count() -> None:
    buffer = filled(ListBuffer, 3)
    _, monitor = watched(buffer)
    with monitor.track_performance():
        pass
    held = buffer.layer_buffers[3]
    with monitor.track_performance():
        held.clear()
        held.extend(KINDS["lists"].entry(torch.ones(2), 3, key) for key in (10, 11, 12))
    assert moved(monitor) == expected(total_entries=3)


def test_an_entry_moved_to_another_layer_leaves_one_and_enters_the_other() -> None:
    buffer = filled(ListBuffer, 3)
    _, monitor = watched(buffer)
    with monitor.track_performance():
        entry = buffer.layer_buffers[3].pop()
        entry.layer_idx = 5
        buffer.layer_buffers[5].append(entry)
    assert moved(monitor, 3) == expected(states_cleared=1, total_entries=2)
    assert moved(monitor, 5) == expected(states_loaded=1, total_entries=1)


@pytest.mark.parametrize("steps_between", [0, 2])
def test_an_object_swapped_out_and_in_again_is_loaded_again(steps_between: int) -> None:
    one, other = filled(ListBuffer, 3), filled(ListBuffer, 2)
    model, monitor = watched(one)
    for buffer in (other, one):
        with monitor.track_performance():
            model.memory = buffer
        for _ in range(steps_between):
            with monitor.track_performance():
                buffer.store_state(torch.ones(2), 3, relevance=0.0)
    assert moved(monitor) == expected(states_cleared=5, states_loaded=5, total_entries=3)
    with monitor.track_performance():
        one.store_state(torch.ones(2), 3, key=50)
        other.store_state(torch.ones(2), 3, key=51)
    assert moved(monitor)["states_stored"] == 1
    monitor.detach()


def test_a_buffer_taken_out_of_the_model_takes_its_entries_along() -> None:
    buffer = filled(ListBuffer, 3)
    model, monitor = watched(buffer)
    with monitor.track_performance():
        model.memory = None
    with monitor.track_performance():
        buffer.store_state(torch.ones(2), 3, key=50)
    assert moved(monitor) == expected(states_cleared=3)


class SizedBuffer(ListBuffer):
    """False while it is empty, and like another with as many entries."""

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return sum(map(len, self.layer_buffers.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SizedBuffer) and len(self) == len(other)


def test_empty_and_equal_buffers_are_buffers_of_their_own() -> None:
    model, monitor = watched([SizedBuffer(4, 9, LAYERS), SizedBuffer(4, 9, LAYERS)])
    with monitor.track_performance():
        for key, buffer in enumerate(model.memory):
            for _ in range(key + 1):
                buffer.store_state(torch.ones(2), 3, key=next(ids))
    assert moved(monitor) == expected(states_stored=3, total_entries=3)
    with monitor.track_performance():
        model.memory[0] = SizedBuffer(4, 9, LAYERS)
    assert moved(monitor) == expected(states_stored=3, states_cleared=1, total_entries=2)


ids = count(1000)


def test_two_buffers_with_the_same_layers_are_added_up() -> None:
    one, other = filled(ListBuffer, 3), filled(CountingBuffer, 1)
    model = Model(one)
    model.more = {"other": other}
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1, "on_monitor_error": "raise"}, model=model
    )
    with monitor.track_performance():
        for key in (50, 51):
            one.store_state(torch.ones(2), 3, key=key)
            other.store_state(torch.ones(2), 3, key=key)
        other.clear_all()
    assert moved(monitor) == expected(
        states_stored=4, eviction_count=1, states_cleared=3, total_entries=4
    )
    assert monitor.snapshot.value("capacity", layer=3) == 8


def test_buffers_that_know_of_no_layers_are_told_apart_by_their_place() -> None:
    model = nn.Module()
    model.net = nn.Module()
    model.net.memories = [SingleBuffer(4, 2), SingleBuffer(4, 3)]
    model.net.memories[0].store_state(torch.ones(2), key=0)
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1, "on_monitor_error": "raise"}, model=model
    )
    with monitor.track_performance():
        for key in (1, 2, 3):
            for memory in model.net.memories:
                memory.store_state(torch.ones(2), key=key)
    snapshot = monitor.snapshot
    paths = ["net.memories.0", "net.memories.1"]
    assert snapshot.layers("states_stored") == dict.fromkeys(paths, 3.0)
    assert snapshot.layers("eviction_count") == {paths[0]: 2.0, paths[1]: 0.0}
    assert snapshot.layers("total_entries") == {paths[0]: 2.0, paths[1]: 3.0}
    assert snapshot.value("capacity") == 5


def test_a_clear_of_everything_is_one_clear_though_it_clears_each_layer() -> None:
    buffer = filled(ListBuffer, 2)
    buffer.store_state(torch.ones(2), 5, key=9)
    _, monitor = watched(buffer)
    with monitor.track_performance():
        buffer.clear_all()
        buffer.clear_layer(5)
    snapshot = monitor.snapshot
    assert snapshot.value("clear_count") == 2
    assert snapshot.value("clear_count", layer=5) == 1
    assert number(snapshot.value("clear_count", layer=3)) == 0
    cleared = snapshot.layers("states_cleared")
    assert {layer: value for layer, value in cleared.items() if value} == {3: 2.0, 5: 1.0}
    assert snapshot.value("eviction_count") == 0  # though each left by `_remove_entry`


def test_polled_counters_that_fell_have_all_begun_anew() -> None:
    """One counter is seen to fall, the other has risen over what it was: they fall together."""
    buffer = CountingBuffer(2, 100, LAYERS)
    for key in range(3):
        buffer.store_state(torch.ones(2), 3, key=key)
    buffer.stats["total_insertions"] = 50  # of which one was dropped in the end
    _, monitor = watched(buffer, wrap=False)
    with monitor.track_performance():
        buffer.clear_all()
        for key in range(10, 14):
            buffer.store_state(torch.ones(2), 3, key=key)
    snapshot = monitor.snapshot
    assert buffer.stats == {"total_insertions": 4, "total_evictions": 2}
    assert snapshot.value("states_stored") == 4
    assert snapshot.value("eviction_count") == 2
    assert snapshot.value("states_cleared") == 2
    assert snapshot.value("total_entries") == 2


def test_polled_counters_of_another_object_are_no_events() -> None:
    model, monitor = watched(filled(CountingBuffer, 3), wrap=False)
    with monitor.track_performance():
        pass
    other = filled(CountingBuffer, 4, limit=2)
    assert other.stats == {"total_insertions": 4, "total_evictions": 2}
    with monitor.track_performance():
        model.memory = other
    snapshot = monitor.snapshot
    assert number(snapshot.value("states_stored")) == 0
    assert number(snapshot.value("eviction_count")) == 0
    assert snapshot.value("total_entries") == 2
    with monitor.track_performance():
        other.store_state(torch.ones(2), 3, key=20)
    assert monitor.snapshot.value("states_stored") == 1
    assert monitor.snapshot.value("eviction_count") == 1


@pytest.mark.parametrize(
    ("make", "wrap", "source"),
    [
        (ListBuffer, True, "wrapped"),
        (CountingBuffer, True, "wrapped"),
        (CountingBuffer, False, "polled"),
        (KINDS["counting slots"].make, True, "polled"),
    ],
)
def test_where_a_number_comes_from_is_said(make: Any, wrap: bool, source: str) -> None:
    buffer = filled(make, 2)
    _, monitor = watched(buffer, wrap=wrap)
    with monitor.track_performance():
        buffer.store_state(torch.ones(2), 3, key=50)
    assert monitor.snapshot.value("states_stored") == 1
    assert monitor.snapshot.source("states_stored").startswith(f"{source}:memory")
