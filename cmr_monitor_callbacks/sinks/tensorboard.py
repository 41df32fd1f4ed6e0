"""TensorBoard: one Event per window, flushed off the training thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from cmr_monitor_callbacks.catalogue import METRICS
from cmr_monitor_callbacks.layers import LayerId, layer_order, layer_tag
from cmr_monitor_callbacks.sinks.base import WindowReport


class TensorBoardSink:
    """Writes to the run's own ``SummaryWriter``.

    A window costs one Event: its proto is kept and only its values change. A thread flushes after
    each window, so that a process killed outright loses at most the window in hand.

    Args:
        writer: ``torch.utils.tensorboard.SummaryWriter`` (``TensorBoardLogger.experiment``).
        custom_scalars: write a layout for the Custom Scalars page when the layers are known.
    """

    def __init__(self, writer: Any, *, custom_scalars: bool = True) -> None:
        self._writer = writer
        self._custom_scalars = custom_scalars
        self._layers: tuple[LayerId, ...] | None = None
        self._tags: Sequence[str] = ()
        self._event = Event()
        self._wanted = threading.Event()
        self._closing = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    @staticmethod
    def accepts(writer: Any) -> bool:
        """Whether a writer takes Events (tensorboardX's does not)."""
        return type(writer).__module__.startswith("torch.utils.tensorboard")

    def write(self, report: WindowReport) -> None:
        """Queue one Event with every scalar of the window.

        Raises:
            Exception: what went wrong when the last window was flushed, such as a full disk; this
                window is queued all the same.
        """
        layers = report.snapshot.layer_ids
        if self._custom_scalars and report.snapshot.stage == "train" and layers != self._layers:
            self._layers = layers
            if layers:
                self._writer.add_custom_scalars(custom_scalars_layout(layers))
        if self._tags is not report.tags:
            self._tags = report.tags
            values = [Summary.Value(tag=tag) for tag in self._tags]
            self._event = Event(summary=Summary(value=values))
            self._values = list(self._event.summary.value)
        for slot, value in zip(self._values, report.values, strict=True):
            slot.simple_value = value
        # serialised before it returns, so the proto may be used again
        self._file_writer().add_event(self._event, report.snapshot.step, report.snapshot.time)
        self._flush_soon()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text for the Text page."""
        self._writer.add_text(tag, text, step)

    def flush(self) -> None:
        """Wait until all that was queued is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """End the flushing thread, after a last flush; the writer stays open for its owner."""
        if self._thread is not None:
            self._closing = True
            self._wanted.set()
            self._thread.join()
            self._thread = None
            self._closing = False
        self.flush()

    def _file_writer(self) -> Any:
        return self._writer.file_writer or self._writer._get_file_writer()

    def _flush_soon(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._flush_loop, name="cmr-monitor-flush", daemon=True
            )
            self._thread.start()
        self._wanted.set()

    def _flush_loop(self) -> None:
        while not self._closing:
            self._wanted.wait()
            self._wanted.clear()
            if not self._closing:
                try:
                    self._writer.flush()
                except Exception as error:
                    self._failure = error  # told on the training thread


def custom_scalars_layout(layers: Sequence[LayerId]) -> Mapping[str, Any]:
    """A layout in which each metric logged per layer is one chart with a line for each layer."""
    ordered = sorted(layers, key=layer_order)
    layout: dict[str, dict[str, list[Any]]] = {}
    for metric in METRICS:
        if metric.layer_tag:
            lines = [f"^{metric.tag}/{layer_tag(layer)}$" for layer in ordered]
            charts = layout.setdefault(f"CMR {metric.component}", {})
            charts[f"{metric.name} by layer [{metric.unit}]"] = ["Multiline", lines]
    return layout
