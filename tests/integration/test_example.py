"""The example's Hydra application, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
NO_MONITOR = ["~cmr_monitor", "~alert_delays"]
LAYER_TAGS = [
    "cmr_capture/states_captured",
    "cmr_capture/states_stored",
    "cmr_capture/storage_efficiency",
    "cmr_buffer/total_entries",
    "cmr_buffer/utilization_rate",
    "cmr_buffer/eviction_count",
    "cmr_reconstruction/total_reconstructions",
    "cmr_reconstruction/avg_reconstruction_time",
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_short_run_fires_resolves_and_ends_with_a_summary(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "trainer=fast",
        "trainer.max_steps=24",
        "model.capture=16",
        "model.capacity=512",
        "model.capacity_of={6: 32}",
        "callbacks.relief.at_step=16",
        "callbacks.relief.capacity=4096",
        "cmr_monitor.alerts.escalation_rules.warning.delay=0",
        "cmr_monitor.alerts.escalation_rules.error.delay=0",
    )
    assert done.returncode == 0, done.stderr
    assert "storage_refused at step" in done.stderr  # no progress bar, so no bar's own print
    assert "scheduled relief, layer 6's buffer grows from 32 to 4096" in done.stdout
    assert "RESOLVED storage_refused" in done.stderr
    [events] = tmp_path.glob("runs/*/events.out.tfevents.*")
    said = "\n".join(line.strip() for line in done.stdout.splitlines())
    parts = r"Health: \w+ \(\d+ of 100\)\n|Memory by layer, after 24 steps\n|Alerts\n|Files: "
    _, health, layers, alerts, files = re.split(parts, said)
    for component in ("capture", "buffer", "retrieval", "reconstruction", "timing", "errors"):
        assert re.search(rf"^{component} +(healthy|warning|critical|unknown)\b", health, re.M)
    assert re.findall(r"^(\d+|all) +[\d,]+ ", layers, re.M) == ["2", "4", "6", "all"]
    assert re.search(r"^\d+ +storage_refused +firing", alerts, re.M)
    assert re.search(r"^\d+ +storage_refused +resolved", alerts, re.M)
    where, how = files.splitlines()[:2]
    assert where == str(events.parent.relative_to(tmp_path))
    assert how.startswith("Look at it:  make tensorboard")
    reader = EventAccumulator(str(events))
    reader.Reload()
    scalars = reader.Tags()["scalars"]
    for tag in LAYER_TAGS:
        for layer in (2, 4, 6):
            assert f"{tag}/layer_{layer:02d}" in scalars
    assert [e.step for e in reader.Scalars("cmr_health/score")] == [3, 7, 11, 15, 19, 23]


def test_without_the_monitor_it_trains_as_well(tmp_path: Path) -> None:
    done = run(tmp_path, "trainer=fast", "trainer.max_steps=2", "logger=csv", *NO_MONITOR)
    assert done.returncode == 0, done.stderr
    assert "Validation loss" in done.stdout
    assert "Health" not in done.stdout


@pytest.mark.parametrize("preset", ["default", "minimal", "quiet", "strict"])
@pytest.mark.parametrize("logger", ["tensorboard", "csv", "none"])
@pytest.mark.parametrize("trainer", ["cpu", "fast", "ddp_cpu"])
def test_every_choice_composes(preset: str, logger: str, trainer: str) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", [f"cmr_monitor={preset}", f"logger={logger}", f"trainer={trainer}"])
    assert cfg.model.dim == 128
    assert cfg.cmr_monitor.alerts.escalation_rules.warning.delay == 2.0


def captured(folder: Path) -> dict[int, float]:
    [events] = folder.glob("runs/*/events*")
    board = EventAccumulator(str(events))
    board.Reload()
    return {e.step: e.value for e in board.Scalars("cmr_capture/states_captured/layer_04")}


def test_two_ranks_make_one_set_of_curves(tmp_path: Path) -> None:
    short = ["trainer.max_steps=8", "trainer.log_every_n_steps=4", "+trainer.limit_val_batches=1"]
    short += ["trainer.enable_progress_bar=false", "trainer.val_check_interval=4"]
    found = {}
    for trainer in ("cpu", "ddp_cpu"):
        (tmp_path / trainer).mkdir()
        done = run(tmp_path / trainer, f"trainer={trainer}", *short)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Memory by layer, after 8 steps") == 1  # one process speaks
        found[trainer] = captured(tmp_path / trainer)
    assert list(found["cpu"]) == [3, 7]
    assert found["ddp_cpu"] == {step: 2 * value for step, value in found["cpu"].items()}
