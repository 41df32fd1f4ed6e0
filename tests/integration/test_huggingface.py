"""The Trainer of Hugging Face's transformers, with a small real GPT-2 that has a memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from cmr_monitor_callbacks import CMRProbe, ConfigError, RunHistory
from cmr_monitor_callbacks.huggingface import STATE_FILE, CMRTrainerCallback

LAYER = 1
STRICT = {"on_monitor_error": "raise", "log_every_n_steps": 2}


class Text(Dataset[dict[str, Tensor]]):
    """Numbers as text."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = (torch.arange(16) * (index + 1)) % 50
        return {"input_ids": ids, "labels": ids}


class Memory(nn.Module):
    """Keeps the mean of a batch's hidden states, of at most four batches, and adds them back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.probe = CMRProbe(LAYER)
        self.mix = nn.Linear(dim, dim)
        self.kept: list[Tensor] = []
        self.calls = {"train": 0, "eval": 0}

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls["train" if self.training else "eval"] += 1
        evicted = int(len(self.kept) == 4)
        self.kept = [*self.kept[evicted:], hidden.detach().mean(dim=(0, 1))]
        self.probe.capture(attempted=3, captured=2, stored=1)
        self.probe.buffer(len(self.kept), 4, evicted=evicted)
        return hidden + self.mix(torch.stack(self.kept).mean(dim=0))


class Remembers(GPT2LMHeadModel):
    """A GPT-2 of two blocks, with a memory after the second."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))
        self.transformer.ln_f = nn.Sequential(Memory(16), self.transformer.ln_f)

    @property
    def memory(self) -> Memory:
        memory = self.transformer.ln_f[0]
        assert isinstance(memory, Memory)
        return memory


class Stops(TrainerCallback):
    """Asks the monitor to stop after a step."""

    def __init__(self, monitored: CMRTrainerCallback, at: int) -> None:
        self.monitored, self.at = monitored, at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            self.monitored.monitor.request_stop("it is enough")


class Fails(TrainerCallback):
    """Training raises in the middle of a step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("the link is down")


def train(
    folder: Path, callbacks: list[Any], *, resume: str | None = None, **settings: Any
) -> Remembers:
    model = Remembers()
    given: dict[str, Any] = {"max_steps": 8, "logging_steps": 4, "save_strategy": "no"} | settings
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **given,
    )
    trainer = Trainer(
        model, arguments, train_dataset=Text(64), eval_dataset=Text(6), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_it_counts_logs_and_keeps(tmp_path: Path) -> None:
    callback = CMRTrainerCallback(monitoring=STRICT)
    model = train(tmp_path, [callback])
    snapshot = callback.snapshot
    assert snapshot.value("capture_calls", layer=LAYER) == model.memory.calls["train"] == 8
    assert snapshot.value("states_attempted") == 24
    assert snapshot.value("eviction_count") == 4
    assert (snapshot.step, callback.monitor.windows) == (7, 4)
    assert snapshot.value("batch_size") == 2
    assert snapshot.value("tokens") == 8 * 2 * 16
    for name in ("avg_forward_time", "backward_time", "optimizer_time", "data_wait"):
        assert 0 < snapshot.value(name) < snapshot.value("step_time") + snapshot.value("data_wait")
    events = EventAccumulator(str(tmp_path / "runs" / "cmr_monitor"))
    events.Reload()
    scalars = events.Scalars(f"cmr_buffer/eviction_count/layer_{LAYER:02d}")
    assert [(event.step, event.value) for event in scalars] == [(1, 0), (3, 0), (5, 2), (7, 4)]
    with RunHistory(tmp_path) as history:
        assert history.series("eviction_count", layer=LAYER).step.tolist() == [1, 3, 5, 7]
        assert history.sessions()[0]["outcome"] == "completed"


def test_training_is_bitwise_what_it_was(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", [])
    watched = train(tmp_path / "watched", [CMRTrainerCallback(monitoring=STRICT)])
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, watched.state_dict()[name]), name
    assert not watched._forward_hooks and not watched._forward_pre_hooks


def test_a_window_is_as_long_as_the_trainers_own(tmp_path: Path) -> None:
    callback = CMRTrainerCallback(monitoring={"on_monitor_error": "raise"}, tensorboard=False)
    train(tmp_path, [callback])
    assert callback.monitor.windows == 2
    assert not list(tmp_path.rglob("*tfevents*"))


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = CMRTrainerCallback(monitoring=STRICT)
    model = train(tmp_path, [callback], gradient_accumulation_steps=2, max_steps=4)
    assert callback.snapshot.value("capture_calls") == model.memory.calls["train"] == 8
    assert (callback.snapshot.step, callback.monitor.windows) == (3, 2)
    assert callback.snapshot.value("batch_size") == 4


@pytest.mark.parametrize("when", [{"eval_strategy": "steps", "eval_steps": 3}, {}])
def test_evaluation_is_kept_apart(tmp_path: Path, when: dict[str, Any]) -> None:
    callback = CMRTrainerCallback(monitoring=STRICT)
    settings = when or {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1}
    model = train(tmp_path, [callback], **settings)
    calls = model.memory.calls
    assert calls["eval"] > 0
    assert callback.snapshot.value("capture_calls") == calls["train"]
    assert callback.snapshots["val"].value("capture_calls") == 3  # of the last evaluation


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    first = CMRTrainerCallback(monitoring=STRICT)
    train(tmp_path, [first], **settings)
    assert (tmp_path / "checkpoint-4" / STATE_FILE).is_file()
    again = CMRTrainerCallback(monitoring=STRICT)
    model = train(tmp_path, [again], resume=str(tmp_path / "checkpoint-4"), **settings)
    assert model.memory.calls["train"] == 4
    assert again.snapshot.value("capture_calls") == 8
    assert again.snapshot.step == 7
    assert again.monitor.windows == 4


def test_a_checkpoint_without_our_file_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, [], save_strategy="steps", save_steps=4)
    callback = CMRTrainerCallback(monitoring=STRICT)
    train(tmp_path, [callback], resume=str(tmp_path / "checkpoint-4"))
    assert "totals begin at step 4" in caplog.text
    assert callback.snapshot.value("capture_calls") == 4
    assert callback.snapshot.step == 7


def test_the_monitor_may_stop_it(tmp_path: Path) -> None:
    callback = CMRTrainerCallback(monitoring=STRICT)
    model = train(tmp_path, [Stops(callback, 3), callback])
    assert model.memory.calls["train"] == 4  # the window ends there


def test_a_training_that_raised_does_not_spoil_the_next(tmp_path: Path) -> None:
    callback = CMRTrainerCallback(monitoring=STRICT)
    with pytest.raises(RuntimeError, match="the link is down"):
        train(tmp_path / "first", [callback, Fails()])
    model = train(tmp_path / "second", [callback])
    assert callback.snapshot.value("capture_calls") == model.memory.calls["train"] == 8
    with RunHistory(tmp_path / "first") as history:
        assert history.sessions()[0]["outcome"] == "interrupted"
        assert history.series("capture_calls").last[-1] == 4


class Steps(TrainerCallback):
    """Notes in which forwards torch's profiler is on."""

    def __init__(self) -> None:
        self.on: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].register_forward_pre_hook(lambda *given: self._note(state.global_step))

    def _note(self, step: int) -> None:
        if torch.autograd._profiler_enabled():
            self.on.append(step)


def test_a_schedule_profiles_its_steps(tmp_path: Path) -> None:
    schedule = {"wait": 2, "warmup": 1, "active": 2, "repeat": 1}
    settings = STRICT | {"enable_profiling": True}
    callback = CMRTrainerCallback(monitoring=settings, profiling={"schedule": schedule})
    steps = Steps()
    model = train(tmp_path, [callback, steps])
    assert steps.on == [3, 4]  # in the warm-up torch says that it is off
    results = callback.monitor.get_profile_results()
    about = results["about"]
    assert (about["first_step"], about["last_step"], about["steps"]) == (3, 4, 2)
    assert results["sections"]["cmr/forward/layer_1"]["calls"] == 2
    assert Path(about["trace"]).is_relative_to(tmp_path)
    with RunHistory(tmp_path) as history:
        [note] = history.marks()
        assert note["label"].startswith("profile of steps 3 to 4 (schedule)")
    assert not model._forward_hooks and callback.monitor.failures == 0


def test_accumulated_batches_are_profiled_as_one_step(tmp_path: Path) -> None:
    settings = STRICT | {"enable_profiling": True}
    schedule = {"wait": 1, "warmup": 0, "active": 1}
    callback, steps = (
        CMRTrainerCallback(monitoring=settings, profiling={"schedule": schedule}),
        Steps(),
    )
    train(tmp_path, [callback, steps], gradient_accumulation_steps=3, max_steps=4)
    assert steps.on == [1, 1, 1]
    assert callback.monitor.get_profile_results()["about"]["steps"] == 1


def test_an_alert_has_the_next_steps_profiled(tmp_path: Path) -> None:
    many = {"metric": "states_captured", "over": "run", "thresholds": {"warning": 5}}
    callback = CMRTrainerCallback(
        monitoring=STRICT | {"enable_profiling": True},
        alerts={"rules": {"many": many}},
        profiling={"schedule": None, "trigger": {"rules": {"many": 2}}},
    )
    steps = Steps()
    train(tmp_path, [callback, steps])
    [fired] = [t for t in callback.monitor.alerts.transitions if t.name == "firing"]
    assert steps.on == [fired.step + 1, fired.step + 2]


@pytest.mark.parametrize("how", ["the end", "an evaluation", "an exception"])
def test_what_comes_between_ends_a_profile(tmp_path: Path, how: str) -> None:
    settings = STRICT | {"enable_profiling": True}
    schedule = {"wait": 2, "warmup": 0, "active": 50}
    callback = CMRTrainerCallback(monitoring=settings, profiling={"schedule": schedule})
    if how == "an exception":
        with pytest.raises(RuntimeError, match="the link is down"):
            train(tmp_path, [callback, Fails()])
        train(tmp_path / "next", [callback])  # nobody said until now that it is over
    else:
        more = {"eval_strategy": "steps", "eval_steps": 5} if how == "an evaluation" else {}
        train(tmp_path, [callback], **more)
    assert not torch.autograd._profiler_enabled()
    about = callback.monitor.get_profile_results()["about"]
    assert about["first_step"] == 2
    assert (
        about["error"]
        == {
            "the end": "the training ended",
            "an evaluation": "val came between",
            "an exception": "the training ended",  # of the next one
        }[how]
    )


def test_without_profiling_no_step_is_profiled(tmp_path: Path) -> None:
    callback, steps = CMRTrainerCallback(monitoring=STRICT), Steps()
    train(tmp_path, [callback, steps])
    assert steps.on == [] and not callback.monitor.profiler.enabled


def test_diagnostics_are_kept_at_the_end(tmp_path: Path) -> None:
    train(tmp_path, [CMRTrainerCallback(monitoring=STRICT)])
    with RunHistory(tmp_path) as history:
        assert [one["step"] for one in history.diagnostics()] == [7]


def test_a_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"monitoring\.log_every_n_steps must be at least 1"):
        CMRTrainerCallback(monitoring={"log_every_n_steps": 0})
    with pytest.raises(ConfigError, match="must be set on the monitor that is passed"):
        CMRTrainerCallback(alerts={}, monitor=CMRTrainerCallback().monitor)
