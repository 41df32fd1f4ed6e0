"""Hypothesis strategies: events as the reference takes them, and the probe calls that say so."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from tests.reference import (
    Buffer,
    Capture,
    Error,
    Event,
    Layer,
    Reconstruction,
    Retrieval,
    Step,
)

LAYERS: tuple[Layer, ...] = (4, "deep", None)
FIELDS: dict[str, tuple[str, ...]] = {
    "capture": ("attempted", "captured", "stored", "seconds", "considered"),
    "reconstruction": ("memories_used", "quality", "seconds"),
    "retrieval": ("requested", "returned", "hits", "seconds", "quality"),
    "buffer": ("entries", "capacity", "nbytes", "evicted", "cleared", "loaded"),
}
COUNTS = {"requested", "returned", "hits", "attempted", "captured", "stored", "considered"} | {
    "entries",
    "capacity",
    "nbytes",
    "evicted",
    "cleared",
    "loaded",
}
NONFINITE = (math.nan, math.inf, -math.inf, np.float64("nan"), np.float32("inf"))
GARBAGE = (-1, -0.5, "many", [1, 2], object(), 1j, np.int64(-3), np.array([1, 2]), b"x")


@dataclass
class Call:
    """One event: what a probe is told, and what of it is valid.

    Attributes:
        valid: the event with its invalid fields as None, for the reference.
        timed: the same with the seconds that only a device knows as None, for quantiles.
        given: arguments of the probe's method, by field; empty for errors and steps.
    """

    valid: Event
    timed: Event
    given: dict[str, Any]
    invalid: int = 0
    nonfinite: int = 0


def kind_of(event: Event) -> str:
    return type(event).__name__.lower()


count = st.integers(0, 20) | st.integers(0, 2**40)
seconds = st.floats(2e-6, 10.0)
quality = st.floats(0.0, 1.0)
used = st.integers(0, 64) | st.sampled_from([0.5, 2.5])
layer = st.sampled_from(LAYERS)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Capture, layer, count, count, count, maybe(seconds), maybe(count)),
    st.tuples(layer, st.lists(count, min_size=3, max_size=3), maybe(seconds)).map(
        lambda t: Capture(t[0], *sorted(t[1], reverse=True), t[2])
    ),
    st.builds(Reconstruction, layer, used, maybe(quality), maybe(seconds)),
    st.builds(
        Retrieval, layer, st.integers(0, 9), count, maybe(count), maybe(seconds), maybe(quality)
    ),
    st.builds(Buffer, layer, maybe(count), maybe(count), maybe(count), count, count, count),
    st.builds(Buffer, layer, count, count, maybe(count)),
    st.builds(Error, layer),
    st.builds(
        Step,
        seconds,
        maybe(seconds),
        seconds,
        maybe(seconds),
        maybe(seconds),
        maybe(count),
        maybe(count),
        st.integers(1, 4),
    ),
)


def _numpy(value: float) -> Any:
    return np.int64(value) if isinstance(value, int) else np.float64(value)


def _tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


@st.composite
def calls(draw: st.DrawFn, *, invalid: bool = False, tensors: bool = False) -> Call:
    """An event, some of its fields as NumPy scalars, bools or tensors, some of them invalid."""
    event = draw(events)
    kind = kind_of(event)
    if kind not in FIELDS:
        return Call(event, event, {})
    call = Call(event, event, {name: getattr(event, name) for name in FIELDS[kind]})
    for name in FIELDS[kind]:
        value = call.given[name]
        ways = ["plain", "plain", "numpy"] + ["tensor"] * tensors + ["invalid"] * invalid
        way = draw(st.sampled_from(ways))
        if way == "invalid":
            _spoil(draw, call, name)
        elif value is not None and way == "numpy":
            call.given[name] = bool(value) if value in (0, 1) else _numpy(value)
        elif value is not None and way == "tensor" and (name != "requested" or value > 0):
            call.given[name] = _tensor(value)
            if name in ("seconds", "requested") and kind != "buffer":
                call.timed = dataclasses.replace(call.timed, seconds=None)  # type: ignore[call-arg]
    return call


def _spoil(draw: st.DrawFn, call: Call, name: str) -> None:
    bad: list[Any] = [*NONFINITE, *GARBAGE]
    bad += [1.5, 2] if name == "quality" else []
    bad += [0.5] if name in COUNTS else []
    chosen = draw(st.integers(0, len(bad) - 1))
    call.given[name] = bad[chosen]
    call.invalid += 1
    call.nonfinite += chosen < len(NONFINITE)
    lost: dict[str, Any] = {name: None}
    if name == "requested":  # hits of an unknown number of operations are no rate
        lost["hits"] = call.given["hits"] = None
    call.valid = dataclasses.replace(call.valid, **lost)
    call.timed = dataclasses.replace(call.timed, **lost)


class Model(nn.Module):
    """A probe for each layer and one for the whole, held in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.probes = {layer: CMRProbe(layer) for layer in LAYERS}


def watched(**config: Any) -> tuple[Model, CMRPerformanceMonitor]:
    """A model and the monitor attached to it; windows end only when they are told to."""
    model = Model()
    settings = {"log_every_n_steps": 10**9, **config}
    quiet = {"enable_alerts": False}
    return model, CMRPerformanceMonitor(settings, alert_config=quiet, model=model)


def say(model: Model, monitor: CMRPerformanceMonitor, call: Call) -> None:
    """Tell the probe of the event's layer, or the monitor of a step."""
    event = call.valid
    if isinstance(event, Step):
        monitor.record_step(
            event.seconds,
            event.data_wait,
            event.forward or 0.0,
            event.backward,
            event.optimizer,
            None,
            event.forward_passes,
            event.samples,
            event.tokens,
        )
    elif isinstance(event, Error):
        model.probes[event.layer].error(RuntimeError("no memory left"))
    else:
        getattr(model.probes[event.layer], kind_of(event))(**call.given)
