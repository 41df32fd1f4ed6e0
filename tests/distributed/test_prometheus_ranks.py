"""The exporter of two ranks: on rank 0 alone, with all ranks' numbers and the slow one's."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from prometheus_client.parser import text_string_to_metric_families

from cmr_monitor_callbacks import CMRMonitorCallback
from cmr_monitor_callbacks.sinks import PrometheusSink
from tests.distributed.fitting import STRICT, fitter, module
from tests.distributed.processes import Rank, free_port, results
from tests.models import loader

pytestmark = pytest.mark.distributed

DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Scrape(pl.Callback):
    """Scrapes the exporter of this rank, if there is one, when some windows are over."""

    def __init__(self, ours: CMRMonitorCallback) -> None:
        self.ours = ours
        self.found: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sinks = [sink for sink in self.ours.monitor.sinks if isinstance(sink, PrometheusSink)]
        if batch_idx != 22 or not sinks:
            return
        with DIRECTLY.open(sinks[0].url, timeout=30) as answer:
            text = answer.read().decode()
        shown = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        snapshot = self.ours.snapshot
        self.found.append(
            {
                "shown": shown,
                "step": snapshot.step,
                "captured": snapshot.value("states_captured"),
                "by rank": snapshot.ranks("avg_forward_time"),
            }
        )


def _run(rank: Rank, port: int) -> list[dict[str, Any]]:
    ours = CMRMonitorCallback(monitoring=STRICT, sinks={"prometheus": {"port": 0}})
    model, _ = module()
    model.register_forward_pre_hook(lambda *args: time.sleep(0.03 * rank.rank))
    scrape = _Scrape(ours)
    fitter(rank, port, rank.folder, [ours, scrape], logger=False).fit(model, loader(48))
    return scrape.found


def test_rank_0_serves_all_ranks_numbers(tmp_path: Path) -> None:
    [[found], nothing] = results(_run, 2, tmp_path, free_port(), limit=120.0)
    assert nothing == []
    shown, stage = found["shown"], ("stage", "train")
    assert found["step"] >= 14
    assert shown["cmr_last_window_step", stage] == found["step"]
    assert shown["cmr_capture_states_captured_total", stage] == found["captured"] > 0
    [info] = [labels for name, *labels in shown if name == "cmr_info"]
    assert ("world_size", "2") in info
    slow = "cmr_timing_rank_avg_forward_time_seconds"
    assert {key: value for key, value in shown.items() if key[0] == slow} == {
        (slow, ("rank", "1"), stage): found["by rank"][1]
    }
    assert shown["cmr_timing_straggler_rank", stage] == 1.0
