"""What an update refuses and how it says so; the contract numbers of METRICS.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cmr_monitor_callbacks.errors import LayerError
from cmr_monitor_callbacks.metrics import (
    BufferMetric,
    CaptureMetric,
    ErrorMetric,
    LatencyMetric,
    LayeredMetric,
    ReconstructionMetric,
    RetrievalMetric,
    ThroughputMetric,
)

CAPTURE = {"layer": 4, "attempted": 9, "captured": 5, "stored": 5}
ZERO = "finite and at least 0"


@pytest.mark.parametrize(
    ("metric", "given", "field", "value", "allowed"),
    [
        (CaptureMetric(), CAPTURE | {"attempted": -1}, "attempted", "-1", ZERO),
        (CaptureMetric(), CAPTURE | {"seconds": math.inf}, "seconds", "inf", ZERO),
        (CaptureMetric(), CAPTURE | {"stored": torch.tensor(-2)}, "stored", "-2", ZERO),
        (CaptureMetric(), CAPTURE | {"considered": [3, -4]}, "considered", "-4", ZERO),
        (CaptureMetric(), CAPTURE | {"attempted": "many"}, "attempted", "many", "number"),
        (CaptureMetric(), CAPTURE | {"attempted": 1.5}, "attempted", "1.5", "whole"),
        (CaptureMetric(), CAPTURE | {"attempted": [[1, 2]]}, "attempted", "[1", "number"),
        (ReconstructionMetric(), {"layer": 4, "quality": 1.25}, "quality", "1.25", "in 0..1"),
        (ReconstructionMetric(), {"layer": 4, "quality": -0.5}, "quality", "-0.5", "in 0..1"),
        (RetrievalMetric(), {"layer": 4, "quality": np.array([2.0])}, "quality", "2", "in 0..1"),
        (RetrievalMetric(), {"layer": 4, "hits": -math.inf}, "hits", "-inf", ZERO),
        (BufferMetric(), {"layer": 4, "entries": -7}, "entries", "-7", ZERO),
        (BufferMetric(), {"layer": 4, "stored": -7}, "stored", "-7", ZERO),
        (BufferMetric(), {"layer": 4, "stored": math.inf}, "stored", "inf", ZERO),
        (LatencyMetric(), {"step": -0.1}, "step", "-0.1", ZERO),
        (ThroughputMetric(), {"samples": -1, "step": 1.0}, "samples", "-1", ZERO),
        (ErrorMetric(), {"layer": 4, "errors": -1}, "errors", "-1", ZERO),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_bad_value_is_named_with_its_field_and_what_is_allowed(
    metric: LayeredMetric, given: dict[str, Any], field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        metric.update(**given)
    text = str(caught.value)
    assert value in text
    assert allowed in text
    assert not metric.samples.any(), "a refused update must leave nothing behind"


def test_values_of_unequal_number_are_named() -> None:
    with pytest.raises(ValueError, match="attempted has 2 values, the others 3"):
        CaptureMetric().update(4, attempted=[1, 2], captured=[1, 2, 3])
    with pytest.raises(ValueError, match="layer has 2 values, the others 3"):
        CaptureMetric().update([4, 6], captured=[1, 2, 3])
    with pytest.raises(ValueError, match="stored has 3 values"):
        BufferMetric().update([4, 6], entries=[1, 2], stored=[1, 2, 3])


def test_layers_that_would_look_alike_are_refused_and_leave_nothing() -> None:
    metric = CaptureMetric(["a b"])
    with pytest.raises(LayerError, match="'a b' and 'a/b' would both be shown as 'layer_a_b'"):
        metric.update("a/b", captured=5)
    assert metric.layers == ("a b",)
    assert not metric.samples.any()


def test_nan_and_none_are_no_data() -> None:
    metric = CaptureMetric([4])
    metric.update(4, attempted=math.nan, captured=None, stored=torch.tensor(math.nan))
    values = metric.compute()
    assert math.isnan(values["states_stored"])
    assert math.isnan(values["capture_efficiency"])
    assert float(values["capture_calls"]) == 1


def test_other_layer_ids() -> None:
    metric = CaptureMetric()
    metric.update(np.int64(4), captured=1)
    metric.update(torch.tensor(4), captured=2)
    metric.update([frozenset({1}), 4], captured=[4, 8])
    assert metric.layers == (4, "frozenset({1})")
    assert float(metric.compute()["states_captured/layer_04"]) == 11


# The contract numbers of METRICS.md.


def test_contract_of_the_capture() -> None:
    metric = CaptureMetric()
    metric.update(4, captured=50, stored=45)
    metric.update(6, captured=100, stored=90)
    assert float(metric.compute()["storage_efficiency"]) == 0.90
    times = CaptureMetric()
    times.update(4, seconds=[0.001, 0.002, 0.001])
    average = float(times.compute()["avg_capture_time"])
    assert average == pytest.approx(0.004 / 3, rel=1e-15)
    assert f"{average:.5f}" == "0.00133"


def test_contract_of_the_reconstruction() -> None:
    metric = ReconstructionMetric()
    metric.update(4, memories_used=3, seconds=0.003)
    metric.update(4, memories_used=3, seconds=0.002)
    assert float(metric.compute()["avg_reconstruction_time"]) == 0.0025


def test_contract_of_the_retrieval() -> None:
    metric = RetrievalMetric()
    metric.update(None, requested=200, returned=900, hits=160)
    assert float(metric.compute()["cache_hit_rate"]) == 0.80


@pytest.mark.parametrize("total", [True, False])
def test_contract_of_the_buffer(total: bool) -> None:
    metric = BufferMetric([4, 6])
    if total:
        metric.update(None, capacity=2000)
    metric.update([4, 6], entries=[500, 1000], capacity=None if total else 1000)
    metric.update([4, 6], evicted=[20, 30], stored=[520, 1030])
    values = metric.compute()
    assert float(values["utilization_rate"]) == 0.75
    assert int(values["total_entries"]) == 1500
    assert f"{float(values['eviction_rate']):.3f}" == "0.032"
    assert float(values["eviction_rate"]) == 50 / 1550


# Decisions that are easily lost.


def test_a_call_of_no_operations_says_nothing_of_their_time() -> None:
    metric = RetrievalMetric()
    metric.update(4, requested=[2, 0], returned=0, seconds=[0.5, 9.0])
    values = metric.compute()
    assert float(values["avg_retrieval_time"]) == 0.25
    assert float(values["retrieval_time_p99"]) == pytest.approx(0.25, rel=0.02)


def test_the_total_limit_stands_alone_where_a_layer_that_held_names_none() -> None:
    metric = BufferMetric()
    metric.update([4, 6], entries=[50, 900], capacity=[100, None])
    metric.update(None, capacity=1000)
    assert float(metric.compute()["capacity"]) == 1000
    assert float(metric.compute()["utilization_rate"]) == 0.95


def test_counts_are_exact_beyond_what_a_float32_holds() -> None:
    metric = CaptureMetric([4])
    for _ in range(3):
        metric.update(4, captured=2**40 + 1)
    assert int(metric.compute()["states_captured"]) == 3 * (2**40 + 1)
