"""Checkpoints of several ranks, resumed by as many, by fewer and by more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.distributed.fitting import STRICT, AtSteps, added, fitter, logger, module, totals
from tests.distributed.processes import Rank, free_port, start
from tests.integration.event_files import series
from tests.integration.tap import COUNTED
from tests.models import loader

pytestmark = pytest.mark.distributed

SAVED = (13, 15, 19)
"""Steps done: after a window was taken, at a window's end, with a window under way."""
# the window of steps 10..14 is taken at step 18, or by the checkpoint; a step is not in it
SHARED_UNTIL = {13: 9, 15: 14, 19: 14}
STEPS = 22
# the resumed model's stores hold what the checkpoint had, which the new taps do not know
NOT_OF_THE_STORE = (*COUNTED[:5], "total_retrievals", "reconstruction_calls")
Said = dict[str, Any]


class _Save(pl.Callback):
    """Checkpoints after these steps."""

    def __init__(self, root: Path, callback: CMRMonitorCallback) -> None:
        self.root, self.callback = root, callback
        self.counters: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step in SAVED:
            trainer.save_checkpoint(self.root / f"{trainer.global_step}.ckpt")
            self.counters[trainer.global_step] = _counters(self.callback)


def _counters(callback: CMRMonitorCallback) -> dict[str, float]:
    names = (*COUNTED, "total_entries", "capacity", "total_forward_time", "tokens", "error_count")
    return {name: callback.snapshot.value(name) for name in names}


class _AtStart(pl.Callback):
    """What is known when training goes on."""

    def __init__(self, callback: CMRMonitorCallback) -> None:
        self.callback = callback
        self.said: Said = {}

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.said = {
            "totals": totals(self.callback),
            "counters": _counters(self.callback),
            "score": float(trainer.callback_metrics["cmr_health/score"]),
            "events": self.callback.snapshot.value("events"),
        }


def _first(rank: Rank, port: int) -> Said:
    """A run that saves checkpoints, of as many ranks as there are."""
    callback = CMRMonitorCallback(monitoring=STRICT)
    model, tap = module()
    steps, save = AtSteps(tap), _Save(rank.folder, callback)
    callbacks = [callback, steps, save]
    fit = fitter(rank, port, rank.folder / "run", callbacks, logger=logger(rank.folder / "run"))
    fit.fit(model, loader(STEPS * rank.world))
    return {"after": steps.after, "counters": save.counters, "totals": totals(callback)}


def _resumed(rank: Rank, port: int, saved: Path) -> dict[int, Said]:
    """A run on from each checkpoint."""
    found = {}
    for step in SAVED:
        callback = CMRMonitorCallback(monitoring=STRICT)
        begun = _AtStart(callback)
        model, tap = module()
        steps, root = AtSteps(tap), rank.folder / f"from{step}"
        callbacks = [callback, steps, begun]
        fit = fitter(rank, port, root, callbacks, logger=logger(root))
        fit.fit(model, loader(STEPS * rank.world), ckpt_path=saved / f"{step}.ckpt")
        found[step] = {
            "begun": begun.said,
            "after": steps.after,
            "totals": totals(callback),
            "world": callback.snapshot.world_size,
            "ranks": callback.snapshot.ranks("capture_calls", over="run"),
            "entries": {b.store.layer: float(b.store.entries) for b in model.blocks},
        }
        again = callback.state_dict()
        torch.save(again, rank.folder / f"state{rank.rank}.pt")
        torch.load(rank.folder / f"state{rank.rank}.pt", weights_only=True)
    return found


def _good(outcomes: list[Any]) -> list[Any]:
    for outcome in outcomes:
        assert outcome.code == 0, outcome.output
    return outcomes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, list[Said]]]:
    """Runs of one rank and of two: where they are, and what each rank said."""
    found = {}
    for world in (1, 2):
        folder = tmp_path_factory.mktemp("first") / str(world)
        found[world] = folder, [o.result for o in _good(start(_first, world, folder, free_port()))]
    return found


@pytest.fixture(scope="module", params=[(2, 2), (2, 1), (1, 2)], ids=lambda p: f"{p[0]} to {p[1]}")
def resumed(
    request: pytest.FixtureRequest,
    runs: dict[int, tuple[Path, list[Said]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[Said], list[Any], Path]:
    """What the first run said, and what became of the ranks that resumed it."""
    before, after = request.param
    folder, first = runs[before]
    where = tmp_path_factory.mktemp("resumed") / f"{before}{after}"
    return first, _good(start(_resumed, after, where, free_port(), folder)), where


Resumed = tuple[list[Said], list[Any], Path]


@pytest.mark.parametrize("step", SAVED)
def test_the_totals_of_the_last_shared_window_are_kept(resumed: Resumed, step: int) -> None:
    first, outcomes, _ = resumed
    # one process has the window begun in its checkpoint as well
    until = SHARED_UNTIL[step] if len(first) > 1 else step - 1
    taps = [one["after"][until] for one in first]
    for outcome in outcomes:
        begun = outcome.result[step]["begun"]["totals"]
        for name in (*COUNTED, "total_entries"):
            known = added(taps, name)
            if len(first) == 1 and len(outcomes) > 1 and outcome is not outcomes[0]:
                continue  # the window begun goes to rank 0 alone
            assert begun[name] == (sum(known.values()), known), name


@pytest.mark.parametrize("step", SAVED)
def test_the_rest_is_added_once(resumed: Resumed, step: int) -> None:
    first, outcomes, folder = resumed
    until = SHARED_UNTIL[step] if len(first) > 1 else step - 1
    taps = [one["after"][until] for one in first]
    rest = [outcome.result[step]["after"] for outcome in outcomes]
    last = max(rest[0])
    for outcome in outcomes:
        said = outcome.result[step]
        assert said["world"] == len(outcomes)
        for name in NOT_OF_THE_STORE:
            known, more = added(taps, name), added([one[last] for one in rest], name)
            expected = {layer: known[layer] + more[layer] for layer in known}
            assert said["totals"][name] == (sum(expected.values()), expected), name
        entries = added([{"": o.result[step]["entries"]} for o in outcomes], "")
        assert said["totals"]["total_entries"] == (sum(entries.values()), entries)
    logged = series(folder / f"from{step}")["cmr_capture/states_stored"]
    assert min(logged) > (SHARED_UNTIL[step] if len(first) > 1 else step - 2)
    assert logged[max(logged)] == outcomes[0].result[step]["totals"]["states_stored"][0]
    values = [logged[at] for at in sorted(logged)]
    assert values == sorted(values)


@pytest.mark.parametrize("step", SAVED)
def test_no_counter_jumps_where_training_goes_on(resumed: Resumed, step: int) -> None:
    first, outcomes, _ = resumed
    if len(first) == 1:
        pytest.skip("the window begun comes on top: see the taps")
    then = first[0]["counters"][step]
    for outcome in outcomes:
        assert outcome.result[step]["begun"]["counters"] == pytest.approx(
            then, rel=1e-12, nan_ok=True
        )


def test_steps_between_are_reported_by_rank_0(resumed: Resumed) -> None:
    first, outcomes, _ = resumed
    said = [[m for m in o.logs if "are not in the totals" in m] for o in outcomes]
    if len(first) == 1:
        assert said == [[]] * len(outcomes)
        return
    expected = [
        f"steps {SHARED_UNTIL[step] + 1} to {step - 1} lie between"
        for step in SAVED
        if SHARED_UNTIL[step] + 1 <= step - 1
    ]
    assert [text[: len(e)] for text, e in zip(said[0], expected, strict=True)] == expected
    assert said[1:] == [[]] * (len(outcomes) - 1)


def test_by_rank_counts_since_the_number_of_ranks_changed(resumed: Resumed) -> None:
    first, outcomes, _ = resumed
    if len(outcomes) == 1:
        pytest.skip("one process has no ranks")
    for step in SAVED:
        rest = [o.result[step]["after"] for o in outcomes]
        last = max(rest[0])
        since = {r: sum(one[last]["capture_calls"].values()) for r, one in enumerate(rest)}
        if len(first) == len(outcomes):
            until = SHARED_UNTIL[step]
            for rank, one in enumerate(first):
                since[rank] += sum(one["after"][until]["capture_calls"].values())
        for outcome in outcomes:
            found = outcome.result[step]["ranks"]
            if len(first) == len(outcomes):
                assert found == since
            else:  # the window begun was rank 0's
                assert found[1] == since[1]
                assert found[0] >= since[0]
