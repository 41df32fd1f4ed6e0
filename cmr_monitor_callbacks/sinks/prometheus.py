"""An exporter that Prometheus scrapes: the newest window of each stage as text, over HTTP.

The training thread only leaves the newest report; the text is made on the thread of the request.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cmr_monitor_callbacks.catalogue import BY_NAME, COMPONENTS, METRICS, OWN_METRICS, Kind
from cmr_monitor_callbacks.config import PrometheusConfig
from cmr_monitor_callbacks.errors import CMRMonitorError, ConfigError
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.layers import LayerId, layer_order, layer_tag
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW
from cmr_monitor_callbacks.ranks import SHOWN_BY_RANK, standing_out
from cmr_monitor_callbacks.sinks.base import WindowReport
from cmr_monitor_callbacks.sinks.prometheus_names import Part, Series, Type, series_of
from cmr_monitor_callbacks.sinks.tags import is_shown
from cmr_monitor_callbacks.snapshot import Snapshot

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

logger = logging.getLogger(__name__)

_IDLE_SECONDS: Final = 10.0
"""A client that says nothing for so long is hung up on."""
_SERIES: Final = {info.name: series_of(info) for info in (*METRICS, *OWN_METRICS)}
_STEP: Final = Series("", "last_window_step", "gauge", "last step of the newest window")
_TIME: Final = Series(
    "", "last_window_timestamp_seconds", "gauge", "when the newest window ended, since the epoch"
)
_ALERT: Final = Series("", "alert_firing", "gauge", "1 for each alert that fires")
_INFO: Final = "the monitor, and how many processes train"


def require_prometheus_client() -> None:
    """Say early that the exporter's library is missing.

    Raises:
        ConfigError: prometheus-client is not installed.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError(
            "sinks.prometheus needs prometheus-client: "
            "pip install 'cmr-monitor-callbacks[prometheus]'"
        )


class ReportCollector:
    """Makes Prometheus' samples of the newest report of each stage, whenever it is asked.

    A number without data has no sample.

    Args:
        labels: labels of every series.
        layer_metrics: globs over the metrics given for each layer; None: the catalogue's choice.
        whole_metrics: the same for the model as a whole; None: all.
        world_size: processes that train.

    Attributes:
        newest: the newest report by stage.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        layer_metrics: Sequence[str] | None = None,
        whole_metrics: Sequence[str] | None = None,
        world_size: int = 1,
    ) -> None:
        self.newest: dict[str, WindowReport] = {}
        self._labels = dict(labels or {})
        self._whole = [m for m in METRICS if is_shown(m.name, True, whole_metrics)]
        self._own = [m for m in OWN_METRICS if is_shown(m.name, True, whole_metrics)]
        self._by_layer = [
            m
            for m in METRICS
            if m.kind is not Kind.QUANTILE  # kept for the whole alone
            and is_shown(m.name, m.layer_tag, layer_metrics)
        ]
        self._world_size = world_size

    def describe(self) -> Iterable[Metric]:
        """Every family that there may be, without samples."""
        families = _Families(self._labels)
        for info in (*self._whole, *self._own):
            families.of(_SERIES[info.name])
        for info in self._by_layer:
            families.of(_SERIES[info.name], "layer")
        for name in SHOWN_BY_RANK:
            families.of(_SERIES[name], "rank")
        for series in (_STEP, _TIME, _ALERT):
            families.of(series)
        return [self._info(), *families.all()]

    def collect(self) -> Iterable[Metric]:
        """Every family that has samples now."""
        families = _Families(self._labels)
        # a copy: training may write a new stage meanwhile
        for stage, report in self.newest.copy().items():
            snapshot = report.snapshot
            families.add(_STEP, snapshot.step, {"stage": stage})
            families.add(_TIME, snapshot.time, {"stage": stage})
            texts = layer_texts(snapshot.layer_ids)
            self._add_numbers(families, snapshot, texts)
            _add_ranks(families, snapshot)
            self._add_own(families, snapshot)
            _add_alerts(families, report.health, texts)
        return [self._info(), *families.all()]

    def _info(self) -> Metric:
        from prometheus_client.core import InfoMetricFamily

        values = {"version": _version(), "world_size": str(self._world_size)}
        return InfoMetricFamily("cmr", _INFO, {**self._labels, **values})

    def _add_numbers(
        self, families: _Families, snapshot: Snapshot, texts: Mapping[LayerId, str]
    ) -> None:
        stage = {"stage": snapshot.stage}
        for info in self._whole:
            families.add(_SERIES[info.name], _row(snapshot, info.name)[0], stage)
        layers = snapshot.layer_ids
        columns = sorted(range(len(layers)), key=lambda i: layer_order(layers[i]))
        for info in self._by_layer:
            values = _row(snapshot, info.name)
            for i in columns:
                labels = {**stage, "layer": texts[layers[i]]}
                families.add(_SERIES[info.name], values[i + 1], labels, "layer")

    def _add_own(self, families: _Families, snapshot: Snapshot) -> None:
        for info in self._own:
            labels = {"stage": snapshot.stage} if info.component in COMPONENTS else {}
            value = snapshot.own.get(info.name)
            if value is not None:
                families.add(_SERIES[info.name], value, labels)


def _version() -> str:
    try:
        return importlib.metadata.version("cmr-monitor-callbacks")
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


def layer_texts(layers: Sequence[LayerId]) -> dict[LayerId, str]:
    """Value of the label ``layer`` of each layer; no two are alike.

    >>> layer_texts([4, "encoder.2"]), layer_texts([4, "4"])
    ({4: '4', 'encoder.2': 'encoder.2'}, {4: '04', '4': '4'})
    """
    texts = {layer: str(layer) for layer in layers}
    if len(set(texts.values())) < len(texts):
        texts = {layer: layer_tag(layer).removeprefix("layer_") for layer in layers}
    return texts


def _row(snapshot: Snapshot, name: str) -> list[float]:
    counted = BY_NAME[name].kind is Kind.COUNTER
    row = snapshot.counters[COUNTERS.index(name)] if counted else snapshot.window[METRIC_ROW[name]]
    values: list[float] = row.tolist()
    return values


def _add_ranks(families: _Families, snapshot: Snapshot) -> None:
    if snapshot.by_rank is None or snapshot.stage != "train":
        return
    for name, rank, value in standing_out(snapshot.by_rank):
        families.add(_SERIES[name], value, {"stage": snapshot.stage, "rank": str(rank)}, "rank")


def _add_alerts(families: _Families, health: HealthReport, texts: Mapping[LayerId, str]) -> None:
    for state in health.firing:
        labels = {"alert": state.rule, **state.labels}
        if state.layer is not None:
            labels["layer"] = texts.get(state.layer, str(state.layer))
        if state.severity is not None:
            labels["severity"] = state.severity.value
        families.add(_ALERT, 1.0, labels)


class _Families:
    """Samples by family, in the order in which the families were first named."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        from prometheus_client import core

        self._labels = labels
        self._known: dict[str, Metric] = {}
        self._sample = core.Sample
        self._types: dict[Type, Any] = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "summary": core.SummaryMetricFamily,
        }

    def of(self, series: Series, part: Part = "") -> Metric:
        name = series.name(part)
        family = self._known.get(name)
        if family is None:
            family = self._known[name] = self._types[series.type](name, series.text(part))
        return family

    def add(self, series: Series, value: float, labels: Mapping[str, str], part: Part = "") -> None:
        """Add a sample; no data is none."""
        if value != value:
            return
        given = {**self._labels, **series.labels, **labels}
        sample = self._sample(series.name(part), given, value * series.scale)
        self.of(series, part).samples.append(sample)

    def all(self) -> list[Metric]:
        return list(self._known.values())


class PrometheusSink:
    """Serves the newest numbers to Prometheus, on threads of its own.

    Args:
        config: where it listens, and labels of every series.
        layer_metrics: globs over the metrics given for each layer; None: the catalogue's choice.
        whole_metrics: the same for the model as a whole; None: all.
        world_size: processes that train.

    Attributes:
        port: the port that it listens at.
        url: where to scrape it.
        registry: what is served; no other registry knows of it.

    Raises:
        ConfigError: prometheus-client is not installed.
        CMRMonitorError: it cannot listen there: the port is in use, say.
    """

    def __init__(
        self,
        config: PrometheusConfig,
        *,
        layer_metrics: Sequence[str] | None = None,
        whole_metrics: Sequence[str] | None = None,
        world_size: int = 1,
    ) -> None:
        require_prometheus_client()
        from prometheus_client import CollectorRegistry

        self._collector = ReportCollector(config.labels, layer_metrics, whole_metrics, world_size)
        self._newest = self._collector.newest
        self.registry = CollectorRegistry()
        self.registry.register(self._collector)
        self._server = _Server(config.address, config.port, self.registry)
        self.port: int = self._server.server_address[1]
        host = f"[{config.address}]" if ":" in config.address else config.address
        self.url = f"http://{host}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="cmr-monitor-prometheus",
            daemon=True,
        )
        self._thread.start()

    def write(self, report: WindowReport) -> None:
        """Keep the window until the next of its stage.

        Raises:
            Exception: what went wrong in a scrape since the last window; this one is kept all the
                same.
        """
        self._newest[report.snapshot.stage] = report
        if self._server.failure is not None:
            failure, self._server.failure = self._server.failure, None
            raise failure

    def flush(self) -> None:
        """Nothing is pending: a scrape shows what was written last."""

    def close(self) -> None:
        """Hang up, let go of the port and end the threads."""
        self._server.shutdown()
        self._thread.join()
        self._server.end()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each request; `end` ends those under way.

    ``http.server`` would ask the name server for this machine's name before it listens.
    """

    daemon_threads = True
    # on Windows it would let two servers share a port
    allow_reuse_address = os.name == "posix"

    def __init__(self, address: str, port: int, registry: CollectorRegistry) -> None:
        from prometheus_client import MetricsHandler

        self.failure: Exception | None = None
        self._open: dict[threading.Thread, socket.socket] = {}
        handler = MetricsHandler.factory(registry)
        handler.timeout = _IDLE_SECONDS  # type: ignore[attr-defined]
        try:
            found = socket.getaddrinfo(
                address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            self.address_family, where = found[0][0], found[0][4]
            super().__init__(where, handler)  # type: ignore[arg-type]
        except OSError as error:
            raise CMRMonitorError(
                f"the exporter cannot listen at {address} port {port} ({error.strerror or error}); "
                "set sinks.prometheus.port to a free port, or to 0 for any"
            ) from error

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread that is known, so that it can be ended."""
        self._open = {t: known for t, known in self._open.items() if t.is_alive()}
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="cmr-monitor-prometheus-scrape",
            daemon=True,
        )
        self._open[thread] = request
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is nothing; another failure is told with the next window."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, (ConnectionError, TimeoutError)):
            self.failure = error

    def end(self) -> None:
        """Let go of the port and of every client."""
        with suppress(OSError):
            # a forked process, such as a worker of a DataLoader, may hold the socket as well
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server_close()
        for thread, request in self._open.items():
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
            thread.join()
