"""What the tests need is not skipped in silence where it should be there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.needed import ALL, needed

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


def test_what_is_there_is_imported() -> None:
    assert needed("json.decoder") is sys.modules["json.decoder"]


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.inner", "json.no_such"])
def test_what_is_missing_fails_under_make_test_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALL, raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"{name} is not installed: `make test`"):
        needed(name)
    monkeypatch.setenv(ALL, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{name} is not installed: `make test`"):
        needed(name)


def test_what_lacks_something_itself_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        needed("half_there")


def test_make_test_says_that_all_is_there() -> None:
    assert f"{ALL}=1 $(PY) -m pytest" in MAKEFILE.read_text()
