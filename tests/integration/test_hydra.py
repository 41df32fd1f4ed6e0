"""The presets in anybody's Hydra application, without any set-up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate

from cmr_monitor_callbacks import CMRMonitorCallback, ConfigError

APP = """
import hydra
from cmr_monitor_callbacks import CMRMonitorCallback

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    callback = CMRMonitorCallback(**cfg.cmr_monitor)
    print("threshold", callback.monitor.config.alert_thresholds.low_efficiency)

main()
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Somebody's application: a script and a configuration that knows nothing of us."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("lr: 0.1\n")
    (tmp_path / "train.py").write_text(APP)
    return tmp_path


def run(app: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The application, run as its user runs it."""
    return subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=app, capture_output=True, text=True
    )


def test_a_preset_and_an_override_need_no_set_up(app: Path) -> None:
    done = run(
        app, "+cmr_monitor=strict", "cmr_monitor.monitoring.alert_thresholds.low_efficiency=0.8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "threshold 0.8"


def test_multirun(app: Path) -> None:
    done = run(
        app,
        "-m",
        "+cmr_monitor=strict",
        "cmr_monitor.monitoring.alert_thresholds.low_efficiency=0.8,0.6",
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("threshold")] == [
        "threshold 0.8",
        "threshold 0.6",
    ]


def test_a_wrong_value_ends_the_application_with_our_message(app: Path) -> None:
    done = run(app, "+cmr_monitor=default", "cmr_monitor.monitoring.log_every_n_steps=0")
    assert done.returncode != 0
    assert "monitoring.log_every_n_steps must be at least 1, got 0" in done.stderr


def test_a_typo_in_a_listed_node_is_answered_by_hydra_itself(app: Path) -> None:
    done = run(app, "+cmr_monitor=default", "cmr_monitor.monitoring.log_evry_n_steps=5")
    assert done.returncode != 0
    assert "log_evry_n_steps" in done.stderr
    assert "not in struct" in done.stderr


def test_a_typo_that_reaches_our_models_gets_the_nearest_name(app: Path) -> None:
    done = run(app, "+cmr_monitor=default", "+cmr_monitor.monitoring.log_evry_n_steps=5")
    assert done.returncode != 0
    assert "did you mean 'log_every_n_steps'?" in done.stderr


OF_A_RULE = "cmr_monitor.alerts.rules.storage_refused"


def test_no_field_needs_a_plus(app: Path) -> None:
    """Of rules and channels too, nested ones and those that are null."""
    with initialize_config_dir(str(app / "conf"), version_base="1.3"):
        cfg = compose(
            "config",
            [
                "+cmr_monitor=default",
                f"{OF_A_RULE}.m_of_n=[3,5]",
                f"+{OF_A_RULE}.labels={{component: buffer}}",  # a name of one's own, no field
                f"{OF_A_RULE}.reduce.layer=min",
                f"{OF_A_RULE}.compare={{vs: self.best}}",
                f"{OF_A_RULE}.thresholds.warning.recover=0.7",
                f"{OF_A_RULE}.warmup=false",
                "cmr_monitor.alerts.rules.step_outliers.min_ranks=2",
                "cmr_monitor.alerts.alert_channels=[webhook,apprise]",
                "cmr_monitor.alerts.channels.webhook.url=http://localhost/hook",
                "cmr_monitor.alerts.channels.webhook.timeout=1s",
                "cmr_monitor.alerts.channels.apprise.urls=[json://localhost]",
            ],
        )
    alerts = CMRMonitorCallback(**cfg.cmr_monitor).monitor.alert_config
    rule, other = alerts.rules["storage_refused"], alerts.rules["buffer_nearly_full"]
    assert (rule.m_of_n, rule.labels, rule.reduce.layer) == ((3, 5), {"component": "buffer"}, "min")
    assert rule.compare is not None and rule.compare.vs == "self.best"
    assert (rule.thresholds["warning"].recover, rule.warmup) == (0.7, False)
    assert (other.m_of_n, other.labels, other.reduce.layer, other.warmup) == (
        None,
        {},
        "none",
        True,
    )
    assert alerts.rules["step_outliers"].min_ranks == 2
    assert {"webhook", "apprise"} <= set(alerts.channels)


def test_a_typo_in_a_rule(app: Path) -> None:
    with initialize_config_dir(str(app / "conf"), version_base="1.3"):
        with pytest.raises(HydraException, match=re.escape(f"use +{OF_A_RULE}.m_off_n=[3,5]")):
            compose("config", ["+cmr_monitor=default", f"{OF_A_RULE}.m_off_n=[3,5]"])
        cfg = compose("config", ["+cmr_monitor=default", f"+{OF_A_RULE}.m_off_n=[3,5]"])
    said = "alerts.rules.storage_refused.m_off_n is not a setting; did you mean 'm_of_n'?"
    with pytest.raises(ConfigError, match=re.escape(said)):
        CMRMonitorCallback(**cfg.cmr_monitor)


def test_a_node_that_is_no_argument_gets_the_nearest_name(app: Path) -> None:
    done = run(app, "+cmr_monitor=default", "+cmr_monitor.alertz.alert_cooldown=1")
    assert done.returncode != 0
    assert "CMRMonitorCallback has no argument 'alertz'; did you mean 'alerts'?" in done.stderr


def test_a_callbacks_group_with_targets(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "callbacks").mkdir(parents=True)
    (conf / "config.yaml").write_text(
        "defaults:\n  - callbacks: [early, cmr_monitor]\n  - _self_\n"
    )
    (conf / "callbacks" / "early.yaml").write_text(
        "early:\n"
        "  _target_: pytorch_lightning.callbacks.EarlyStopping\n"
        "  monitor: cmr_health/score\n"
    )
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose("config", ["callbacks.cmr_monitor.monitoring.log_every_n_steps=7"])
    callbacks = {name: instantiate(node) for name, node in cfg.callbacks.items()}
    assert isinstance(callbacks["cmr_monitor"], CMRMonitorCallback)
    assert callbacks["cmr_monitor"].monitor.config.log_every_n_steps == 7


def test_another_preset_in_the_callbacks_group(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults:\n  - callbacks: cmr_monitor\n  - _self_\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("config", ["cmr_monitor@callbacks.cmr_monitor=minimal"])
    callback = instantiate(cfg.callbacks.cmr_monitor)
    assert callback.monitor.config.components == ("capture", "buffer")


def test_an_unknown_preset_is_answered_by_hydra(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 0.1\n")
    with (
        initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(HydraException, match="strickt"),
    ):
        compose("config", ["+cmr_monitor=strickt"])


def test_instantiate_passes_a_wrong_value_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults:\n  - callbacks: cmr_monitor\n  - _self_\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("config", ["callbacks.cmr_monitor.alerts.alert_cooldown=-1"])
    with pytest.raises(Exception, match="alert_cooldown must be at least 0") as caught:
        instantiate(cfg.callbacks.cmr_monitor)
    assert isinstance(caught.value.__cause__, ConfigError)
