"""What a user names as ``module:callable``: found, and called."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from cmr_monitor_callbacks.errors import ConfigError, nearest


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """As ``python -m`` has it: modules of the folder that the command is run in are found."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def make_model(target: str) -> nn.Module:
    """The model that a target stands for.

    Args:
        target: ``module:callable`` or ``module:Class``, called without arguments.

    Raises:
        ConfigError: it cannot be found, it raises, or what it gives is no module.
    """
    made = _made("model", target, keep=nn.Module)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model {target!r} must give a torch.nn.Module, got {type(made)!r}")
    return made


def make_input(target: str) -> Any:
    """The example batch that a target stands for; see `bound` for how it is handed over.

    Raises:
        ConfigError: it cannot be found, or it raises.
    """
    return _made("input", target)


def bound(model: nn.Module, given: Any) -> Callable[[], Any]:
    """The forward pass of a model on a batch.

    A tuple or list is its arguments, a mapping its keyword arguments, anything else the one
    argument.
    """
    if isinstance(given, Mapping):
        return lambda: model(**given)
    if isinstance(given, (tuple, list)):
        return lambda: model(*given)
    return lambda: model(given)


def saying(error: BaseException) -> str:
    """An error of the user's own code in a line, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip()
    return f"{type(error).__name__}{': ' if text else ''}{text}{at}"


def _made(what: str, target: str, keep: type | None = None) -> Any:
    module, _, names = target.partition(":")
    if not module or not names:
        raise ConfigError(
            f"{what} {target!r} must be module:callable, such as mypkg.models:build_model"
        )
    value: Any = _imported(what, target, module)
    for name in names.split("."):
        if not hasattr(value, name):
            hint = nearest(name, _callables(value)).partition(" (")[0]
            hint = f"; {hint}" if hint.startswith("did you mean") else ""
            raise ConfigError(f"{what} {target!r}: {module} has no {name!r}{hint}")
        value = getattr(value, name)
    if not callable(value) or (keep is not None and isinstance(value, keep)):
        return value
    try:
        return value()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} {target!r}: {names}() raised {saying(error)}") from None


def _imported(what: str, target: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{what} {target!r}: there is no module {error.name!r} in this folder or on the "
                "Python path"
            ) from None
        raise ConfigError(f"{what} {target!r}: importing {name} raised {saying(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} {target!r}: importing {name} raised {saying(error)}") from None


def _callables(value: Any) -> list[str]:
    return [name for name, item in vars(value).items() if callable(item)]
