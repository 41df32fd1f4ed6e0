"""The table of fields and the tests that show them, and small runs for those tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.sinks import InMemorySink
from tests.ear import Ear

SHOWN: dict[str, str] = {}
"""By the name of a field, such as ``alerts.route.group_by``: the test that shows what it does."""
F = TypeVar("F", bound=Callable[..., Any])


def shows(*fields: str) -> Callable[[F], F]:
    """Enter a test into the table, for the fields whose effect it shows."""

    def enter(test: F) -> F:
        place = f"{test.__module__}.{test.__qualname__}"
        for name in fields:
            assert SHOWN.setdefault(name, place) == place, f"{name} has two tests"
        return test

    return enter


class Loop:
    """A plain loop of a model with a probe in each layer; its windows are one step long.

    Args:
        monitoring: settings beside those.
        alerts: likewise; no rules unless given, and each is told of at once.
        layers: of the model.
        model: another model, without probes.
        more: arguments of the monitor.
    """

    def __init__(
        self,
        monitoring: Any = None,
        alerts: Any = None,
        *,
        layers: tuple[int, ...] = (4, 6),
        model: nn.Module | None = None,
        **more: Any,
    ) -> None:
        self.clock = ManualClock(1000.0)
        self.probes = [] if model is not None else [CMRProbe(layer) for layer in layers]
        self.model = model or nn.Module()
        self.model.probes = self.probes  # type: ignore[assignment]
        told = {"rules": {}, "escalation_rules": {}, "alert_cooldown": 0}
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 1, "on_monitor_error": "raise", **(monitoring or {})},
            alert_config={**told, "route": {"group_interval": 0}, **(alerts or {})},
            model=self.model,
            clock=self.clock,
            **{"resources": {"enabled": False}, **more},
        )
        self.sink = InMemorySink()
        self.monitor.sinks.append(self.sink)
        self.ear = Ear()

    def listen(self) -> Loop:
        """Hear what is told, instead of delivering it."""
        self.monitor.alerts.delivery = self.ear  # type: ignore[assignment]
        return self

    def steps(self, *stored: int | None, seconds: float = 20.0) -> list[str]:
        """A step for each number: so many of ten states are stored in each layer; None: no call.

        Returns:
            what was told, as ``WARNING refused``.
        """
        before = len(self.ear.heard)
        for count in stored:
            with self.monitor.track_performance():
                for probe in self.probes if count is not None else ():
                    probe.capture(attempted=10, captured=10, stored=count)
                self.clock.advance(seconds)
        texts = [text.removeprefix("[cmr-monitor] ") for text in self.ear.heard[before:]]
        return [text.split(" at step")[0] for text in texts]

    @property
    def firing(self) -> list[str]:
        """Names of the rules of the alerts that fire."""
        return [state.rule for state in self.monitor.health.firing]


REFUSED: dict[str, Any] = {
    "metric": "storage_efficiency",
    "condition": "<",
    "thresholds": {"warning": 0.5},
}
"""A rule on the model as a whole."""
BY_LAYER = REFUSED | {"select": {"layer": "*"}}


def story(rules: Any = None, **alerts: Any) -> Loop:
    """Windows of 20 s, in which so many of ten states are stored."""
    return Loop(alerts={"rules": rules or {"refused": REFUSED}, **alerts}).listen()
