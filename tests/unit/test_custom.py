"""A user's own numbers: names, values, and what becomes one of many."""

from __future__ import annotations

import math
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch

from cmr_monitor_callbacks import ConfigError
from cmr_monitor_callbacks.custom import (
    MOST,
    Tracked,
    as_table,
    check_name,
    from_table,
    merged,
    whole_of,
)
from cmr_monitor_callbacks.locks import Lock
from cmr_monitor_callbacks.recording.tracking import Tracking


def make(now: float = 7.0) -> Tracking:
    return Tracking(Lock(), lambda: now)


def window(tracking: Tracking) -> dict[str, Tracked]:
    tracking.fold()
    tracking.close()
    return tracking.finish()


def by_hand(samples: list[tuple[float, float]]) -> tuple[float, ...]:
    values = [value for value, _ in samples]
    newest = max(range(len(samples)), key=lambda i: (samples[i][1], i))
    last, time = samples[newest]
    return float(len(values)), math.fsum(values), min(values), max(values), last, time


@pytest.mark.parametrize("seed", range(5))
def test_any_split_over_windows_and_ranks_gives_the_one_process_answer(seed: int) -> None:
    rng = random.Random(seed)
    # times differ: which is the last would else hang on the split
    samples = [(rng.uniform(-9, 9), float(t)) for t in rng.sample(range(1000), 40)]
    expected = by_hand(samples)
    run: dict[str, Tracked] = {}
    names = ("other", "grad_norm")
    for _ in range(3):
        tables = []
        for _ in range(4):
            one = make()
            for _ in range(rng.randrange(6)):
                if samples:
                    one.add("grad_norm", *samples.pop())
            one.fold()
            tables.append(one.send(names))
        run = merged(run, from_table(whole_of(np.stack(tables)), names))
    rest = make()
    for sample in samples:
        rest.add("grad_norm", *sample)
    run = merged(run, window(rest))
    assert list(run) == ["grad_norm"]
    assert run["grad_norm"] == pytest.approx(expected, rel=1e-12)
    table = as_table(run, names)
    assert from_table(table, names) == run and table.shape == (2, 6)


@pytest.mark.parametrize(
    "value", [3, np.float32(3), np.int64(3), torch.tensor(3), torch.tensor(3.0, requires_grad=True)]
)
def test_numbers_of_all_kinds(value: Any) -> None:
    tracking = make()
    tracking.add("a", value)
    assert window(tracking) == {"a": Tracked(1.0, 3.0, 3.0, 3.0, 3.0, 7.0)}


def test_a_tensor_is_read_when_it_is_given() -> None:
    tracking, value = make(), torch.tensor(1.0)
    tracking.add("a", value)
    value += 5
    assert window(tracking)["a"].mean == 1.0


@pytest.mark.parametrize(
    ("value", "timestamp", "reason"),
    [
        (math.nan, None, "not finite"),
        (-math.inf, None, "not finite"),
        (torch.tensor(math.nan), None, "not finite"),
        (1e301, None, "out of range"),
        (10**400, None, "out of range"),
        ("1.0", None, "not a number"),
        (None, None, "not a number"),
        (True, None, "not a number"),
        (torch.tensor(True), None, "not a number"),
        (1j, None, "not a number"),
        (torch.ones(1), None, "not a plain tensor of no dimension"),
        (torch.ones((), device="meta"), None, "reading it would wait for the device"),
        (1.0, "now", "given with a timestamp that is no time since 1970: 'now'"),
        (1.0, -1.0, "no time since 1970"),
        (1.0, math.nan, "no time since 1970"),
        (1.0, math.inf, "no time since 1970"),
    ],
)
def test_what_is_not_taken(
    value: Any, timestamp: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = make()
    for _ in range(3):
        tracking.add("a", value, timestamp)
    refused = tracking.fold()
    assert [(s.component, s.field, s.column) for s in refused] == [("custom", "a", 0)] * 3
    assert all(reason in sample.reason for sample in refused)
    assert window(tracking) == {} and tracking.fold() == []
    assert caplog.text.count("was not taken") == 1 and reason in caplog.text


@pytest.mark.parametrize("name", ["", "a/b", "1a", "a b", "custom/a", "a" * 101, 3, None, [1], "ä"])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(ConfigError, match="name must be a letter and up to 99"):
        make().add(name, 1.0)


@pytest.mark.parametrize(
    ("name", "feeds"),
    [
        (
            "states_stored",
            r"cmr_capture/states_stored\), fed by CMRProbe.capture\(\) or record",
        ),
        ("total_captures", r"cmr_capture/states_captured\), fed by CMRProbe.capture\(\)"),
        ("total_entries", r"fed by CMRProbe.buffer\(\)"),
        ("step_time", r"fed by track_performance\(\)"),
        ("score", "fed by the monitor itself"),
    ],
)
def test_names_of_the_catalogue_say_what_feeds_them(name: str, feeds: str) -> None:
    with pytest.raises(ConfigError, match=feeds):
        check_name(name)


def test_a_name_too_many_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tracking = make()
    for i in range(MOST + 3):
        tracking.add(f"a{i}", 1.0)
        tracking.add(f"a{i}", 1)
    assert len(tracking.names) == MOST
    assert len(tracking.fold()) == 6
    assert len(window(tracking)) == MOST
    assert caplog.text.count("a name too many: a run has 64 at most") == 1


def test_names_that_the_ranks_had_no_room_for_are_counted() -> None:
    tracking = make()
    for _ in range(3):
        tracking.add("mine", 1.0)
    tracking.fold()
    table = tracking.send([f"a{i}" for i in range(MOST)])
    assert not table[:, 0].any() and not tracking.pending
    assert [sample.field for sample in tracking.fold()] == ["mine"] * 3


def test_what_was_not_agreed_on_waits() -> None:
    tracking = make()
    tracking.add("old", 1.0)
    tracking.add("new", 2.0)
    tracking.fold()
    assert tracking.send(("old",))[:, 1].tolist() == [1.0]
    tracking.finish(from_table(as_table({"old": Tracked.of(1.0, 7.0)}, ("old",)), ("old",)))
    tracking.add("new", 4.0)
    tracking.fold()
    assert tracking.send(("old", "new"))[:, :2].tolist() == [[0.0, 0.0], [2.0, 6.0]]


def test_the_last_is_the_newest_by_its_time() -> None:
    tracking = make()
    for value, time in ((1.0, 5.0), (2.0, 9.0), (3.0, 9.0), (4.0, 8.0)):
        tracking.add("a", value, time)
    found = window(tracking)["a"]
    assert (found.last, found.time, found.samples) == (3.0, 9.0, 4.0)


def test_threads_lose_no_sample_while_windows_end() -> None:
    tracking, threads, each = make(), 4, 3000
    begun = threading.Barrier(threads + 1)

    def work(number: int) -> None:
        begun.wait()
        for i in range(each):
            tracking.add(f"a{(i + number) % 10}", 1.0)

    started = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for thread in started:
        thread.start()
    begun.wait()
    while any(thread.is_alive() for thread in started):
        window(tracking)
    window(tracking)
    assert sum(found.samples for found in tracking.run.values()) == threads * each


def test_a_state_is_plain_and_goes_on() -> None:
    one = make()
    one.add("a", 1.0)
    window(one)
    one.add("a", 3.0)
    one.add("b", 5.0)
    one.fold()
    state = one.state(alone=True)
    assert state == {
        "run": {"a": [1.0, 1.0, 1.0, 1.0, 1.0, 7.0]},
        "window": {
            "a": [1.0, 3.0, 3.0, 3.0, 3.0, 7.0],
            "b": [1.0, 5.0, 5.0, 5.0, 5.0, 7.0],
        },
    }
    other = make()
    other.add("z", 1.0)
    other.load(state, first=True)
    assert (other.names, other.pending) == (("z", "a", "b"), True)
    window(other)
    assert {name: found.mean for name, found in other.run.items()} == {"a": 2.0, "b": 5.0}
    assert one.state(alone=False)["window"] == {}
