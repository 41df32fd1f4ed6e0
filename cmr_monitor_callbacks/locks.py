"""A lock that may be pickled and copied along with what it guards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Lock:
    """A re-entrant lock; a copy or a pickle of it is another one, held by nobody.

    >>> lock = Lock()
    >>> with lock, lock:
    ...     pass
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


def locked(method: F) -> F:
    """Run a method while holding its object's ``lock``."""

    @wraps(method)
    def held(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return held  # type: ignore[return-value]
