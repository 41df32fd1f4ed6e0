"""The example's numbers against a count at its buffer, which knows nothing of probes."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback
from examples.cmr_lm.data import PythonDocs
from examples.cmr_lm.memory import LayeredMemoryBuffer
from examples.cmr_lm.module import CMRLanguageModule
from tests.integration.event_files import series
from tests.integration.test_example import LAYER_TAGS
from tests.models import trainer

LAYERS = (2, 4, 6)
Counts = dict[str, Counter[int]]


class BufferTap(pl.Callback):
    """Counts what goes in and out of the buffer, from outside; after every step, all so far."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counts = defaultdict(Counter)
        self.after: dict[int, Counts] = {}
        counts = self.counts
        store_states, retrieve = LayeredMemoryBuffer.store_states, LayeredMemoryBuffer.retrieve

        def store(buffer: Any, layer: int, states: Any, relevance: Any, step: int) -> Any:
            held = buffer.layer_buffers[layer].size
            taken = store_states(buffer, layer, states, relevance, step)
            stored, more = int(taken.sum()), buffer.layer_buffers[layer].size - held
            counts["captured"][layer] += len(states)
            counts["stored"][layer] += stored
            counts["held"][layer] += more
            counts["evicted"][layer] += stored - more
            return taken

        def ask(buffer: Any, layer: int, *args: Any, **kwargs: Any) -> Any:
            found = retrieve(buffer, layer, *args, **kwargs)
            counts["reconstructed"][layer] += found is not None
            return found

        patch.setattr(LayeredMemoryBuffer, "store_states", store)
        patch.setattr(LayeredMemoryBuffer, "retrieve", ask)

    def on_train_batch_end(self, fitter: pl.Trainer, *args: Any) -> None:
        self.after[fitter.global_step - 1] = copy.deepcopy(self.counts)


def test_every_default_tag_of_a_layer_is_what_its_buffer_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: CMRMonitorCallback
) -> None:
    torch.manual_seed(0)
    capacity = {2: 1024, 4: 512, 6: 96}  # the last evicts and refuses
    module = CMRLanguageModule(capture=16, capacity_of=capacity)
    tap = BufferTap(monkeypatch)
    fitter = trainer(tmp_path, [strict, tap], max_steps=15, limit_val_batches=0)
    fitter.fit(module, PythonDocs())
    logged = series(tmp_path)
    assert sum(tap.counts["evicted"].values()) > 0 and sum(tap.counts["held"].values()) > 0
    seconds = {layer.index: layer.counters.reconstruction_seconds for layer in memories(module)}
    for layer in LAYERS:
        at = {step: {name: n[layer] for name, n in tap.after[step].items()} for step in (4, 9, 14)}
        before = {4: dict.fromkeys(at[4], 0), 9: at[4], 14: at[9]}
        since = {
            step: {name: n - before[step][name] for name, n in at[step].items()} for step in at
        }
        assert at[14]["reconstructed"] == len(seconds[layer])
        times = {step: seconds[layer][before[step]["reconstructed"] :] for step in at}
        times = {step: found[: since[step]["reconstructed"]] for step, found in times.items()}
        expected = {
            "cmr_capture/states_captured": {step: n["captured"] for step, n in at.items()},
            "cmr_capture/states_stored": {step: n["stored"] for step, n in at.items()},
            "cmr_capture/storage_efficiency": {
                step: n["stored"] / n["captured"] for step, n in since.items()
            },
            "cmr_buffer/total_entries": {step: n["held"] for step, n in at.items()},
            "cmr_buffer/utilization_rate": {
                step: n["held"] / capacity[layer] for step, n in at.items()
            },
            "cmr_buffer/eviction_count": {step: n["evicted"] for step, n in at.items()},
            "cmr_reconstruction/total_reconstructions": {
                step: n["reconstructed"] for step, n in at.items()
            },
            "cmr_reconstruction/avg_reconstruction_time": {
                step: sum(found) / len(found) for step, found in times.items()
            },
        }
        assert set(expected) == set(LAYER_TAGS)
        for tag, values in expected.items():
            found = logged[f"{tag}/layer_{layer:02d}"]
            assert found == pytest.approx(values, rel=1e-6), (tag, layer)


def memories(module: CMRLanguageModule) -> list[Any]:
    """The memory layers, by what they have."""
    return [part for part in module.modules() if hasattr(part, "counters")]
