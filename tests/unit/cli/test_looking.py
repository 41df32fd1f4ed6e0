"""`cmr-monitor status` and `watch --once`, and how every command finds a run or says why not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cmr_monitor_callbacks import HealthStatus, Severity
from cmr_monitor_callbacks.cli import looking
from cmr_monitor_callbacks.cli.views import ago
from cmr_monitor_callbacks.health import Phase
from cmr_monitor_callbacks.history import schema
from tests.histories import START, end, transition
from tests.runs import BROKEN, NOBODY, begin, command, in_a_child, make, spoil, write

READERS: dict[str, list[str]] = {
    "status": [],
    "watch": ["--once"],
    "report": [],
    "diagnose": [],
    "export": ["--to", "out"],
    "explain": ["storage_efficiency"],
    "prune": ["--max-age", "1d"],
    "ack": ["refused"],
}


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_status_of_a_good_run(tmp_path: Path) -> None:
    done = command("status", make(tmp_path))
    assert (done.exit_code, done.stderr) == (0, "")
    for part in ("healthy (100 of 100)", "ended", "step 19", "20 windows", "80 %", "No alert was"):
        assert part in done.stdout
    assert str(tmp_path) in done.stdout.replace("\n", "")


def test_status_of_a_critical_run_exits_with_1(tmp_path: Path) -> None:
    fired = transition("refused", 19, Phase.FIRING, layer=4, severity=Severity.CRITICAL)
    make(tmp_path, status=HealthStatus.CRITICAL, transitions=[fired])
    done = command("status", tmp_path)
    assert done.exit_code == 1
    assert "critical (30 of 100)" in done.stdout
    assert "critical refused since step 19: refused <is> 25%" in done.stdout


def test_json_has_no_nan_and_the_same_exit_code(tmp_path: Path) -> None:
    make(tmp_path, 3, stored=float("nan"), status=HealthStatus.CRITICAL)
    done = command("status", tmp_path, "--json")
    found = strict_json(done.stdout)
    assert done.exit_code == 1 and found["system_health"] == "critical"
    assert "storage_efficiency" not in found["metrics"]


def test_the_newest_version_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (9, 10, 2):
        store = make(tmp_path / "logs" / f"version_{number}", number) / "history.sqlite"
        os.utime(store, (START + number, START + number))
    assert "version_10" in command("status", tmp_path).stdout
    assert "version_10" in command("status", tmp_path / "logs").stdout
    assert "step 1 " in command("status", tmp_path / "logs" / "version_2").stdout
    assert "step 8 " in command("status", tmp_path / "logs/version_9/history.sqlite").stdout
    monkeypatch.chdir(tmp_path)
    assert command("status").stdout.startswith("logs/version_10\n")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    monkeypatch.chdir(nothing)
    done = command("status")
    assert done.exit_code == 2 and "there is no history.sqlite in or under" in done.stderr


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_a_store_that_cannot_be_used_is_one_sentence(tmp_path: Path, name: str, kind: str) -> None:
    path = spoil(tmp_path / "run", kind)
    before = path.read_bytes() if path.exists() else None
    options = [o if o != "out" else str(tmp_path / "out") for o in READERS[name]]
    done = command(name, path.parent, *options)
    assert done.exit_code == 2, done.output
    assert BROKEN[kind] in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == "" and isinstance(done.exception, SystemExit)
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("name", READERS)
def test_a_store_that_another_process_locks(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY", 0.05)
    path = make(tmp_path) / "history.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        done = command(name, tmp_path, *READERS[name])
    finally:
        other.close()
    assert done.exit_code == 2 and "is locked by another process" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_without_permission() -> None:
    folder = Path("/tmp") / f"cmr-cli-{os.getpid()}"
    make(folder / "run", 3)
    folder.chmod(0o755)
    (folder / "run").chmod(0o700)
    said = folder / "said"
    said.touch(mode=0o666)
    said.chmod(0o666)

    def as_nobody() -> bool:
        os.setuid(NOBODY)
        codes = []
        for place in (folder, folder / "run", folder / "run" / "history.sqlite"):
            done = command("status", place)
            codes.append(done.exit_code)
            with said.open("a") as file:
                file.write(done.stderr or repr(done.exception))
        return codes != [2, 2, 2]

    try:
        code = in_a_child(as_nobody)
        lines = said.read_text().splitlines()
        assert code == 0, lines
        assert len(lines) == 3 and all("Permission denied" in line for line in lines)
    finally:
        shutil.rmtree(folder)


def test_a_run_that_has_ended_no_window(tmp_path: Path) -> None:
    store = begin(tmp_path)
    for name, options in READERS.items():
        done = command(name, tmp_path, *[o.replace("out", str(tmp_path / "o")) for o in options])
        expected = {"ack": 2, "diagnose": 2}.get(name, 0)
        assert done.exit_code == expected, (name, done.output)
        assert "Traceback" not in done.output
    assert "no window yet" in command("status", tmp_path).stdout
    end(store)


def test_a_run_that_goes_on_and_one_that_died_say_how_old_they_are(tmp_path: Path) -> None:
    store = begin(tmp_path / "on")
    write(store, range(3))
    shown = command("status", tmp_path / "on").stdout
    assert "running" in shown and "last window" in shown
    end(store)

    def dies() -> bool:
        write(begin(tmp_path / "died"), range(3))
        return False

    assert in_a_child(dies) == 0
    shown = command("status", tmp_path / "died").stdout
    assert " died " in shown and "last window" in shown
    assert ago(0) == "0 s" and ago(130) == "2 min"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--range", "5x"], "--range must be a length of time such as 90s"),
        (["--range", "3 windows"], "--range must be a length of time such as 90s"),
        (["--session", "7"], "--session must be one of 1, got 7"),
        (["--sesion", "1"], "No such option"),
        (["a", "b"], "unexpected extra argument"),
    ],
)
def test_wrong_arguments_exit_with_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = command("status", make(tmp_path, 2), *arguments)
    assert done.exit_code == 2 and said in " ".join(done.stderr.split())


def test_a_resumed_run_is_one_and_can_be_taken_apart(tmp_path: Path) -> None:
    make(tmp_path, 5)
    store = begin(tmp_path)
    write(store, range(3, 9))
    end(store)
    assert "step 8  9 windows" in command("status", tmp_path).stdout
    first = strict_json(command("status", tmp_path, "--session", "1", "--json").stdout)
    assert first["range"]["last_step"] == 4


def test_names_with_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    layers = ("[red]", "[/]", ":warning:")
    folder = tmp_path / "[bold]run[x]"
    fired = transition("[red]rule[/]", 4, Phase.FIRING, layer="[/]")
    make(folder, 5, layers=layers, transitions=[fired])
    for arguments in (["status"], ["watch", "--once"]):
        done = command(arguments[0], folder, *arguments[1:])
        assert done.exit_code == 0, done.output
        for name in (*layers, "[bold]run[x]", "[red]rule[/] <is> 25%"):
            assert name in done.stdout, name


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
@pytest.mark.parametrize("name", ["status", "watch"])
def test_a_narrow_terminal_shows_whole_numbers_or_none(
    tmp_path: Path, name: str, columns: int
) -> None:
    make(tmp_path, 30, layers=("encoder.layers.11.memory", 2))
    done = command(name, tmp_path, *READERS[name], COLUMNS=str(columns))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    if name == "status":
        assert lines.pop(0) == str(tmp_path), "the folder is whole, to be copied"
    assert max(map(len, lines)) <= columns
    table = done.stdout.partition("layer")[2]
    assert "…" not in table
    assert ("in a wider" in table) == (name == "status" and columns <= 40)


def real(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cmr_monitor_callbacks.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])} | environment,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_whose_exception_python_drops_ends_watch_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    store = begin(tmp_path)
    write(store, range(5))
    asked, look, looks = looking._Asked(), looking._look, 0

    def look_and_be_interrupted(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        assert looks < 9, "it goes on"
        with contextlib.suppress(SystemExit):  # as in a finalizer
            signal.raise_signal(number)
        return look(*args)

    monkeypatch.setattr(looking, "_look", look_and_be_interrupted)
    before = signal.signal(number, asked)
    try:
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=100, height=40)
        with pytest.raises(SystemExit) as ended:
            looking._follow(tmp_path / "history.sqlite", "30m", 0.1, console, asked)
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")  # cursor and screen
    end(store)


@pytest.mark.parametrize("name", ["status", "watch"])
def test_a_pipe_that_knows_ascii_alone(tmp_path: Path, name: str) -> None:
    fired = transition("refused", 19, Phase.FIRING, layer="größe")
    make(tmp_path, layers=("größe", 4), transitions=[fired])
    done = real(tmp_path, name, LANG="C", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "gr??e" in text and "\x1b" not in text
    assert ("@@@@" in text) == (name == "watch")


def test_who_reads_half_of_it(tmp_path: Path) -> None:
    make(tmp_path, 50, layers=tuple(range(500)))
    script = f"{sys.executable} -m cmr_monitor_callbacks.cli report --format json | head -c 10"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        check=False,
    )
    assert len(done.stdout) == 10 and b"Traceback" not in done.stderr


def test_a_name_that_is_no_text_of_this_system(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    make(folder, 2)
    done = real(tmp_path, "status")
    assert done.returncode == 0 and b"run-?" in done.stdout
