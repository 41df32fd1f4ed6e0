"""`cmr-monitor compare` and `sweep`: exit codes for CI, one line for each job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import HealthStatus, Severity
from cmr_monitor_callbacks.health import Phase
from tests.histories import transition
from tests.runs import BROKEN, command, make, spoil


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "base")
    make(folder / "worse", stored=0.5)
    make(folder / "better", stored=0.95)
    make(folder / "slower", seconds=0.55)
    make(folder / "without", stored=float("nan"))
    return folder


@pytest.mark.parametrize(
    ("run", "options", "code", "said"),
    [
        ("base", [], 0, "0 worse, 0 better"),
        ("worse", [], 1, "storage_efficiency"),
        ("worse", ["--tolerance", "0.5"], 0, "0 worse"),
        ("worse", ["--metric", "step_time"], 0, "0 worse, 0 better, 1 the same"),
        ("better", [], 0, "0 worse, 3 better"),
        ("slower", [], 0, "0 worse"),
        ("slower", ["--time-tolerance", "0.05"], 1, "+10.0%"),
        ("without", [], 1, "missing"),
        ("base", ["--all"], 0, "storage_efficiency"),
    ],
)
def test_compare(runs: Path, run: str, options: list[str], code: int, said: str) -> None:
    done = command("compare", runs / "base", runs / run, *options)
    assert (done.exit_code, done.stderr) == (code, "")
    assert said in done.stdout
    as_json = command("compare", runs / "base", runs / run, *options, "--json")
    found = strict_json(as_json.stdout)
    assert as_json.exit_code == code
    assert any(d["verdict"] in ("regression", "missing") for d in found) == bool(code)


def test_numbers_that_the_base_does_not_have_are_listed(runs: Path) -> None:
    """A new number is neither better nor worse; a base without any is nothing to compare with."""
    done = command("compare", runs / "without", runs / "base")
    assert (done.exit_code, done.stderr) == (0, "")
    listed = [line.split() for line in done.stdout.splitlines() if "storage_efficiency" in line]
    assert [(row[1], row[-1]) for row in listed] == [("–", "new"), ("4", "new"), ("6", "new")]
    assert "0 worse, 0 better, 2 the same, 3 new" in done.stdout
    found = strict_json(command("compare", runs / "without", runs / "base", "--json").stdout)
    new = [(d["layer"], d["base"], d["run"], d["change"]) for d in found if d["verdict"] == "new"]
    assert new == [(None, None, 0.8, None), (4, None, 0.8, None), (6, None, 0.8, None)]
    alone = command("compare", runs / "without", runs / "base", "--metric", "storage_efficiency")
    assert alone.exit_code == 2 and "there is nothing to compare" in alone.stderr


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("is_base", [True, False])
def test_compare_with_what_cannot_be_used(
    tmp_path: Path, runs: Path, kind: str, is_base: bool
) -> None:
    broken = spoil(tmp_path / "run", kind).parent
    pair = (broken, runs / "base") if is_base else (runs / "base", broken)
    done = command("compare", *pair, "--json")
    assert done.exit_code == 2 and done.stdout == ""
    assert BROKEN[kind] in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metric", "step_tme"], "--metric 'step_tme' matches no number; did you mean 'step_t"),
        (["--metric", "states_stored"], "there is nothing to compare"),
        (["--tail", "2"], "--tail"),
    ],
)
def test_compare_with_wrong_options(runs: Path, options: list[str], said: str) -> None:
    done = command("compare", runs / "base", runs / "worse", *options)
    assert done.exit_code == 2 and said in " ".join(done.stderr.split())


def job(folder: Path, number: int, *overrides: str) -> Path:
    """What Hydra leaves of a multirun's job."""
    where = folder / str(number)
    (where / ".hydra").mkdir(parents=True)
    lines = "".join(f"- {one}\n" for one in ("trainer=fast", *overrides))
    (where / ".hydra" / "overrides.yaml").write_text(lines)
    return where


def test_a_multirun(tmp_path: Path) -> None:
    for number, stored in ((0, 0.8), (10, 0.8), (2, 0.6)):
        where = job(tmp_path, number, f"model.capacity={number}", "x=[red]")
        make(where / "lightning_logs" / "version_0", 5, stored=stored)
    job(tmp_path, 3, "model.capacity=3")
    spoil(job(tmp_path, 4, "model.capacity=4"), "corrupt")
    done = command("sweep", tmp_path, COLUMNS="200")
    assert done.exit_code == 1 and done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()][2:]
    assert [line[0] for line in lines] == [
        *("0/lightning_logs/version_0", "2/lightning_logs/version_0"),
        *("3", "4", "10/lightning_logs/version_0", "4:"),
    ]
    assert "capacity=2" in "".join(lines[1]) and "trainer=fast" not in done.stdout
    assert "no history" in " ".join(lines[2])
    assert "unusable" in lines[3] and "cannot be read" in " ".join(lines[5])
    found = strict_json(command("sweep", tmp_path, "--json").stdout)
    assert [row["health"] for row in found] == [
        *("healthy", "healthy", "no history", "unusable", "healthy")
    ]
    assert len({tuple(row) for row in found}) == 1, "each row has the same keys"
    assert found[2]["overrides"] == ["trainer=fast", "model.capacity=3"]


def test_exit_codes_of_a_sweep(tmp_path: Path) -> None:
    make(tmp_path / "a", 3)
    job(tmp_path, 1)
    assert command("sweep", tmp_path).exit_code == 0, "a job that has not begun is no trouble"
    fired = transition("refused", 2, Phase.FIRING, layer=4, severity=Severity.CRITICAL)
    make(tmp_path / "b", 3, status=HealthStatus.CRITICAL, transitions=[fired])
    done = command("sweep", tmp_path)
    assert done.exit_code == 1 and "refused" in done.stdout
    assert command("sweep", tmp_path / "nowhere").exit_code == 2
    (tmp_path / "empty").mkdir()
    done = command("sweep", tmp_path / "empty")
    assert done.exit_code == 2 and "there is no history.sqlite" in done.stderr


def test_a_sweep_in_a_narrow_terminal_and_with_damaged_overrides(tmp_path: Path) -> None:
    make(job(tmp_path, 1, "a=1"), 3)
    make(job(tmp_path, 2, "a=2"), 3)
    (tmp_path / "2" / ".hydra" / "overrides.yaml").write_bytes(b"\xff{[")
    done = command("sweep", tmp_path, COLUMNS="40")
    assert done.exit_code == 0 and "in a wider terminal:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 40
