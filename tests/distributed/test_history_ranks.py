"""The history of two ranks: one file on rank 0 with all ranks' numbers, and each rank's errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from cmr_monitor_callbacks import CMRMonitorCallback, HistoryError, InMemorySink, RunHistory
from tests.distributed.fitting import STRICT, fitter, logger, module
from tests.distributed.processes import Rank, free_port, results
from tests.models import LAYERS, loader

pytestmark = pytest.mark.distributed


class _Errs(pl.Callback):
    """Rank 1's memory fails at two steps."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and batch_idx in (3, 17):
            try:
                raise OSError("the shard is gone")
            except OSError as error:
                module.blocks[0].probe.error(error)


def _run(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    ours = CMRMonitorCallback(monitoring=STRICT)
    sink = InMemorySink()
    ours.monitor.sinks.append(sink)
    model, _ = module()
    fit = fitter(rank, port, root, [ours, _Errs()], logger=logger(root))
    fit.fit(model, loader(48))
    try:
        ours.monitor.generate_report()
        refused = ""
    except HistoryError as error:
        refused = str(error)
    return {
        "stored": [report.snapshot.value("states_stored") for report in sink.reports],
        "ranks": [report.snapshot.ranks("step_time") for report in sink.reports],
        "layer": [report.snapshot.value("states_stored", LAYERS[0]) for report in sink.reports],
        "refused": refused,
    }


def test_rank_0_keeps_all_and_each_rank_its_errors(tmp_path: Path) -> None:
    root = tmp_path / "run"
    first, second = results(_run, 2, tmp_path, free_port(), root, limit=120.0)
    assert first["stored"] == second["stored"]
    files = sorted(path.name for path in root.rglob("history*"))
    assert files == ["history.rank_001.sqlite", "history.sqlite"]
    [path] = root.rglob("history.sqlite")
    with RunHistory(path) as history:
        assert history.series("states_stored").value.tolist() == first["stored"]
        assert history.series("states_stored", LAYERS[0]).value.tolist() == first["layer"]
        for rank in (0, 1):
            kept = history.series("step_time", rank=rank).value.tolist()
            assert kept == [window[rank] for window in first["ranks"]]
        [error] = history.errors()
        assert history.sessions()[0]["world_size"] == 2
    assert (error["rank"], error["type"], error["count"]) == (1, "OSError", 2)
    assert "the shard is gone" in error["message"] and error["layer"] == LAYERS[0]
    assert first["refused"] == ""
    assert second["refused"] == "the history is rank 0's; this is rank 1"
