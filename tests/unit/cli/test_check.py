"""The dry check: settings that are wrong or may not be meant, models, and rules that do nothing."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    CMRPerformanceMonitor,
    CMRProbe,
    InMemorySink,
)
from cmr_monitor_callbacks.catalogue import RESOURCE_NAMES
from cmr_monitor_callbacks.checking import CheckReport, check
from cmr_monitor_callbacks.checking.settings import NODES
from cmr_monitor_callbacks.checking.targets import bound
from cmr_monitor_callbacks.checking.watching import as_it_was
from cmr_monitor_callbacks.cli import app
from cmr_monitor_callbacks.config import config_root, load_preset, preset_names
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health.series import Series
from examples.cmr_lm.model import CMRConfig, FullCMRModel
from tests.histories import end, snapshot, store
from tests.memory_models.cmr_like import (
    CMRLikeModel,
    LayeredMemoryBuffer,
    PassedModel,
    sequences,
)
from tests.memory_models.small import SmallNet, loader
from tests.pages import snippets

HERE = __name__
SECRET = "https://hooks.example.com/T0/very-secret"


def cmr_lm() -> nn.Module:
    config = CMRConfig(dim=16, blocks=3, heads=2, context=16, memory_layers=[2, 3], capacity_of={})
    return FullCMRModel(config)


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(32).reshape(2, 16)}


def small_batch() -> Any:
    return next(iter(loader()))


def cmr_like() -> nn.Module:
    return CMRLikeModel()


def cmr_like_batch() -> Tensor:
    return torch.stack([sequences(2)[i][0] for i in range(2)])


def passed() -> nn.Module:
    return PassedModel()


def passed_batch() -> tuple[Tensor, LayeredMemoryBuffer]:
    return torch.randn(2, 3, 8), LayeredMemoryBuffer()


class NoMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(2)
        print("making a model")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def four_numbers() -> Tensor:
    return torch.randn(3, 4)


class Twice(nn.Module):
    """Two layers that would be shown under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.probes = [CMRProbe("a b"), CMRProbe("a/b")]


def raising() -> nn.Module:
    raise RuntimeError("no weights here")


def leaving() -> nn.Module:
    sys.exit(3)


def no_model() -> int:
    return 3


instance = nn.Linear(2, 2)


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["check", *map(str, arguments)], env={"COLUMNS": "250"})
    return done.exit_code, done.output


def here(name: str) -> str:
    return f"{HERE}:{name}"


def write(folder: Path, settings: Any) -> Path:
    path = folder / "settings.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def rules(**given: Any) -> dict[str, Any]:
    """Settings with these rules alone; what a rule leaves out is of a plain one."""
    plain = {"condition": ">", "thresholds": {"error": 1}}
    valueless = ("absent", "nonfinite", "frozen")
    named = {name: {**plain, **rule} for name, rule in given.items()}
    for rule in named.values():
        if rule["condition"] in valueless:
            rule["thresholds"] = {"error": {}}
    return {"alerts": {"rules": named, "inhibit": []}}


def said(report: CheckReport) -> dict[str, tuple[str, str]]:
    return {note.rule: (note.status, note.reason) for note in report.rules}


# What the settings say


def test_every_argument_of_the_callback_can_be_checked() -> None:
    arguments = set(inspect.signature(CMRMonitorCallback).parameters)
    assert set(NODES) == arguments - {"monitor"}


@pytest.mark.parametrize("name", preset_names())
def test_the_presets_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run(name, "--strict")
    assert code == 0, output
    assert f"{name}: the settings are valid" in output
    assert run(config_root() / "cmr_monitor" / f"{name}.yaml", "--strict")[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_nodes_may_stand_under_a_key_beside_others(tmp_path: Path) -> None:
    nodes = {"_target_": "x.CMRMonitorCallback", "monitoring": {"log_every_n_steps": "${steps}"}}
    path = write(tmp_path, {"cmr_monitor": nodes, "steps": 7, "model": {"dim": 3}})
    assert check(str(path)).cost.window_steps == 7
    assert check(str(path), ["cmr_monitor.monitoring.log_every_n_steps=8"]).cost.window_steps == 8
    assert check(str(path), ["++monitoring.log_every_n_steps=9"]).cost.window_steps == 9
    assert check(str(path), ["~monitoring.log_every_n_steps"]).cost.window_steps is None


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (
            {"monitoring": {"log_every_n_steps": 0}},
            [],
            "monitoring.log_every_n_steps must be at least 1, got 0",
        ),
        (
            rules(slow={"metric": "avg_latency", "thresholds": {"error": {"fire": "soon"}}}),
            [],
            "alerts.rules.slow.thresholds.error.fire",
        ),
        ({"monitoring": {"layerz": []}}, [], "did you mean 'layers'"),
        ({"profiling": {"trigger": {"rules": {"retrieval_slwo": 5}}}}, [], "retrieval_slow'"),
        (
            {"monitoring": {"enable_profiling": True}, "profiling": {"enabled": True}},
            [],
            "both set; keep one",
        ),
        ({"monitorin": {}}, [], "monitorin is not a node of"),
        ({"monitorin": {}}, [], "did you mean 'monitoring'"),
        ({"defaults": ["x"]}, [], "has a list of defaults, which Hydra composes"),
        ({"cmr_monitor": 3}, [], "cmr_monitor in"),
        ({"alerts": {"rules_file": "away.yaml"}}, [], "alerts.rules_file 'away.yaml' cannot be"),
        ({"monitoring": {"layers": "${oc.env:NOT_SET_HERE}"}}, [], "NOT_SET_HERE"),
        ("monitoring: [", [], "cannot be read"),
        ("- a\n- b", [], "must be a mapping, got a list"),
        ({}, ["monitoring.log_every_n_steps=ten"], "must be a whole number, got 'ten'"),
        ({}, ["monitoring.log_every_n_stps=1"], "did you mean 'log_every_n_steps'"),
        ({}, ["monitoring.log_every_n_steps"], "override 'monitoring.log_every_n_steps' cannot be"),
        ({}, ["monitoring.log_every_n_steps=1,2"], "must have one value"),
        ({}, ["~monitoring.layers"], "override '~monitoring.layers': there is no such setting"),
    ],
)
def test_what_is_wrong_with_settings_is_named(
    tmp_path: Path, settings: Any, arguments: list[str], message: str
) -> None:
    overrides = [part for text in arguments for part in ("-o", text)]
    code, output = run(write(tmp_path, settings), *overrides)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


def test_every_wrong_setting_is_named_at_once() -> None:
    wrong = ["monitoring.log_every_n_steps=0", "alerts.alert_cooldown=-1", "sinks.loggers=maybe"]
    with pytest.raises(ConfigError) as caught:
        check("default", wrong)
    assert len(str(caught.value).splitlines()) == 3


def test_what_is_no_file_and_no_preset() -> None:
    code, output = run("defalt")
    assert (code, "did you mean 'default'" in output) == (2, True)
    code, output = run("away.yaml")
    assert (code, "away.yaml cannot be read" in output) == (2, True)
    assert run()[0] == 2
    code, output = run("default", "--input", here("tokens"))
    assert (code, "give --model too" in output) == (2, True)


def test_secrets_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_HERE", SECRET)
    channels = {"hook": {"type": "webhook", "url": "${oc.env:HOOK_HERE}", "format": "slack"}}
    path = write(tmp_path, {"alerts": {"alert_channels": ["hook"], "channels": channels}})
    code, output = run(path)
    assert code == 0
    assert "very-secret" not in output
    assert "format: slack" in output
    code, output = run(path, "--json")
    assert "very-secret" not in output
    [channel] = json.loads(output)["settings"]["channels"]
    assert (channel["name"], channel["kind"]) == ("hook", "webhook")
    for text in ("alerts.channels.hook.url=ftp://very-secret", "alerts.channels.hook.url=[very-"):
        code, output = run(path, "-o", text)
        assert (code, "very-secret" in output) == (2, False)


def test_what_may_not_be_meant_is_noted(tmp_path: Path) -> None:
    settings = rules(slow={"metric": "avg_latency"}, off={"metric": "step_time", "enabled": False})
    settings["alerts"] |= {
        "alert_channels": ["log"],
        "channels": {"hook": {"type": "webhook", "url": SECRET}},
        "silences": [{"match": {"alert": "slwo"}}, {"match": {"alert": "training_*"}}],
        "inhibit": [{"source": {"alert": "slow"}, "target": {"alert": "of*"}}],
    }
    settings["sinks"] = {"loggers": False, "callback_metrics": False}
    path = str(write(tmp_path, settings))
    assert check(path).settings.notes == (
        "channel 'hook' has settings, but is not in alert_channels: it is told of nothing",
        "rule 'off' is disabled",
        "silences[0].match: no rule in force is named 'slwo'",
        "inhibit[0].target: no rule in force is named 'of*'",
        "sinks.loggers and sinks.callback_metrics are false: numbers go to no logger",
    )
    assert check(path).settings.rules == 1
    empty = check(path, ["alerts.alert_channels=[]"]).settings.notes
    assert empty[0] == "alert_channels is empty: nobody is told of alerts"
    quiet = check(path, ["alerts.enable_alerts=false"])
    assert quiet.settings.notes[0] == "enable_alerts is false: no rule is judged"
    assert quiet.settings.rules == 0


def test_rules_of_a_file_are_among_them(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    late = {"metric": "step_time", "condition": ">", "thresholds": {"error": 1}}
    more.write_text(yaml.safe_dump({"rules": {"late": late, "off": {**late, "enabled": False}}}))
    settings = rules(slow={"metric": "avg_latency"})
    settings["alerts"]["rules_file"] = str(more)
    part = check(str(write(tmp_path, settings))).settings
    assert part.rules == 2
    assert part.notes == ("rule 'off' is disabled",)


# Rules, without a model


@pytest.mark.parametrize(
    ("rule", "monitoring", "status", "reason"),
    [
        (
            {"metric": "retrieval_quality"},
            {"components": ["capture"]},
            "matches nothing",
            "retrieval_quality needs the component retrieval, which monitoring.components "
            "switches off",
        ),
        (
            {"metric": "eviction_rate"},
            {"components": ["buffer"]},
            "matches nothing",
            "eviction_rate needs the component capture, which monitoring.components switches off",
        ),
        (
            {"metric": "states_stored", "select": {"layer": "99"}},
            {"layers": ["2", "4*"]},
            "matches nothing",
            "select.layer '99' matches no layer that monitoring.layers (2, 4*) lets through",
        ),
        (
            {"metric": "states_stored", "select": {"layer": "dec*"}},
            {"layers": ["2|4"]},
            "matches nothing",
            "select.layer 'dec*' matches no layer that monitoring.layers (2|4) lets through",
        ),
        (
            {"metric": "avg_latency", "select": {"layer": "*"}},
            {},
            "matches nothing",
            "avg_latency is known of the model as a whole only; leave select.layer out",
        ),
        (
            {"metric": "total_entries", "when": "entries_retrieved > 0 and step_time > 1"},
            {"components": ["buffer", "timing"]},
            "matches nothing",
            "its when can never hold: entries_retrieved needs the component retrieval, which "
            "monitoring.components switches off",
        ),
        (
            {"metric": "total_entries", "no_data": {"mode": "alert"}},
            {"components": ["timing"]},
            "fires for want of data",
            "total_entries needs the component buffer, which monitoring.components switches off, "
            "and for want of data it fires",
        ),
        (
            {"metric": "states_stored", "condition": "absent", "select": {"layer": "4"}},
            {"layers": ["2"]},
            "fires for want of data",
            "select.layer '4' matches no layer that monitoring.layers (2) lets through, and for "
            "want of data it fires",
        ),
        (
            {"metric": "step_time", "min_ranks": 2},
            {},
            "not known",
            "it needs 2 processes (--ranks says how many there will be)",
        ),
        (
            {"metric": "step_time", "select": {"rank": "3"}},
            {},
            "not known",
            "select.rank '3' leaves out rank 0 (see --ranks)",
        ),
    ],
)
def test_a_rule_that_does_nothing(
    tmp_path: Path, rule: Any, monitoring: Any, status: str, reason: str
) -> None:
    settings = {**rules(one=rule, well={"metric": "error_count"}), "monitoring": monitoring}
    monitoring.setdefault("components", ["*"])
    monitoring["components"] = [*monitoring["components"], "errors"]
    report = check(str(write(tmp_path, settings)))
    assert said(report) == {"one": (status, reason)}
    assert report.findings == (() if status == "not known" else (f"one: {reason}",))


@pytest.mark.parametrize(
    "rule",
    [
        {"metric": "states_stored", "select": {"layer": "4"}},
        {"metric": "states_stored", "select": {"layer": "4|*"}},
        {"metric": "total_entries", "when": "hit > 1 or total_entries > 1"},
        {"metric": "step_time", "select": {"rank": "*"}},
        {"metric": "*", "select": {"component": "buffer"}},
    ],
)
def test_a_rule_that_may_do_something(tmp_path: Path, rule: Any) -> None:
    rule = {**rule, "when": rule["when"].replace("hit", "cache_hits")} if "when" in rule else rule
    monitoring = {"components": ["capture", "buffer", "timing"], "layers": ["2", "4"]}
    path = write(tmp_path, {**rules(one=rule), "monitoring": monitoring})
    assert said(check(str(path))) == {}


def test_the_machine_that_is_not_sampled(tmp_path: Path) -> None:
    settings = rules(
        idle={"metric": "gpu_utilization"}, full={"metric": "disk_free_mb"}, any={"metric": "score"}
    )
    assert said(check(str(write(tmp_path, settings)))) == {}
    off = check(str(write(tmp_path, {**settings, "resources": {"enabled": False}})))
    assert said(off) == {
        "idle": ("matches nothing", "gpu_utilization is not sampled: resources.enabled is false"),
        "full": ("matches nothing", "disk_free_mb is not sampled: resources.enabled is false"),
    }
    assert set(said(check(str(write(tmp_path, {**settings, "resources": {"gpu": False}}))))) == {
        "idle"
    }


def test_ranks(tmp_path: Path) -> None:
    settings = rules(
        many={"metric": "step_time", "min_ranks": 4},
        third={"metric": "step_time", "select": {"rank": "3"}},
        straggler={"metric": "straggler_ratio"},
    )
    path = str(write(tmp_path, settings))
    assert said(check(path, ranks=1)) == {
        "many": ("matches nothing", "it needs 4 processes, and there is one"),
        "third": (
            "matches nothing",
            "select.rank '3' matches no rank: rank 0 alone is there",
        ),
        "straggler": ("matches nothing", "straggler_ratio compares processes, and there is one"),
    }
    assert set(said(check(path, ranks=3))) == {"many", "third"}
    assert said(check(path, ranks=4)) == {}
    assert run(path, "--ranks", 3, "--strict")[0] == 1
    assert run(path, "--ranks", 4, "--strict")[0] == 0
    assert run(path, "--ranks", 0)[0] == 2
    assert check(path, ranks=1).cost.payload_bytes is None
    assert check(path, ranks=4).cost.payload_bytes > 0


# Models


def test_the_example_model() -> None:
    report = check("strict", model=here("cmr_lm"), batch=here("tokens"), pairs=2)
    assert report.model is not None
    assert (report.model.probes, report.model.objects, report.model.layers) == (3, 0, (2, 3))
    assert report.model.sources["capture"] == "explicit:probe and 2 more"
    assert set(report.model.missing) == {"optimization"}
    # probes say nothing of the model's outputs
    assert report.findings == (
        "nonfinite_outputs: a probe cannot give output_nonfinite_share; probes.automatic: true may",
    )
    assert check("strict", ["probes.automatic=true"], model=here("cmr_lm")).findings == ()
    counted = report.counted
    assert counted is not None
    assert counted.passes == 2
    # both memory layers take 4 states of each of 2 sequences, in each pass; the second pass reads
    assert counted.layers["states_stored"] == {"2": 16.0, "3": 16.0}
    assert counted.whole["total_entries"] == 32.0
    assert counted.layers["total_reconstructions"] == {"2": 1.0, "3": 1.0}
    measured = report.measured
    assert measured is not None
    assert measured.pairs == 2
    assert 0 < measured.ratio_low <= measured.ratio <= measured.ratio_high
    assert min(measured.plain_seconds, measured.watched_seconds, measured.window_seconds) > 0


def test_a_model_without_any_memory(tmp_path: Path) -> None:
    code, output = run("default", "--model", here("NoMemory"))
    assert code == 0
    assert "no retrieval: nothing in the model gives its numbers" in output
    assert run("default", "--model", here("NoMemory"), "--strict")[0] == 1
    report = check("default", model=here("NoMemory"), batch=here("four_numbers"), pairs=2)
    assert set(report.model.missing) == {
        "capture",
        "reconstruction",
        "buffer",
        "retrieval",
        "optimization",
    }
    notes = said(report)
    for name, rule in load_preset("default")["alerts"]["rules"].items():
        if rule["select"]["layer"] is not None:
            assert notes[name][0] == "matches nothing", name
    assert "memory_errors" not in notes
    assert report.counted.whole["error_count"] == 0.0
    assert report.counted.layers == {}
    settings = {**rules(), "monitoring": {"components": ["timing", "errors", "model"]}}
    assert check(str(write(tmp_path, settings)), model=here("NoMemory")).findings == ()


def test_a_model_that_nobody_instrumented() -> None:
    report = check("strict", model="tests.memory_models.small:SmallNet", batch=here("small_batch"))
    assert (report.model.probes, report.model.objects) == (0, 5)
    assert report.model.layers == (2, 4)
    assert report.model.sources["capture"] == "wrapped:memory_buffer.store_state"
    assert said(report)["retrieval_useless"] == (
        "no data in the passes",
        "retrieval_quality may have a source, but had no data yet",
    )
    assert report.findings == ()


def test_a_model_as_another_project_writes_it() -> None:
    report = check("default", model=here("cmr_like"), batch=here("cmr_like_batch"), pairs=2)
    assert set(report.model.layers) == {1, 2, 4}
    assert report.model.objects > 0
    assert set(report.model.missing) == {"optimization"}
    assert report.model.failures == ()
    assert set(report.counted.layers["states_stored"]) == {"1", "2", "4"}


@pytest.mark.parametrize(
    ("model", "batch"),
    [("cmr_lm", "tokens"), ("SmallNet", "small_batch"), ("NoMemory", "four_numbers")],
)
def test_what_is_said_of_rules_is_what_the_engine_sees(model: str, batch: str) -> None:
    """Rules that match nothing never get a number; those of which nothing is said do."""
    names = globals()
    net, given = names[model](), names[batch]()
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1}, model=net)
    had: set[str] = set()
    for _ in range(4):
        with monitor.track_performance():
            bound(net, given)()
        series = Series(monitor.alerts.rules, monitor.snapshot.layer_ids, 1)
        values, companions = series.read(monitor.snapshot)
        had |= {series.key(i)[0] for i in range(len(series)) if values[i] == values[i]}
        if companions is not None:
            unknown = {series.key(i)[0] for i in range(len(series)) if companions[1][i]}
            had -= unknown
    monitor.detach()
    notes = said(check("default", model=here(model), batch=here(batch), pairs=2, ranks=1))
    nothing = {name for name, (status, _) in notes.items() if status == "matches nothing"}
    assert had & nothing == set()
    # these need a Trainer, or a number that is not finite
    elsewhere = {"input_bound", "nonfinite_states"}
    # these have numbers once the machine was sampled, and where it has a GPU
    elsewhere |= {r.name for r in monitor.alerts.rules if {*r.metrics} <= {*RESOURCE_NAMES}}
    assert {rule.name for rule in monitor.alerts.rules} - set(notes) - elsewhere <= had


def test_what_only_a_pass_shows(tmp_path: Path) -> None:
    path = str(write(tmp_path, rules(one={"metric": "total_entries", "select": {"layer": "*"}})))
    status, reason = said(check(path, model=here("cmr_like")))["one"]
    assert (status, "layers show in a forward pass (--input)" in reason) == ("not known", True)
    handed = {"model": here("passed"), "batch": here("passed_batch"), "pairs": 2}
    for options in ({"model": here("cmr_like"), "batch": here("cmr_like_batch")}, handed):
        report = check(path, **options)
        assert report.model.layers != ()
        assert said(report) == {}


def test_a_layer_that_does_not_exist(tmp_path: Path) -> None:
    settings = rules(
        ninety_nine={"metric": "states_stored", "select": {"layer": "99"}},
        gone={"metric": "states_stored", "select": {"layer": "99"}, "condition": "absent"},
        third={"metric": "states_stored", "select": {"layer": "3"}},
        both={"metric": "states_stored", "select": {"layer": "99|2"}},
    )
    path = str(write(tmp_path, settings))
    report = check(path, model=here("cmr_lm"))
    reason = "select.layer '99' matches no layer found (2, 3)"
    assert said(report) == {
        "ninety_nine": ("matches nothing", reason),
        "gone": ("fires for want of data", f"{reason}, and for want of data it fires"),
    }
    assert report.cost.rule_series == 3  # gone on 99, third on 3, both on 2
    fewer = check(path, ["monitoring.layers=['2']"], model=here("cmr_lm"))
    assert said(fewer)["third"][1] == (
        "select.layer '3' matches no layer found that monitoring.layers (2) allows (2)"
    )
    none = check(path, ["monitoring.layers=['7']"], model=here("cmr_lm"))
    assert said(none)["third"][1] == (
        "select.layer '3' matches nothing: no layer was found that monitoring.layers (7) allows"
    )
    code, output = run(path, "--model", here("cmr_lm"), "--strict")
    assert code == 1
    assert reason in output
    assert "2 findings" in output


@pytest.mark.parametrize(
    ("option", "target", "message"),
    [
        ("model", "build_model", "must be module:callable"),
        ("model", "no_such_package.models:build", "there is no module 'no_such_package'"),
        ("model", "tests.no_such_module:build", "there is no module 'tests.no_such_module'"),
        ("model", "broken_on_import:build", "importing broken_on_import raised KeyError: 'x'"),
        ("model", "imports_what_is_away:build", "No module named 'what_is_away'"),
        ("model", here("cmr_ml"), f"{HERE} has no 'cmr_ml'; did you mean 'cmr_lm'?"),
        ("model", here("zzzzzz"), f"{HERE} has no 'zzzzzz'"),
        ("model", here("raising"), "raising() raised RuntimeError: no weights here ("),
        ("model", here("leaving"), "leaving() raised SystemExit: 3 ("),
        ("model", here("bound"), "bound() raised TypeError"),
        ("model", here("no_model"), "must give a torch.nn.Module, got <class 'int'>"),
        ("model", here("Twice"), "would both be shown as 'layer_a_b'"),
        ("input", here("raising"), "raising() raised RuntimeError: no weights here ("),
        ("input", here("four_numbers"), "the forward pass of FullCMRModel raised "),
    ],
)
def test_what_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, target: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_on_import.py").write_text("{}['x']")
    (tmp_path / "imports_what_is_away.py").write_text("import what_is_away")
    model = [] if option == "model" else ["--model", here("cmr_lm")]
    code, output = run("default", *model, f"--{option}", target)
    assert code == 2
    assert message in output
    assert target in output
    assert "Traceback" not in output


def test_modules_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "of_mine.py").write_text(
        "import torch\nclass Parts:\n    @staticmethod\n    def build():\n"
        "        return torch.nn.Linear(2, 2)\nbatch = torch.ones(1, 2)\n"
    )
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    code = "import sys; from cmr_monitor_callbacks.cli import main; main()"
    options = ["check", "--model", "of_mine:Parts.build", "--input", "of_mine:batch", "--json"]
    done = subprocess.run(
        [*command, "-c", code, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == 6
    assert {path.name for path in tmp_path.iterdir()} <= {"of_mine.py", "__pycache__"}


def test_json_is_all_that_is_printed() -> None:
    options = ("--model", here("NoMemory"), "--input", here("four_numbers"), "--pairs", 2)
    done = CliRunner().invoke(app, ["check", "default", *map(str, options), "--json"])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert set(report) == {
        "settings",
        "model",
        "rules",
        "cost",
        "counted",
        "measured",
        "findings",
    }
    assert report["cost"]["layers"] == 0
    assert "making a model" in done.stderr


def test_settings_need_no_model() -> None:
    report = check("default")
    assert (report.model, report.counted, report.measured) == (None, None, None)
    assert report.cost.layers is None
    assert report.cost.scalars_per_layer == 8
    assert check(None, model=here("instance")).settings.source == "default"


def test_the_estimate_of_scalars_holds() -> None:
    """No window gives TensorBoard more, and each further layer adds as many."""
    off = "resources.enabled=false"  # which numbers there are depends on the machine
    report = check("default", [off], model=here("cmr_lm"))
    alone = check("default", [off, "monitoring.layers=['2']"], model=here("cmr_lm"))
    assert alone.cost.layers == 1
    assert check("default", model=here("cmr_lm")).cost.scalars > report.cost.scalars
    assert report.cost.scalars - alone.cost.scalars == report.cost.scalars_per_layer
    assert report.cost.series - alone.cost.series == report.cost.series_per_layer
    assert alone.cost.window_bytes < report.cost.window_bytes
    model, sink = cmr_lm(), InMemorySink()
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1}, model=model, resources={"enabled": False}
    )
    monitor.sinks = [sink]
    for _ in range(3):
        with monitor.track_performance():
            model(**tokens())
    monitor.detach()
    shown = {tag for window in sink.reports for tag in window.tags}
    by_layer = {tag for tag in shown if "/layer_" in tag}
    assert len(by_layer) == 2 * report.cost.scalars_per_layer
    # without a Trainer there are no times of a backward or an optimizer, and no batches
    assert len(shown) <= report.cost.scalars <= len(shown) + 15


def test_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def build() -> nn.Module:
        net = SmallNet()
        net.norm = nn.BatchNorm1d(1)
        net.blocks[0].eval()
        made.append(net)
        return net

    monkeypatch.setattr(sys.modules[HERE], "built", build, raising=False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    reference = SmallNet()
    torch.set_rng_state(before)
    check("default", model=here("built"), batch=here("small_batch"), pairs=2)
    [net] = made
    assert isinstance(net, SmallNet)
    assert not net.blocks[0].training
    assert net.training
    for name, value in reference.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in net.parameters())
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert vars(net.memory_buffer).keys() == vars(reference.memory_buffer).keys()
    assert vars(net.retriever).keys() == vars(reference.retriever).keys()


def test_running_statistics_and_random_numbers_come_back() -> None:
    model = NoMemory().eval()
    before, state = model.norm.running_mean.clone(), torch.get_rng_state()
    with pytest.raises(KeyError), as_it_was(model):
        assert model.norm.training
        model(torch.randn(5, 4))
        assert not torch.equal(model.norm.running_mean, before)
        raise KeyError
    assert torch.equal(model.norm.running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.norm.training


@pytest.mark.parametrize("given", [(1, 2), [1, 2], {"a": 1, "b": 2}])
def test_how_a_batch_is_handed_over(given: Any) -> None:
    class Pair(nn.Module):
        def forward(self, a: int, b: int = 0) -> tuple[int, int]:
            return a, b

    assert bound(Pair(), given)() == (1, 2)
    assert bound(Pair(), 1)() == (1, 0)


def test_the_manuals_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manual's factories run, and its table of rules is what the command says."""
    [factories] = snippets("docs/check.md", "python")
    [sample] = snippets("docs/check.md", "console")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manual_models.py").write_text(factories)
    command = next(line for line in sample.splitlines() if line.startswith("$ cmr-monitor check"))
    code, output = run(*command.replace("my_models", "manual_models").split()[3:], "--pairs", 2)
    assert code == 0, output
    row = r"│ (\w+) +│ (matches nothing|not known) +│ (.*?) +│"
    assert re.findall(row, sample) == re.findall(row, output) != []
    titles = re.findall(r"^[A-Z][\w ]+$", sample, re.MULTILINE)
    assert len(titles) >= 5
    assert [title for title in titles if title not in output] == []


def test_a_rule_beside_a_recorded_run(tmp_path: Path) -> None:
    kept = store(tmp_path / "history.sqlite")
    kept.window(snapshot(0, {"storage_efficiency": 0.5}))
    end(kept)
    rules = {
        name: {"metric": metric, "compare": {"vs": "baseline"}, "thresholds": {"error": 2}}
        for name, metric in (("known", "storage_efficiency"), ("unknown", "cache_hit_rate"))
    }
    path = tmp_path / "settings.yaml"
    path.write_text(
        yaml.safe_dump({"alerts": {"rules": rules, "inhibit": [], "baseline": str(tmp_path)}})
    )
    assert check(str(path)).settings.notes == (
        f"rule 'unknown' compares with {tmp_path}, which has no cache_hit_rate: it never has data",
    )
    with pytest.raises(ConfigError, match=r"alerts\.baseline 'gone': there is no history at"):
        check(str(path), ["alerts.baseline=gone"])
    with pytest.raises(ConfigError, match=r"alerts\.baseline must name a recorded run"):
        check(str(path), ["alerts.baseline=null"])
