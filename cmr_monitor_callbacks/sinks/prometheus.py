"""An exporter that Prometheus scrapes: the newest window of each stage as text, over HTTP.

The training thread only leaves the newest report; the text is made on the thread of the request.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cmr_monitor_callbacks.config import PrometheusConfig
from cmr_monitor_callbacks.errors import CMRMonitorError, ConfigError
from cmr_monitor_callbacks.sinks.base import WindowReport
from cmr_monitor_callbacks.sinks.prometheus_samples import ReportCollector

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_IDLE_SECONDS: Final = 10.0
"""A client that says nothing for so long is hung up on."""


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
