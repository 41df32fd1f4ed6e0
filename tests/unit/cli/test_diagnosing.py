"""`cmr-monitor diagnose`, and what `status` says of diagnostics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.histories import end
from tests.reported import finding, keep_diagnostics
from tests.runs import begin, command, write
from tests.unit.cli.test_looking import strict_json

GRAVE = finding("entries_nonfinite", "critical", "3 of 64 hold NaN [b]", 4)
ERROR = finding("nothing_stored", "error", "of 900 states none was stored", 6)
MILD = finding()


def diagnosed(folder: Path, *looks: list[Any]) -> Path:
    """A run that is over, of which diagnostics found this, one look after the other."""
    opened = begin(folder)
    write(opened, range(20))
    for i, findings in enumerate(looks):
        keep_diagnostics(opened, 10 + i, findings)
    end(opened)
    return folder


@pytest.mark.parametrize(
    ("findings", "code"), [([], 0), ([MILD], 0), ([ERROR, MILD], 1), ([GRAVE], 1)]
)
def test_the_exit_code_says_how_bad_it_is(tmp_path: Path, findings: list[Any], code: int) -> None:
    done = command("diagnose", diagnosed(tmp_path, findings))
    assert (done.exit_code, done.stderr) == (code, "")
    assert "Diagnostics at step 10" in done.stdout
    as_json = command("diagnose", tmp_path, "--json")
    assert as_json.exit_code == code
    assert strict_json(as_json.stdout)["findings"] == findings


def test_findings_and_what_to_do_are_shown_as_they_are(tmp_path: Path) -> None:
    done = command("diagnose", diagnosed(tmp_path, [GRAVE, MILD]), COLUMNS="200")
    for part in ("critical", "entries_nonfinite: 3 of 64 hold NaN [b]", "look at 3 of 64"):
        assert part in done.stdout
    assert "Not looked at:\n  ages" in done.stdout


def test_the_newest_look_counts(tmp_path: Path) -> None:
    done = command("diagnose", diagnosed(tmp_path, [GRAVE], [MILD]))
    assert done.exit_code == 0 and "Diagnostics at step 11" in done.stdout
    again = begin(tmp_path)
    write(again, range(20, 22))
    keep_diagnostics(again, 21, [ERROR])
    end(again)
    assert command("diagnose", tmp_path).exit_code == 1
    assert command("diagnose", tmp_path, "--session", 1).exit_code == 0


def test_where_none_are_kept_it_says_how_to_have_them(tmp_path: Path) -> None:
    done = command("diagnose", diagnosed(tmp_path / "over"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "monitoring.diagnostics.at_end" in done.stderr.replace("\n", " ")
    running = begin(tmp_path / "live")
    write(running, range(3))
    done = command("diagnose", tmp_path / "live")
    end(running)
    assert done.exit_code == 2 and "yet" in done.stderr


def test_status_has_a_line_for_the_worst(tmp_path: Path) -> None:
    diagnosed(tmp_path / "bad", [GRAVE, ERROR, MILD])
    done = command("status", tmp_path / "bad", COLUMNS="200")
    assert done.exit_code == 0  # of the run's health, as before
    line = "critical diagnosed at step 10: entries_nonfinite at layer 4: 3 of 64 hold NaN [b]"
    assert f"{line} (and 2 more: cmr-monitor diagnose)" in done.stdout
    diagnosed(tmp_path / "one", [MILD])
    assert "more: cmr-monitor" not in command("status", tmp_path / "one").stdout
    diagnosed(tmp_path / "good", [])
    assert "diagnosed" not in command("status", tmp_path / "good").stdout
