"""The exporter in a real run: scraped by hand, and by a real Prometheus, while a Trainer trains."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
import pytest
import pytorch_lightning as pl
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, ConfigError, Snapshot
from cmr_monitor_callbacks.catalogue import BY_NAME, Kind
from cmr_monitor_callbacks.config import PrometheusConfig, config_root
from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.sinks import PrometheusSink
from cmr_monitor_callbacks.sinks.prometheus_names import series_of
from cmr_monitor_callbacks.sinks.prometheus_samples import ReportCollector
from tests.models import LAYERS, MemoryModule, loader, trainer
from tests.pages import snippets, text_of

STRICT = {"on_monitor_error": "raise"}
RULES = {
    "storage_refused": {
        "metric": "storage_efficiency",
        "select": {"layer": "*"},
        "condition": "<",
        "thresholds": {"warning": 1.0},
    }
}
WHOLE = (
    "states_stored",
    "capture_efficiency",
    "memory_size_mb",
    "utilization_rate",
    "avg_retrieval_time",
    "step_time_p95",
    "throughput",
)
BY_LAYER = ("states_stored", "storage_efficiency", "total_entries")
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever HTTP_PROXY says
T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("no_monitor_thread_left")


def soon(what: Callable[[], T | None], why: str, seconds: float = 60.0) -> T:
    """What a function gives as soon as it gives something; it is asked again and again."""
    until = time.monotonic() + seconds
    while True:
        found = what()
        if found is not None:
            return found
        if time.monotonic() > until:
            pytest.fail(f"after {seconds:g} s still no {why}")
        time.sleep(0.05)


def exporter(callback: CMRMonitorCallback) -> PrometheusSink:
    [found] = [sink for sink in callback.monitor.sinks if isinstance(sink, PrometheusSink)]
    return found


def scraped(url: str, accept: str = "text/plain") -> str:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with DIRECTLY.open(request, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


Known = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Known:
    out: Known = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in out, key
            out[key] = sample.value
    return out


def expected(snapshot: Snapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What the snapshot says: counters over the run, the rest over the last window."""
    out = {}
    wanted: list[tuple[str, Any]] = [(name, None) for name in WHOLE]
    wanted += [(name, layer) for name in BY_LAYER for layer in snapshot.layer_ids]
    for name, layer in wanted:
        info = BY_NAME[name]
        series = series_of(info)
        over: Any = "run" if info.kind is Kind.COUNTER else "window"
        value = snapshot.value(name, layer=layer, over=over)
        if math.isnan(value):
            continue
        labels = {"stage": snapshot.stage, **series.labels}
        if layer is not None:
            labels["layer"] = str(layer)
        part: Any = "" if layer is None else "layer"
        scale = 2**20 if name == "memory_size_mb" else 1
        out[series.name(part), frozenset(labels.items())] = value * scale
    step = ("cmr_last_window_step", frozenset({("stage", snapshot.stage)}))
    return out | {step: float(snapshot.step)}


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Meanwhile(pl.Callback):
    """Calls a function after some batches of training, behind the monitor."""

    def __init__(self, at: set[int], does: Callable[[], None]) -> None:
        self.at, self.does = at, does

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx in self.at:
            self.does()


def test_a_scrape_shows_the_newest_window_of_each_stage(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(
        monitoring=STRICT,
        alerts={"rules": RULES},
        sinks={"prometheus": {"port": 0, "labels": {"run": "a"}}},
    )
    module, seen = MemoryModule(), []

    def look() -> None:
        known = samples(scraped(exporter(callback).url))
        run = ("run", "a")
        for (name, labels), value in expected(callback.snapshot).items():
            assert known[name, labels | {run}] == value, name
        assert not any(math.isnan(value) for value in known.values())
        firing = {dict(labels).get("layer") for name, labels in known if name == "cmr_alert_firing"}
        assert firing == {str(state.layer) for state in callback.health.firing}
        assert callback.health.firing
        for name, component in callback.health.components.items():
            key = "cmr_health_score", frozenset({("component", name), run})
            assert key in known or math.isnan(component.score)
            assert known.get(key, component.score) == pytest.approx(component.score, nan_ok=True)
        key = "cmr_health_system_score", frozenset({run})
        assert known[key] == callback.health.score
        openmetrics = scraped(exporter(callback).url, "application/openmetrics-text; version=1.0.0")
        assert openmetrics.endswith("# EOF\n")
        seen.append((callback.snapshot.step, exporter(callback).port))

    class AfterValidation(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
            known = samples(scraped(exporter(callback).url))
            for (name, labels), value in expected(callback.snapshots["val"]).items():
                assert known[name, labels | {("run", "a")}] == value, name
            seen.append("val")

    fitter = trainer(tmp_path, [callback, Meanwhile({6, 11, 22}, look), AfterValidation()])
    fitter.fit(module, loader(23), loader(4))
    assert [item if item == "val" else item[0] for item in seen] == [4, 9, 19, "val"]
    assert is_free(seen[0][1])
    assert callback.monitor.sinks == []


def test_before_the_first_window_there_is_cmr_info_alone(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT, sinks={"prometheus": {"port": 0}})
    names: list[set[str]] = []

    def look() -> None:
        names.append({name for name, _ in samples(scraped(exporter(callback).url))})

    trainer(tmp_path, [callback, Meanwhile({1}, look)]).fit(MemoryModule(), loader(5))
    assert names == [{"cmr_info"}]


def test_a_second_run_listens_at_the_same_port(tmp_path: Path) -> None:
    port = free_port()
    callback = CMRMonitorCallback(monitoring=STRICT, sinks={"prometheus": {"port": port}})
    for _ in range(2):
        steps: list[float] = []

        def look(steps: list[float] = steps) -> None:
            known = samples(scraped(f"http://127.0.0.1:{port}/metrics"))
            steps.append(known["cmr_last_window_step", frozenset({("stage", "train")})])

        fitter = trainer(tmp_path, [callback, Meanwhile({7}, look)])
        fitter.fit(MemoryModule(), loader(10))
        assert steps == [4.0]
        assert is_free(port)


def test_the_port_is_let_go_of_when_training_fails(tmp_path: Path) -> None:
    port = free_port()
    callback = CMRMonitorCallback(monitoring=STRICT, sinks={"prometheus": {"port": port}})

    def fail() -> None:
        assert not is_free(port)
        raise RuntimeError("by the model")

    with pytest.raises(RuntimeError, match="by the model"):
        trainer(tmp_path, [callback, Meanwhile({7}, fail)]).fit(MemoryModule(), loader(10))
    assert is_free(port)


def test_a_port_in_use_is_one_failure_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        callback = CMRMonitorCallback(
            sinks={"prometheus": {"port": port}, "loggers": False, "callback_metrics": False}
        )
        fitter = trainer(tmp_path, [callback])
        with caplog.at_level(logging.ERROR, "cmr_monitor_callbacks"):
            fitter.fit(MemoryModule(), loader(10), loader(2))
    assert fitter.global_step == 10
    assert callback.monitor.failures == 1
    [said] = [record.getMessage() for record in caplog.records if "failed in" in record.message]
    assert f"127.0.0.1 port {port}" in said
    assert "set sinks.prometheus.port to a free port, or to 0 for any" in said


def test_without_real_time_there_is_no_exporter_and_it_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CMRMonitorCallback(
        monitoring={**STRICT, "enable_real_time": False}, sinks={"prometheus": {"port": 0}}
    )
    found: list[bool] = []

    def look() -> None:
        found.append(any(isinstance(sink, PrometheusSink) for sink in callback.monitor.sinks))

    for _ in range(2):
        fitter = trainer(tmp_path, [callback, Meanwhile({7}, look)])
        fitter.fit(MemoryModule(), loader(10), loader(2))
    assert [r.message for r in caplog.records if "sinks.prometheus" in r.message] == [
        "sinks.prometheus is set, but monitoring.enable_real_time is false: there is no exporter"
    ]
    callback.monitor.enable_real_time_monitoring()
    trainer(tmp_path, [callback, Meanwhile({7}, look)]).fit(MemoryModule(), loader(10))
    assert found == [False, False, True]


def test_other_ranks_have_no_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT, sinks={"prometheus": {"port": 0}})
    found: list[bool] = []

    def look() -> None:
        found.append(any(isinstance(sink, PrometheusSink) for sink in callback.monitor.sinks))

    fitter = trainer(tmp_path, [callback, Meanwhile({7}, look)], logger=False)
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda self: False))
    fitter.fit(MemoryModule(), loader(10))
    assert found == [False]


def test_hydra_switches_it_on_without_a_plus() -> None:
    [line] = re.findall(r"`'(cmr_monitor\.sinks\.prometheus=.*)'`", text_of("docs/prometheus.md"))
    with hydra.initialize_config_dir(str(config_root()), version_base="1.3"):
        node = hydra.compose(overrides=["+cmr_monitor=default", line]).cmr_monitor
    config = CMRMonitorCallback(**node).sinks_config.prometheus
    assert config == PrometheusConfig(port=9400)


def test_a_missing_client_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmr_monitor_callbacks.sinks import prometheus

    monkeypatch.setattr(prometheus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cmr-monitor-callbacks\[prometheus\]'"):
        CMRMonitorCallback(sinks={"prometheus": {"port": 0}})


@contextmanager
def serving(**config: Any) -> Iterator[tuple[CMRPerformanceMonitor, PrometheusSink]]:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    sink = PrometheusSink(PrometheusConfig(**{"port": 0, **config}))
    monitor.sinks.append(sink)
    try:
        yield monitor, sink
    finally:
        monitor.detach()
        sink.close()


def test_a_plain_loop_is_scraped_too() -> None:
    with serving() as (monitor, sink):
        for _ in range(3):
            with monitor.track_performance():
                monitor.record_capture(4, 45, 0.001, states_captured=50, states_attempted=52)
        known = samples(scraped(sink.url))
    labels = frozenset({("stage", "train"), ("layer", "4")})
    assert known["cmr_capture_layer_states_stored_total", labels] == 135.0


def test_a_window_makes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    collect = ReportCollector.collect

    def counted(self: ReportCollector) -> Any:
        asked.append(threading.current_thread().name)
        return collect(self)

    monkeypatch.setattr(ReportCollector, "collect", counted)
    with serving() as (monitor, sink):
        for _ in range(20):
            with monitor.track_performance():
                monitor.record_capture(4, 45, 0.001)
        assert asked == []
        scraped(sink.url)
    assert asked == ["cmr-monitor-prometheus-scrape"]


def test_scrapes_without_a_pause_see_whole_windows(tmp_path: Path) -> None:
    """Of one window: what is refused is what was captured less what was stored."""
    callback = CMRMonitorCallback(
        monitoring={**STRICT, "log_every_n_steps": 1}, sinks={"prometheus": {"port": 0}}
    )
    ends, seen, wrong = threading.Event(), set(), []

    def look(url: str) -> None:
        stage = frozenset({("stage", "train")})
        while not ends.is_set():
            known = samples(scraped(url))
            captured, stored, rejected = (
                known.get((f"cmr_capture_states_{name}_total", stage), 0.0)
                for name in ("captured", "stored", "rejected")
            )
            if captured - stored != rejected:
                wrong.append((captured, stored, rejected))
            seen.add(known.get(("cmr_last_window_step", stage), -1.0))

    class Start(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
            url = exporter(callback).url
            self.thread = threading.Thread(target=look, args=(url,), daemon=True)
            self.thread.start()

        def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
            ends.set()
            self.thread.join(30)
            assert not self.thread.is_alive()

    fitter = trainer(tmp_path, [callback, Start()], logger=False)
    fitter.fit(MemoryModule(), loader(60))
    assert wrong == []
    assert len(seen) > 5
    assert callback.monitor.failures == 0


@pytest.mark.parametrize("address", ["localhost", "::1"])
def test_other_addresses(address: str) -> None:
    if address == "::1" and not has_ipv6():
        with pytest.raises(CMRMonitorError, match="cannot listen at ::1"), serving(address=address):
            pass
        return
    with serving(address=address) as (_, sink):
        assert "cmr_info" in scraped(sink.url)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_address_that_is_not_this_machines() -> None:
    with pytest.raises(CMRMonitorError, match=r"cannot listen at 192\.0\.2\.1 port 0"):
        PrometheusSink(PrometheusConfig(address="192.0.2.1", port=0))


def test_what_fails_in_a_scrape_is_told_with_the_next_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as (monitor, sink):
        with monitor.track_performance():
            pass
        monkeypatch.setattr(
            "cmr_monitor_callbacks.sinks.prometheus_samples.layer_texts", lambda layers: 1 / 0
        )
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            scraped(sink.url)
        soon(lambda: sink._server.failure, "failure")
        for _ in range(2):
            with monitor.track_performance():
                pass
        assert monitor.failures == 1
        assert monitor.error_log[-1] == "PrometheusSink: ZeroDivisionError: division by zero"
        monkeypatch.undo()
        assert "cmr_last_window_step" in scraped(sink.url)


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    with serving() as (_, sink), socket.create_connection(("127.0.0.1", sink.port)):
        assert "cmr_info" in scraped(sink.url)
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("cmr-monitor-prometheus-scrape") >= 1
        start = time.monotonic()
        sink.close()
        assert time.monotonic() - start < 5.0  # it would be hung up on after 10
        assert sink._server.fileno() == -1
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("cmr-monitor-prometheus")]


def test_a_forked_process_does_not_keep_the_port() -> None:
    """A worker of a DataLoader has a copy of the socket, and may live longer."""
    fork = multiprocessing.get_context("fork")
    with serving() as (_, sink):
        worker = fork.Process(target=time.sleep, args=(600,), daemon=True)
        worker.start()
        try:
            sink.close()
            assert is_free(sink.port)
            with serving(port=sink.port) as (_, second):
                assert "cmr_info" in scraped(second.url)
        finally:
            worker.kill()
            worker.join()


class Prometheus:
    """A Prometheus of its own on 127.0.0.1 that scrapes one target every second."""

    def __init__(self, folder: Path, target: str) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.fail("prometheus is missing; on Debian it is in the package prometheus")
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "cmr", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        soon(self._ready, f"Prometheus that is ready; see {self.log}")

    def _ready(self) -> bool | None:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return bool(scraped(f"{self.url}/-/ready")) or None
        except OSError:
            return None

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of an instant query."""
        given = urllib.parse.urlencode({"query": query})
        answer = json.loads(scraped(f"{self.url}/api/v1/query?{given}"))
        assert answer["status"] == "success", answer
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.mark.slow
def test_a_real_prometheus_has_the_snapshots_numbers(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(
        monitoring=STRICT,
        alerts={"rules": RULES},
        sinks={"prometheus": {"port": 0, "labels": {"run": "a"}}},
    )
    servers: list[Prometheus] = []
    compared: list[int] = []

    def ask() -> None:
        if not servers:
            folder = tmp_path / "prometheus"
            folder.mkdir()
            servers.append(Prometheus(folder, f"127.0.0.1:{exporter(callback).port}"))
        [prometheus] = servers
        step = callback.snapshot.step

        def arrived() -> bool | None:
            shown = prometheus.ask('cmr_last_window_step{stage="train",run="a",job="cmr"}')
            return [value for _, value in shown] == [step] or None

        soon(arrived, f"scrape of step {step}")
        for (name, labels), value in expected(callback.snapshot).items():
            given = ",".join(f'{label}="{text}"' for label, text in labels)
            [(_, shown)] = prometheus.ask(f'{name}{{{given},run="a"}}')
            assert shown == value, name
        firing = prometheus.ask('cmr_alert_firing{alert="storage_refused"}')
        assert {labels["layer"] for labels, _ in firing} == {
            str(state.layer) for state in callback.health.firing
        }
        # under one name with the whole's they would count twice
        total = callback.snapshot.value("states_stored")
        assert [v for _, v in prometheus.ask("sum(cmr_capture_states_stored_total)")] == [total]
        by_layer = prometheus.ask("sum(cmr_capture_layer_states_stored_total)")
        assert [value for _, value in by_layer] == [total]
        assert len(prometheus.ask("cmr_capture_layer_states_stored_total")) == len(LAYERS)
        [(_, age)] = prometheus.ask('time() - cmr_last_window_timestamp_seconds{stage="train"}')
        assert 0 <= age < 120
        compared.append(step)

    try:
        fitter = trainer(tmp_path, [callback, Meanwhile({6, 11}, ask)])
        fitter.fit(MemoryModule(), loader(15))
        assert compared == [4, 9]
        soon(lambda: [v for _, v in servers[0].ask("up")] == [0.0] or None, "end of the target")
        assert servers[0].ask("cmr_info") == []
    finally:
        for server in servers:
            server.end()


@pytest.mark.slow
def test_the_rules_of_the_manual_fire_when_a_run_stalls(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.fail("promtool is missing; on Debian it is in the package prometheus")
    [rules] = [text for text in snippets("docs/prometheus.md", "yaml") if "groups:" in text]
    names = [rule["alert"] for rule in yaml.safe_load(rules)["groups"][0]["rules"]]
    (tmp_path / "rules.yaml").write_text(rules)
    on = 'job="cmr",instance="a"'
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f"cmr_info{{{on}}}", "values": "1x60"},
                    {
                        # a window each minute, then none after the tenth
                        "series": f'cmr_last_window_timestamp_seconds{{{on},stage="train"}}',
                        "values": "0+60x10 600x50",
                    },
                    {"series": 'cmr_info{job="cmr",instance="new"}', "values": "1x60"},
                ],
                "alert_rule_test": [
                    {"eval_time": "15m", "alertname": names[0], "exp_alerts": []},
                    {
                        "eval_time": "30m",
                        "alertname": names[0],
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "severity": "critical",
                                    "job": "cmr",
                                    "instance": "a",
                                    "stage": "train",
                                }
                            }
                        ],
                    },
                    {"eval_time": "20m", "alertname": names[1], "exp_alerts": []},
                    {
                        "eval_time": "40m",
                        "alertname": names[1],
                        "exp_alerts": [
                            {
                                "exp_labels": {
                                    "severity": "warning",
                                    "job": "cmr",
                                    "instance": "new",
                                }
                            }
                        ],
                    },
                ],
            }
        ],
    }
    annotations = {
        rule["alert"]: rule["annotations"]["summary"]
        for rule in yaml.safe_load(rules)["groups"][0]["rules"]
    }
    for test in tests["tests"][0]["alert_rule_test"]:  # type: ignore[index]
        for alert in test["exp_alerts"]:
            summary = annotations[test["alertname"]]
            instance = alert["exp_labels"]["instance"]
            alert["exp_annotations"] = {
                "summary": summary.replace("{{ $labels.instance }}", instance)
            }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_of_the_manual_are_settings() -> None:
    [settings] = [text for text in snippets("docs/prometheus.md", "yaml") if "sinks:" in text]
    callback = CMRMonitorCallback(**yaml.safe_load(settings))
    assert callback.sinks_config.prometheus is not None
    [scrape] = [text for text in snippets("docs/prometheus.md", "yaml") if "scrape_configs" in text]
    [job] = yaml.safe_load(scrape)["scrape_configs"]
    port = callback.sinks_config.prometheus.port
    [snippet] = snippets("docs/prometheus.md", "python")
    exec(snippet, {})
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]
