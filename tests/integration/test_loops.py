"""The manual of loops without a Trainer: its snippets, run as they stand."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from transformers import TrainingArguments

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe, RunHistory
from tests.distributed.processes import Rank, results
from tests.integration.test_huggingface import Remembers, Text
from tests.pages import snippets

PLAIN, FABRIC, RANKS, HUGGING_FACE, INFERENCE, TRACKED = snippets("docs/loops.md", "python")


class Remembering(nn.Module):
    """A layer that says that it took three of four states."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.probe = CMRProbe(4)

    def forward(self, x: Tensor) -> Tensor:
        self.probe.capture(attempted=4, captured=4, stored=3)
        self.probe.retrieval(requested=2, returned=2, hits=1)
        out: Tensor = self.linear(x)
        return out


def names(**more: Any) -> dict[str, Any]:
    """What the snippets find in scope."""
    return {
        "torch": torch,
        "CMRPerformanceMonitor": CMRPerformanceMonitor,
        "model": Remembering(),
        "loader": [torch.ones(1, 2)] * 5,
        "validation_loader": [torch.ones(1, 2)] * 3,
        "train_step": lambda model, batch: model(batch),
        "validation_step": lambda model, batch: model(batch),
        **more,
    }


def test_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = names()
    exec(PLAIN.replace("50}", "2}"), scope)
    monitor = scope["monitor"]
    assert monitor.snapshot.value("states_stored", layer=4) == 15
    assert monitor.snapshots["val"].value("states_captured") == 12
    events = EventAccumulator("runs/plain").Reload()
    assert [e.value for e in events.Scalars("cmr_capture/states_stored")] == [6, 12, 15]
    with RunHistory("runs/plain") as history:
        assert history.series("states_stored").value.tolist() == [6, 12, 15]
    again = CMRPerformanceMonitor({"log_every_n_steps": 2}, model=scope["model"])
    again.load_state_dict(torch.load("checkpoint.pt", weights_only=True)["monitor"])
    with again.track_performance():
        scope["model"](torch.ones(1, 2))
    again.flush()
    assert again.snapshot.value("states_stored", layer=4) == 18
    assert again.snapshot.step == 5


def test_fabric() -> None:
    scope = names(loader=torch.utils.data.DataLoader(torch.ones(10, 2), batch_size=2))
    exec(FABRIC, scope)
    assert scope["monitor"].snapshot.value("states_stored", layer=4) == 15
    assert scope["monitor"].snapshot.step == 4


def _loop(rank: Rank) -> float:
    scope = names(loader=[torch.ones(1, 2)] * 6)
    with rank.together():
        exec(RANKS, scope)
    return float(scope["monitor"].snapshot.value("states_stored", layer=4))


@pytest.mark.distributed
def test_several_processes(tmp_path: Path) -> None:
    assert results(_loop, 2, tmp_path) == [36.0, 36.0]


def test_hugging_face(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        logging_steps=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    exec(HUGGING_FACE, {"model": Remembers(), "arguments": arguments, "data": Text(64)})
    with RunHistory(tmp_path) as history:
        assert history.series("states_stored").value.tolist() == [2, 4]


def test_inference() -> None:
    scope = names()
    exec(INFERENCE, scope)
    snapshot = scope["monitor"].snapshots["predict"]
    assert snapshot.value("cache_hit_rate") == 0.5
    assert snapshot.to_dict()["retrieval_stats"]["total_retrievals"] == 10


def test_a_notebook_shows_the_summary() -> None:
    model = Remembering()
    model.probe = CMRProbe("<b>")
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1}, model=model)
    with monitor.track_performance():
        model(torch.ones(1, 2))
    html = monitor._repr_html_()
    assert "Memory by layer" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert CMRMonitorCallback(monitor=monitor)._repr_html_() == html


def test_live_statistics_may_be_asked_for_by_another_thread() -> None:
    """Nothing is lost or counted twice, whatever the threads do to each other."""
    model = Remembering()
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 3}, model=model)
    ended, seen, failed = threading.Event(), [], []

    def ask() -> None:
        try:
            while not ended.is_set():
                stats = monitor.get_live_stats()
                seen.append(stats["metrics"].get("states_stored_per_layer", {}).get(4, 0))
                monitor.get_health_status()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        with monitor.track_performance():
            model(torch.ones(1, 2))
    ended.set()
    for thread in threads:
        thread.join()
    monitor.flush()
    assert not failed
    assert monitor.snapshot.value("states_stored") == 6000
    assert seen and max(seen) <= 6000


def test_several_threads_may_step() -> None:
    model = Remembering()
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 3}, model=model)

    def serve() -> None:
        for _ in range(400):
            with monitor.track_performance():
                model(torch.ones(1, 2))

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monitor.flush()
    assert monitor.failures == 0
    assert (monitor.snapshot.step, monitor.windows) == (1599, 534)
    assert monitor.snapshot.value("states_stored") == 4800


def test_numbers_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    def train_step(model: nn.Module, batch: Tensor) -> None:
        model.zero_grad()
        (100.0 * model(batch).square().sum()).backward()

    torch.manual_seed(0)
    scope = names(train_step=train_step)
    exec(TRACKED, scope)
    monitor, model = scope["monitor"], scope["model"]
    squares = sum(float((p.grad.double() ** 2).sum()) for p in model.parameters())
    assert monitor.snapshot.value("grad_norm") == pytest.approx(squares**0.5, rel=1e-5)
    assert monitor.snapshot.custom_run["grad_norm"].samples == 5
    said = capsys.readouterr().out
    assert said.startswith("custom/grad_norm is ") and "'count': 5" in said
