"""What a user installs: the wheel holds everything, and Hydra finds the presets in it.

Each install has an environment of its own. Downloading torch and the rest for it would take
minutes, so a ``.pth`` file lends it the packages of the environment that runs the tests. Python
does not read the ``.pth`` files of a folder that was itself named by one, so this repository,
which is an editable install there (that is: a ``.pth`` file), is not lent. The tests assert
where the package came from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
APPLICATION = """
import hydra
import cmr_monitor_callbacks

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    print(cmr_monitor_callbacks.__file__)
    print(cfg.cmr_monitor.monitoring.alert_thresholds.low_efficiency)

main()
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, started without this process' paths."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    return finished.stdout


class Environment:
    """A new virtual environment that borrows the packages of the running one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        paths = {"base": str(folder), "platbase": str(folder)}
        names = sysconfig.get_scheme_names()
        scheme = "venv" if "venv" in names else sysconfig.get_preferred_scheme("prefix")  # 3.10
        self.site_packages = Path(sysconfig.get_path("purelib", scheme=scheme, vars=paths))

    def lend_packages(self) -> None:
        lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site_packages / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")

    def install(self, *arguments: str | Path, cwd: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet")
        run(*pip, "--no-index", "--no-deps", *arguments, cwd=cwd)


def compose(environment: Environment, folder: Path) -> tuple[Path, str]:
    """Where an application in an empty folder found the package, and the value it composed."""
    folder.mkdir()
    (folder / "app.py").write_text(APPLICATION)
    found, value = run(
        environment.python,
        "app.py",
        "+cmr_monitor=strict",
        "cmr_monitor.monitoring.alert_thresholds.low_efficiency=0.8",
        cwd=folder,
    ).splitlines()
    return Path(found).resolve(), value


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out)
    run(*build, REPOSITORY, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_contains_presets_plugin_typing_and_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    presets = {
        f"cmr_monitor_callbacks/configs/cmr_monitor/{file.name}"
        for file in (REPOSITORY / "configs" / "cmr_monitor").glob("*.yaml")
    }
    assert "cmr_monitor_callbacks/configs/cmr_monitor/strict.yaml" in presets
    assert presets <= names
    assert "cmr_monitor_callbacks/configs/callbacks/cmr_monitor.yaml" in names
    assert "cmr_monitor_callbacks/py.typed" in names
    for file in ("report.schema.json", "page.html"):
        assert f"cmr_monitor_callbacks/reports/{file}" in names
    modules = {
        file.relative_to(REPOSITORY).as_posix()
        for package in ("cmr_monitor_callbacks", "hydra_plugins")
        for file in (REPOSITORY / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.startswith("hydra_plugins/cmr_monitor_callbacks") for name in names)
    assert "hydra_plugins/__init__.py" not in names, "it would hide other projects' plugins"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "cmr_monitor_callbacks",
        "hydra_plugins",
    }


def test_installed_wheel_composes_a_preset(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    # Before the packages are lent, lest pip take the project for installed.
    environment.install(wheel, cwd=tmp_path)
    environment.lend_packages()
    found, value = compose(environment, tmp_path / "empty")
    assert found.is_relative_to(environment.site_packages.resolve())
    assert value == "0.8"


def test_editable_install_composes_a_preset(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.lend_packages()
    environment.install("--no-build-isolation", "--editable", REPOSITORY, cwd=tmp_path)
    found, value = compose(environment, tmp_path / "empty")
    assert found == REPOSITORY / "cmr_monitor_callbacks" / "__init__.py"
    assert value == "0.8"
