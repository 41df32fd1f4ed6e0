"""Methods of one object replaced on that object, so that it can be undone without a trace."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy, deepcopy
from typing import Any, Final

_MISSING: Final = object()
Call = Callable[..., Any]
Make = Callable[[Call], Call]
"""Given the original method, the function to call instead; its first argument is the wrap."""
LayerOf = Callable[[tuple[Any, ...], dict[str, Any]], Any]
"""Tells a call's layer by its arguments."""


class Wrapped:
    """Stands in an object's dictionary where its class has a method.

    A copy or a pickle of the object gets the class's method back: nothing of the monitor goes with
    it, and a copy's calls never reach the original.
    """

    __slots__ = ("_function", "_name", "_owner")

    def __init__(self, owner: Callable[[], Any], name: str, function: Call) -> None:
        self._owner = owner
        self._name = name
        self._function = function

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_function"), name)

    @property
    def __self__(self) -> Any:
        return self._owner()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if isinstance(self._function, _Own):
            return deepcopy(self._function.original, memo)
        owner = self._owner()  # None in `memo` where the method alone is copied
        return types.MethodType(self._function, memo.get(id(owner), owner))

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._function, _Own):
            return copy, (self._function.original,)
        return getattr, (self._owner(), self._name)


def _pass_on(wrapped: Wrapped, /, *args: Any, **kwargs: Any) -> Any:
    """A replaced method after its monitor has gone."""
    return wrapped._function(wrapped._owner(), *args, **kwargs)


class _Own:
    """A function that an object holds itself, and which is not given the object."""

    def __init__(self, original: Call) -> None:
        self.original = original

    def __call__(self, _owner: Any, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs)


def _class_of(call: Call) -> type[Wrapped]:
    # a class for each wrap: its `__call__` is then the function itself, with no frame in between,
    # and one that Dynamo can trace
    return type("Wrapped", (Wrapped,), {"__call__": call})


class Hook:
    """A hook that stays behind: a copy or a pickle of its module has one that does nothing."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _NOTHING

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


# takes what it is given and returns None, and every Python has it
_NOTHING: Final = nullcontext().__exit__


def hook(function: Call) -> Any:
    """A hook of a module; its function's first argument is the hook itself."""
    return type("Hook", (Hook,), {"__call__": function})()


class Wraps:
    """What one monitor has replaced, and how to put it back.

    Args:
        codes: given the code of each function that stands in for a method.
    """

    def __init__(self, codes: set[types.CodeType] | None = None) -> None:
        self._made: list[tuple[Callable[[], Any], str, Any, Any]] = []
        self._codes = set() if codes is None else codes
        self.sections: dict[type[Wrapped], tuple[str, LayerOf]] = {}
        """Of the replaced methods that are a section of a profile: the component, and how a call's
        layer is told."""

    def __len__(self) -> int:
        return len(self._made)

    def replace(
        self,
        owner: Any,
        name: str,
        make: Make,
        *,
        weakly: bool = False,
        section: tuple[str, LayerOf] | None = None,
    ) -> bool:
        """Replace a method of an object.

        Args:
            owner: the object.
            name: of the method.
            make: what makes the function to call instead.
            section: what a call is in a profile; None: no section.
            weakly: whether the object may go at any time: then its method is bound anew for each
                call, so that the wrap does not leave it to the garbage collector.

        Returns:
            whether it could be replaced: an object without a dictionary has nowhere to put it.
        """
        own = _dictionary(owner)
        if own is None:
            return False
        before = own.get(name, _MISSING)
        function = _function(owner, name) if before is _MISSING else _Own(before)
        if function is None or isinstance(before, Wrapped):
            return False
        try:
            ref: Callable[[], Any] = weakref.ref(owner)
        except TypeError:
            return False
        call = make(_weakly(function, ref) if weakly else _bound(function, owner))
        self._codes.add(call.__code__)
        wrapped = own[name] = _class_of(call)(ref, name, function)
        self._made.append((ref, name, before, type(wrapped)))
        if section is not None:
            self.sections[type(wrapped)] = section
        return True

    def undo(self, only: Any = None) -> None:
        """Put everything back; what somebody replaced since stays theirs.

        Args:
            only: the object whose methods are put back; None: all.
        """
        kept = []
        for made in reversed(self._made):
            ref, name, before, cls = made
            owner = ref()
            if only is not None and owner is not only:
                kept.append(made)
                continue
            self.sections.pop(cls, None)
            cls.__call__ = _pass_on  # whoever holds it; what it closed over may go
            own = _dictionary(owner)
            if own is None or not isinstance(own.get(name), Wrapped):
                continue
            if before is _MISSING:
                del own[name]
            else:
                own[name] = before
        self._made = kept[::-1]


def _bound(function: Call, owner: Any) -> Call:
    if isinstance(function, _Own):
        return function.original
    return types.MethodType(function, owner)


def _weakly(function: Call, ref: Callable[[], Any]) -> Call:
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(ref(), *args, **kwargs)

    return call


def _dictionary(owner: Any) -> dict[str, Any] | None:
    try:
        found = object.__getattribute__(owner, "__dict__")
    except (AttributeError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _function(owner: Any, name: str) -> Call | None:
    """The class's method, to be called with the object; nothing of the object's is run."""
    for cls in type(owner).__mro__:
        item = vars(cls).get(name)
        if isinstance(item, types.FunctionType):
            return item
        if isinstance(item, (staticmethod, classmethod)):
            return _Own(item.__get__(owner, type(owner)))
        if item is not None:
            return None
    return None
