"""Where a step's time goes: a stopwatch that the callback's hooks advance."""

from __future__ import annotations

StepRecord = tuple[
    float, float | None, float, float, float, float | None, int, int | None, int | None
]
"""Fields as in ``catalogue.RECORDS["timing"]``, then samples and tokens."""


class StepTimer:
    """Sums the phases of a step over its micro-batches; all times in seconds.

    ``mark`` is the last moment whose phase was accounted for. Forward is what lies between a
    batch's start (or the last optimizer step, with manual optimization) and a backward.
    """

    __slots__ = (
        "_backward",
        "_forward",
        "_inside",
        "_last_end",
        "_mark",
        "_monitor",
        "_open",
        "_optimizer",
        "_passes",
        "_samples",
        "_span",
        "_start",
        "_tokens",
        "_wait",
    )

    def __init__(self) -> None:
        self._last_end: float | None = None
        self._monitor: float | None = None
        self._mark = 0.0
        self._inside = False
        self._clear()

    def _clear(self) -> None:
        self._start = 0.0
        self._forward = self._backward = self._optimizer = self._span = 0.0
        self._wait: float | None = None
        self._samples: int | None = None
        self._tokens: int | None = None
        self._passes = 0
        self._open = ""

    def batch_start(self, now: float) -> None:
        """A batch begins; what lies since the last one was waiting."""
        if self._last_end is not None:
            self._wait = (self._wait or 0.0) + now - self._last_end
        self._start = self._mark = now
        self._inside = True
        self._open = "forward"

    def before_backward(self, now: float) -> None:
        """A forward has ended."""
        self._forward += now - self._mark
        self._mark = now
        self._open = "backward"

    def after_backward(self, now: float) -> None:
        """A backward has ended."""
        self._backward += now - self._mark
        self._mark = now
        self._open = ""

    def before_optimizer(self, now: float) -> None:
        """An optimizer step begins."""
        self._mark = now
        self._open = "optimizer"

    def after_optimizer(self, now: float) -> None:
        """An optimizer step has ended."""
        if self._open == "optimizer":
            self._optimizer += now - self._mark
        self._mark = now
        self._open = ""

    def batch_end(self, now: float) -> None:
        """A batch has ended; a phase that nobody ended ends with it."""
        if self._open == "forward":
            self._forward += now - self._mark
        elif self._open == "backward":
            self._backward += now - self._mark
        elif self._open == "optimizer":
            self._optimizer += now - self._mark
        self._open = ""
        self._inside = False
        self._mark = now
        self._passes += 1
        self._span += now - self._start

    def holds(self, samples: int | None, tokens: int | None) -> None:
        """The batch held so many samples and tokens; None: not known."""
        if samples is not None:
            self._samples = samples if self._samples is None else self._samples + samples
        if tokens is not None:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def take(self) -> StepRecord:
        """What is known of the step; a new one begins."""
        record = (
            self._span,
            self._wait,
            self._forward,
            self._backward,
            self._optimizer,
            self._monitor,
            self._passes,
            self._samples,
            self._tokens,
        )
        self._clear()
        return record

    def left_hook(self, entered: float, now: float) -> None:
        """The monitor's own hook ran from ``entered`` to ``now``; that is no waiting for data."""
        self._monitor = now - entered
        self._last_end = self._mark = now

    def stand(self) -> tuple[str, float]:
        """The phase that is under way and when it began; may be asked from another thread."""
        return self._open or ("step" if self._inside else "data"), self._mark

    def pause(self) -> None:
        """Validation or the like comes between: the next wait does not count."""
        self._last_end = None

    def resume(self, now: float) -> None:
        """Validation is over; waiting counts from now on."""
        self._last_end = self._mark = now
