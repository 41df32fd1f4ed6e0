"""Packages that tests need and that not every environment has."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Final

import pytest

ALL: Final = "CMR_TESTS_NEED_ALL"
"""Set by `make test`, which installs them all: a test that lacks one fails there."""


def needed(name: str) -> ModuleType:
    """A package that `make test` installs; elsewhere tests that need it are skipped without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        missing = f"{name} is not installed: `make test` installs what the tests need"
    if os.environ.get(ALL):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing, allow_module_level=True)
