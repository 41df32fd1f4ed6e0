"""`docs/cli.md` and `--help` name every command and option; the shell completes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from cmr_monitor_callbacks.cli import app
from cmr_monitor_callbacks.cli import runs as exit_codes
from tests.pages import rows, text_of
from tests.runs import command, make

PAGE = "docs/cli.md"
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(GROUP.commands)
COMPLETES = "from cmr_monitor_callbacks.cli import app; app(prog_name='cmr-monitor')"
ELSEWHERE = {"check": "check.md", "test-rules": "rule-tests.md"}


def options(name: str) -> list[Any]:
    return [p for p in COMMANDS[name].params if p.param_type_name == "option"]


def section(name: str) -> str:
    """What the manual says of a command."""
    parts = re.split(r"^## `cmr-monitor ([a-z-]+)`.*$", text_of(PAGE), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


def test_the_manual_has_every_command_and_no_other() -> None:
    named = re.findall(r"^## `cmr-monitor ([a-z-]+)`", text_of(PAGE), re.MULTILINE)
    assert named == list(COMMANDS)
    assert {row[0].strip("`") for row in rows(PAGE, "Commands")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_names_every_option_and_no_other(name: str) -> None:
    text = section(name)
    if name in ELSEWHERE:
        assert f"]({ELSEWHERE[name]})" in text
        return
    known = {opt for option in options(name) for opt in option.opts if opt.startswith("--")}
    table = {re.match(r"`(--[a-z-]+)", row[0])[1] for row in rows(PAGE, f"`cmr-monitor {name}`")}  # type: ignore[index]
    assert table == known - {"--help"}
    for option in options(name):
        if isinstance(option.default, int | float | str) and not isinstance(option.default, bool):
            [row] = [r for r in rows(PAGE, f"`cmr-monitor {name}`") if option.opts[0] in r[0]]
            assert (
                f"`{option.default:g}`" == row[1]
                if isinstance(option.default, float)
                else (f"`{option.default}`" == row[1])
            ), row


def test_the_manual_has_the_exit_codes() -> None:
    assert [row[0] for row in rows(PAGE, "Exit codes")] == ["0", "1", "2", "130"]
    assert exit_codes.TROUBLE == 2


def test_every_command_line_of_the_manual_can_be_parsed() -> None:
    found = re.findall(r"^(?:\$ )?cmr-monitor ([^\n#|&<>]+)", text_of(PAGE), re.MULTILINE)
    assert len(found) > 10
    for line in found:
        name, *arguments = line.replace("'", "").split()
        if name.startswith("-"):
            continue
        COMMANDS[name].make_context(name, arguments)  # raises where it cannot


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", ["60", "100"])
def test_help(name: str, columns: str) -> None:
    done = command(name, "--help", COLUMNS=columns, TERMINAL_WIDTH=columns)
    assert (done.exit_code, done.stderr) == (0, "")
    for param in COMMANDS[name].params:
        assert param.help, f"{name}: {param.name} has no help"
        if param.param_type_name == "option" and param.name != "help":
            assert param.help.rstrip().endswith((".", ";")), param.help
            told = param.default not in (None, False, ()) or "default:" in param.help
            assert told or param.is_flag or param.multiple, f"{name} {param.opts}: no default"
            assert not param.secondary_opts, f"{name} {param.opts}: a --no- that nobody needs"


def test_without_a_command_the_help_is_shown() -> None:
    done = command()
    assert all(name in done.output for name in COMMANDS) and "docs/cli.md" in done.output
    assert command("statsu").exit_code == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [("cmr-monitor sta", "status"), ("cmr-monitor explain x storage_eff", "storage_efficiency")],
)
def test_the_shell_completes(tmp_path: Path, line: str, expected: str) -> None:
    make(tmp_path, 2)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from cmr_monitor_callbacks.cli import app; app(prog_name='cmr-monitor')",
        ],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "_CMR_MONITOR_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout.split()
