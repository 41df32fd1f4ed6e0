"""What the project's own files say of each other, and that make's targets can be read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

ROOT: Final = Path(__file__).resolve().parents[2]
TARGETS: Final = ("help", "setup", "demo", "tensorboard", "test", "check", "bench", "clean")


def test_the_changelog_names_the_lower_ends_of_the_dependencies() -> None:
    """Where it says on which versions the suite ran."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", "\n".join(project["dependencies"]), re.M))
    text = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    [said] = re.findall(r"Dependencies' lower ends are .*? pydantic [\d.]+\d", text)
    for name in ("torch", "pytorch-lightning", "torchmetrics", "tensorboard", "hydra-core"):
        [version] = re.findall(rf"(?<![\w-]){name} ([\d.]*\d)", said)
        assert version == lowest[name] or version == f"{lowest[name]}.0", name
    assert f"Python {project['requires-python'].removeprefix('>=')}," in said


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_of_make_can_be_made(target: str, tmp_path: Path) -> None:
    """A dry run: what would be run, from a clone without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tests", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    made = "-m venv .venv" in done.stdout
    assert made is (target not in ("help", "clean")), "what needs an environment makes one"
    assert list(tmp_path.glob(".venv")) == [], "nothing is done"


def test_help_lists_every_target_that_is_described() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  ([a-z-]+) ", done.stdout, re.M)
    assert set(TARGETS) <= set(listed)
    phony = re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.M)
    assert listed == phony
