"""The exceptions that this package raises on purpose.

CMRMonitorError
├── ConfigError      a setting is wrong; raised before training starts
├── LayerError       layer ids that cannot be told apart
├── MonitorFailure   the monitor itself failed, with ``on_monitor_error: raise``
└── CriticalAlert    an alert fired whose rule says ``actions: [raise]``
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., None])


class CMRMonitorError(Exception):
    """Base of every exception of this package."""


class ConfigError(CMRMonitorError, ValueError):
    """A setting is wrong. The message names the field, the value and what is allowed."""


class LayerError(CMRMonitorError, ValueError):
    """Two layer ids would be shown under one name."""


class MonitorFailure(CMRMonitorError, RuntimeError):
    """The monitor failed and ``on_monitor_error: raise`` asked to hear of it."""


class CriticalAlert(CMRMonitorError, RuntimeError):
    """An alert fired whose rule asks to end the run.

    Attributes:
        numbers: the window's numbers, as `Snapshot.to_dict` gives them.
    """

    def __init__(self, message: str, numbers: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, numbers)
        self.numbers = dict(numbers or {})

    def __str__(self) -> str:
        return str(self.args[0])


def nearest(name: object, allowed: Iterable[str]) -> str:
    """A hint for an unknown name: the closest allowed one, then all of them.

    >>> nearest("warnin", ["warning", "error"])
    "did you mean 'warning'? (allowed: warning, error)"
    >>> nearest("zzz", ["warning", "error"])
    'allowed: warning, error'
    """
    names = [str(a) for a in allowed]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    listing = f"allowed: {', '.join(names)}"
    return f"did you mean {close[0]!r}? ({listing})" if close else listing


def closest(name: object, allowed: Iterable[str], most: int = 3) -> str:
    """A hint for an unknown name where there are too many to list: those that are alike.

    >>> closest("storage", ["storage_refused", "dead_layer"])
    "; did you mean 'storage_refused'?"
    >>> closest("zzz", ["storage_refused"])
    ''
    """
    names = sorted({str(a) for a in allowed})
    close = difflib.get_close_matches(str(name), names, n=most, cutoff=0.6)
    close += [one for one in names if str(name) and str(name) in one and one not in close]
    quoted = [repr(one) for one in close[:most]]
    if not quoted:
        return ""
    listing = quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
    return f"; did you mean {listing}?"


def named_arguments(init: C) -> C:
    """An ``__init__`` whose unknown arguments are a `ConfigError`, as its settings' unknown fields.

    The signature stays as it is written, for editors, the docs and LightningCLI.

    >>> class Watch:
    ...     @named_arguments
    ...     def __init__(self, *, rules=None): ...
    >>> Watch(ruls={})
    Traceback (most recent call last):
    cmr_monitor_callbacks.errors.ConfigError: Watch has no argument 'ruls'; did you mean 'rules'? \
(allowed: rules)
    """
    allowed = list(signature(init).parameters)[1:]  # all but self

    @wraps(init)
    def checked(self: object, *args: Any, **given: Any) -> None:
        unknown = [name for name in given if name not in allowed]
        if unknown:
            owner = type(self).__name__
            lines = [f"{owner} has no argument {x!r}; {nearest(x, allowed)}" for x in unknown]
            raise ConfigError("\n".join(lines))
        init(self, *args, **given)

    return checked  # type: ignore[return-value]
