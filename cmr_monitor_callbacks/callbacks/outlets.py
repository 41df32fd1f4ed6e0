"""Where a Trainer's numbers go: its loggers, its callback_metrics, its folder, its progress bar."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from cmr_monitor_callbacks.alerts import Surroundings
from cmr_monitor_callbacks.callbacks.lightning_api import (
    Trainer,
    callback_metrics,
    log_every_n_steps,
    log_folder,
    progress_bar_print,
    run_folder,
    say_at_start,
    tensorboard_writer,
)
from cmr_monitor_callbacks.callbacks.metrics_sink import CallbackMetricsSink
from cmr_monitor_callbacks.config import SinksConfig
from cmr_monitor_callbacks.monitor import CMRPerformanceMonitor
from cmr_monitor_callbacks.sinks import (
    LoggerSink,
    PrometheusSink,
    Sink,
    TensorBoardSink,
    require_prometheus_client,
)

logger = logging.getLogger(__name__)


class Outlets:
    """Opens what a monitor writes to when a Trainer begins, and closes it when that ends.

    Args:
        monitor: whose numbers these are.
        config: which of them are wanted.

    Attributes:
        outcome: how the run ended, for the history.

    Raises:
        ConfigError: an exporter is wanted, and what it needs is not installed.
    """

    def __init__(self, monitor: CMRPerformanceMonitor, config: SinksConfig) -> None:
        if config.prometheus is not None:
            require_prometheus_client()
        self._monitor = monitor
        self._config = config
        self._metrics: CallbackMetricsSink | None = None
        self._own: list[Sink] = []
        self._is_open = False
        self._said_no_exporter = False
        self.outcome = "completed"

    def open(self, trainer: Trainer) -> None:
        """Find the run's folder and loggers; what is open stays so."""
        if self._is_open:
            return
        self._is_open = True
        monitor = self._monitor
        if self._config.callback_metrics:
            self._metrics = CallbackMetricsSink(
                partial(callback_metrics, trainer), *monitor.shown()
            )
            self._own.append(self._metrics)
        self._around(_surroundings(trainer))
        monitor.open_history(run_folder(trainer), trainer.global_rank, trainer.world_size)
        monitor.resources.start(log_folder(trainer), trainer.strategy.root_device)
        self.outcome = "completed"
        if trainer.is_global_zero:
            # with log_every_n_steps=0 the user asked for nothing in the loggers
            if self._config.loggers and log_every_n_steps(trainer) != 0:
                self._own += [self._logger_sink(item) for item in trainer.loggers]
            self._open_exporter(trainer)
        else:
            monitor.alerts.tells = False
        monitor.sinks += self._own

    def close(self) -> None:
        """Let go of what is open; the alerts' table goes into the event file before that closes."""
        monitor = self._monitor
        monitor.alerts.delivery.close()
        monitor.close_history(self.outcome)
        self._around(Surroundings())
        self._metrics = None
        self._is_open = False
        sinks, self._own = self._own, []
        mine = {id(sink) for sink in sinks}
        monitor.sinks = [sink for sink in monitor.sinks if id(sink) not in mine]
        for sink in sinks:
            with monitor.guard(type(sink).__name__):
                sink.close()

    def rewrite_metrics(self) -> None:
        """Lightning empties callback_metrics now and then."""
        if self._metrics is not None:
            self._metrics.rewrite()

    def show_metrics(self) -> None:
        """Have callback_metrics be there for EarlyStopping and ModelCheckpoint."""
        monitor = self._monitor
        monitor.settle()
        if self._metrics is None:
            return
        if monitor.windows == 0 and monitor.current_step >= 0:
            self._metrics.put(*monitor.peek())  # an epoch may be shorter than a window
        else:
            self._metrics.rewrite()

    def _open_exporter(self, trainer: Trainer) -> None:
        config, monitor = self._config.prometheus, self._monitor
        if config is None:
            return
        if not monitor.is_live:
            if not self._said_no_exporter:
                self._said_no_exporter = True
                logger.warning(
                    "sinks.prometheus is set, but monitoring.enable_real_time is false: there is "
                    "no exporter"
                )
            return
        with monitor.guard("PrometheusSink"):
            exporter = PrometheusSink(
                config,
                layer_metrics=monitor.config.layer_metrics,
                whole_metrics=monitor.config.whole_metrics,
                world_size=trainer.world_size,
            )
            self._own.append(exporter)
            say_at_start(f"CMRMonitorCallback serves Prometheus at {exporter.url}")

    def _around(self, around: Surroundings) -> None:
        """Tell the alerts' channels where the run is."""
        vars(self._monitor.alerts.delivery.around).update(vars(around))

    def _logger_sink(self, item: Any) -> Sink:
        writer = tensorboard_writer(item)
        if writer is not None and TensorBoardSink.accepts(writer):
            return TensorBoardSink(writer, custom_scalars=self._config.custom_scalars)
        return LoggerSink(item)


def _surroundings(trainer: Trainer) -> Surroundings:
    """What the alerts' channels find; the other ranks tell of nothing but their own stalls."""
    folder = log_folder(trainer)
    if not trainer.is_global_zero:
        return Surroundings(folder=folder, run=folder.name)
    writers = [tensorboard_writer(item) for item in trainer.loggers]
    writer = next((w for w in writers if w is not None), None)
    return Surroundings(
        folder=folder,
        emit=progress_bar_print(trainer),
        add_text=None if writer is None else writer.add_text,
        run=folder.name,
    )
