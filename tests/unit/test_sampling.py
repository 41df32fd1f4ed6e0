"""Which steps are timed: the arithmetic, and how it follows what the monitor costs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from cmr_monitor_callbacks.sampling import CALM, MOST, Sampling, every, sampled_sources

BUDGET = 0.01
HIGH, FAIR, LOW = 0.03, 0.006, 0.001


def adaptive(start: int = 1) -> Sampling:
    return Sampling(start, adaptive=True, budget=BUDGET)


def play(sampling: Sampling, fractions: Iterable[float]) -> list[int]:
    """What N is after each window, where windows end one by one and are heard of at once."""
    found = []
    for fraction in fractions:
        begin = sampling._since  # each window has been under this N from its start
        sampling.hear(fraction, begin)
        sampling.change(at=begin + 64)
        found.append(sampling.every)
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 64])
@pytest.mark.parametrize("window", [1, 5, 10, 50])
def test_a_closer_look_is_the_last_timed_step_of_its_window(n: int, window: int) -> None:
    sampling, steps = Sampling(n), range(400)
    timed = [step for step in steps if sampling.takes(step)]
    assert timed == list(range(n - 1, 400, n))
    last: dict[int, int] = {}
    for step in timed:
        last[step // window] = step
    # of the last window not all steps were played
    known = {w: s for w, s in last.items() if (w + 1) * window <= 400 - n}
    looked = {step // window: step for step in steps if sampling.takes_last(step, window)}
    assert {w: s for w, s in looked.items() if w in known} == known


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("before", [-1, 4, 9, 10])
def test_where_nobody_knows_the_last_step_the_first_timed_one_is_looked_at(
    n: int, before: int
) -> None:
    sampling = Sampling(n)
    looked = [step for step in range(before + 1, 60) if sampling.takes_first(step, before)]
    assert looked == [next(s for s in range(before + 1, 60) if (s + 1) % n == 0)]


def test_without_adaptive_nothing_changes() -> None:
    assert play(Sampling(3, budget=BUDGET), [0.9] * 10) == [3] * 10


def test_it_doubles_while_over_the_budget_up_to_64() -> None:
    assert play(adaptive(), [HIGH] * 8) == [2, 4, 8, 16, 32, 64, 64, 64]
    assert play(adaptive(10), [HIGH] * 4) == [20, 40, 40, 40], "not past 64"
    assert play(adaptive(100), [HIGH] * 2) == [100, 100], "what was asked for stays"
    assert MOST == 64


def test_it_halves_when_it_was_cheap_for_some_windows_down_to_what_was_asked_for() -> None:
    sampling = adaptive(2)
    assert play(sampling, [HIGH, HIGH]) == [4, 8]
    after = play(sampling, [LOW] * (3 * CALM))
    assert after == [8] * (CALM - 1) + [4] * CALM + [2] * (CALM + 1)


def test_what_is_neither_much_nor_little_keeps_it_and_begins_the_count_anew() -> None:
    sampling = adaptive()
    play(sampling, [HIGH])
    nearly = [LOW] * (CALM - 1)
    assert set(play(sampling, [*nearly, FAIR, *nearly, FAIR])) == {2}
    assert set(play(sampling, [BUDGET, BUDGET / 4] * CALM)) == {2}, "the limits are not passed"


def test_no_flapping_where_each_halving_is_too_early() -> None:
    """A monitor that is cheap with every second step timed and dear with every step."""
    sampling, changes, n = adaptive(), [], 1
    for window in range(2000):
        now = play(sampling, [HIGH if n == 1 else LOW])[0]
        if now != n:
            changes.append(window)
            n = now
    waits = [b - a for a, b in zip(changes[::2], changes[1::2], strict=False)]
    assert waits[:5] == [CALM, 2 * CALM, 4 * CALM, 8 * CALM, 16 * CALM]
    assert waits == sorted(waits)
    assert len(changes) < 25


def test_a_window_that_began_before_the_change_says_nothing_of_it() -> None:
    """With several ranks a window's numbers come when the next has begun."""
    sampling = adaptive()
    sampling.hear(HIGH, begin=-1)
    assert sampling.change(at=9) is not None
    sampling.hear(HIGH, begin=4)
    assert sampling.change(at=14) is None
    sampling.hear(HIGH, begin=9)
    made = sampling.change(at=19)
    assert made is not None and (made.before, made.after) == (2, 4)


@pytest.mark.parametrize("fraction", [math.nan, -math.inf])
def test_what_is_not_known_changes_nothing(fraction: float) -> None:
    assert play(adaptive(), [fraction] * 9) == [1] * 9


def test_a_checkpoint_goes_on_with_what_was_chosen_if_that_is_still_allowed() -> None:
    sampling = adaptive(4)
    sampling.resume(16)
    assert sampling.every == 16
    sampling.forget()
    assert sampling.every == 4
    sampling.resume(2)
    assert sampling.every == 4, "the settings ask for more by now"
    fixed = Sampling(3)
    fixed.resume(16)
    assert fixed.every == 3


@pytest.mark.parametrize(
    ("n", "text"),
    [(1, "every step"), (3, "every 3rd step"), (11, "every 11th step"), (21, "every 21st step")],
)
def test_steps_are_named(n: int, text: str) -> None:
    assert every(n) == text


def test_only_what_is_sampled_says_so() -> None:
    given = {
        "capture": "wrapped:net.buffer.store_state",
        "avg_capture_time": "wrapped:net._capture",
        "retrieval": "explicit:net.probe",
        "reconstruction": "hook:net.reconstructor.forward",
        "output_entropy": "hook:net.forward",
        "timing": "timer:steps",
    }
    assert sampled_sources(given, 1) is given
    found = sampled_sources(given, 3)
    added = {name: text for name, text in found.items() if given.get(name) != text}
    assert added == {
        "avg_capture_time": "wrapped:net._capture, every 3rd step",
        "capture_time": "wrapped:net._capture, every 3rd step",
        "avg_retrieval_time": "explicit:net.probe, every 3rd step",
        "retrieval_time": "explicit:net.probe, every 3rd step",
        "avg_reconstruction_time": "hook:net.reconstructor.forward, every 3rd step",
        "reconstruction_time": "hook:net.reconstructor.forward, every 3rd step",
        "reconstruction_similarity": "hook:net.reconstructor.forward, every 3rd step",
        "output_entropy": "hook:net.forward, every 3rd step",
    }
