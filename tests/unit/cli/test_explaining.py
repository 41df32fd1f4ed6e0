"""`cmr-monitor explain`: numbers, layers, rules, and why there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmr_monitor_callbacks.health import Phase
from tests.histories import end, transition
from tests.runs import begin, command, make, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("run"), 20)


def explained(run: Path, name: str) -> str:
    done = command("explain", run, name)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("storage_efficiency", "storage_efficiency 80 % at step 19"),
        ("storage_efficiency", "storage_efficiency/layer_06 80 % at step 19"),
        ("total_stored", "metric states_stored"),
        ("cmr_capture/storage_efficiency/layer_04", "metric storage_efficiency/layer_04 meaning"),
        ("storage_efficiency/layer_05", "layer_05 has no data of it; did you mean 'layer_06'"),
        ("retrieval_quality/layer_05", "The run has no layer_05; its layers: layer_04, layer_06."),
        ("retrieval_quality", "Nothing in the model tells of retrieval: hold a CMRProbe"),
        ("straggler_ratio", "It compares ranks"),
    ],
)
def test_numbers(run: Path, name: str, said: str) -> None:
    if name == "total_stored":
        name = "states_stored"
    assert said in explained(run, name)


def test_one_layer_alone(run: Path) -> None:
    assert "layer_06" not in explained(run, "storage_efficiency/layer_04")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refused", "its condition does not hold: storage_efficiency/layer_04 is 0.8, which is"),
        ("refused", "not < 0.5. It has never been open."),
        ("refused", "fires warning where < 0.5 for 2 windows when always"),
        ("slow", "step_time is 0.5, which is not > 1. It has never been open."),
        ("off", "It is switched off: its enabled is false."),
        ("unfed", "It matches no number of this run: Nothing in the model tells of retrieval"),
        ("of_ranks", "It matches no number: it is about ranks"),
    ],
)
def test_rules_that_do_not_fire_say_why(run: Path, name: str, said: str) -> None:
    assert said in explained(run, name)


def test_a_rule_that_fires_is_pending_or_has_fired(tmp_path: Path) -> None:
    changes = [
        transition("refused", 5, Phase.FIRING, layer=4),
        transition("refused", 5, Phase.PENDING, layer=6, severity=None),
        transition("slow", 5, Phase.INACTIVE, Phase.FIRING, severity=None),
        transition("step_time:>", 5, Phase.FIRING),
    ]
    store = begin(tmp_path)
    write(store, range(6), stored=0.3, transitions=changes)
    text = explained(tmp_path, "refused")
    assert "It is open: firing (warning) since step 5: refused <is> 25%; pending since" in text
    assert "(it fires when its condition has held for 2 windows)" in text
    assert "Last: resolved at step 5" in explained(tmp_path, "slow")
    assert "made it It is open: firing (warning)" in explained(tmp_path, "step_time:>")
    end(store)
    assert "It was open when the run ended: firing" in explained(tmp_path, "refused")


def test_a_condition_that_has_not_held_for_long_enough(tmp_path: Path) -> None:
    make(tmp_path, 1, stored=0.3)
    text = explained(tmp_path, "refused")
    assert "though storage_efficiency/layer_04 is 0.3 (< 0.5): it has not held for long" in text


def test_numbers_that_stopped(tmp_path: Path) -> None:
    store = begin(tmp_path)
    write(store, range(5))
    write(store, range(5, 8), stored=float("nan"))
    end(store)
    assert "It had data last at step 4, and has none since then." in explained(
        tmp_path, "storage_efficiency"
    )
    assert "the newest window has no data, and without data it stays as it was" in explained(
        tmp_path, "refused"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refusd", "did you mean 'refused'?"),
        ("storage_eficiency", "did you mean 'storage_efficiency'"),
        ("storage_eficiency/layer_04", "did you mean 'storage_efficiency'"),
        ("zzz", "docs/metrics.md lists the numbers; rules: refused, slow"),
        ("[red]x[/]", "'[red]x[/]' is no number and no rule of this run"),
    ],
)
def test_unknown_names(run: Path, name: str, said: str) -> None:
    done = command("explain", run, name)
    assert done.exit_code == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["refused", "storage_efficiency/layer_04", "retrieval_quality"])
def test_json(run: Path, name: str) -> None:
    done = command("explain", run, name, "--json")
    found = json.loads(done.stdout)
    assert found["name"] == name and set(found) == {"name", "kind", "facts", "series", "verdict"}
