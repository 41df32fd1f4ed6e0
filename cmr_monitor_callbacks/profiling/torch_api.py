"""Everything that is needed of torch's profiler beyond its public interface, with a fallback."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function


def another_profiler_runs() -> bool:
    """Whether a profiler is on in this process.

    To start a second one would end the first without a word (torch 2.13), so it must be asked.
    """
    by_python = getattr(torch.autograd.profiler, "_is_profiler_enabled", False)
    asks = getattr(torch._C._autograd, "_profiler_enabled", None)
    return bool(by_python) or bool(asks is not None and asks())


def activities() -> list[ProfilerActivity]:
    """The CPU, and the accelerator if there is one."""
    found: set[ProfilerActivity] = torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
    return sorted(found, key=lambda item: item.value)


def annotate(name: str) -> AbstractContextManager[Any]:
    """A range of the trace."""
    return record_function(name)
