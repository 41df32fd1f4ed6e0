"""Where numbers go at the end of a window."""

from cmr_monitor_callbacks.sinks.base import InMemorySink, Sink, WindowReport
from cmr_monitor_callbacks.sinks.loggers import LoggerSink
from cmr_monitor_callbacks.sinks.outlet import Outlet
from cmr_monitor_callbacks.sinks.prometheus import PrometheusSink, require_prometheus_client
from cmr_monitor_callbacks.sinks.tags import TagTable, rank_scalars
from cmr_monitor_callbacks.sinks.tensorboard import TensorBoardSink

__all__ = [
    "InMemorySink",
    "LoggerSink",
    "Outlet",
    "PrometheusSink",
    "Sink",
    "TagTable",
    "TensorBoardSink",
    "WindowReport",
    "rank_scalars",
    "require_prometheus_client",
]
