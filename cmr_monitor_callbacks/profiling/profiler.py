"""The profiler of one monitor: begins and ends profiles, and keeps what the last one says."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from cmr_monitor_callbacks.config import ProfilingConfig
from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.profiling.files import ProfileFiles
from cmr_monitor_callbacks.profiling.names import section_name
from cmr_monitor_callbacks.profiling.plan import Plan, Planner
from cmr_monitor_callbacks.profiling.results import summarise
from cmr_monitor_callbacks.profiling.session import ProfileSession
from cmr_monitor_callbacks.profiling.torch_api import annotate, another_profiler_runs
from cmr_monitor_callbacks.profiling.trace import read_trace

logger = logging.getLogger(__name__)
_MIB: Final = 2**20
_BY_HAND: Final = Plan("profile_execution")
Open = Callable[[str, Hashable | None, bool], AbstractContextManager[Any]]
"""Opens a section: component, layer, and whether it is a recompute."""


class Sectioned(Protocol):
    """What has sections: the model, through whatever listens to it."""

    def enter_sections(self, open_section: Open, *, layers: bool) -> None:
        """Have each section opened as it begins, from now on."""
        ...

    def leave_sections(self) -> None:
        """Have the model as it was."""
        ...


class Profiler:
    """Makes profiles when it is told to, by a schedule, and when alerts fire.

    Args:
        config: when, what and where to.
        enabled: whether profiles may be made.
        sectioned: where sections are opened.
        guard: holds the profiler's own failures.
        mark: told of each profile, for the history: a label and a step.
    """

    def __init__(
        self,
        config: ProfilingConfig,
        enabled: bool,
        sectioned: Sectioned,
        guard: Callable[[str], AbstractContextManager[None]],
        mark: Callable[[str, int], None],
    ) -> None:
        self._config = config
        self._sectioned = sectioned
        self._guard = guard
        self._mark = mark
        self._files = ProfileFiles(config)
        self._session: ProfileSession | None = None
        self._plan: Plan | None = None
        """The profile that takes place now on some rank, or by hand."""
        self._begun = 0
        self._seen = -1
        """The step that began last."""
        self.planner: Planner | None = None
        """Schedule and trigger; None: profiling is off."""
        self.results: dict[str, Any] | None = None
        self.refused = ""
        """Why the last profile that was to be made was not."""
        if enabled:
            self.enable()

    @property
    def enabled(self) -> bool:
        """Whether profiles may be made."""
        return self.planner is not None

    def enable(self) -> None:
        """Allow profiles; the schedule counts from the next step."""
        if self.planner is None:
            self.planner = Planner(self._config)

    def begin_run(self, refused: str = "") -> None:
        """A fit begins: schedule and number of profiles count from here.

        Args:
            refused: why none can be made in this fit; empty: they can.
        """
        if self.planner is None:
            return
        self.planner = Planner(self._config)
        if refused:
            self._refuse(refused)
            self.planner.made = self._config.max_profiles

    def place(self, run: Path | None, rank: int) -> None:
        """Say where the run's log folder is, and which rank this is."""
        self._files.run, self._files.rank = run, rank

    # -- by hand ----------------------------------------------------------------------------

    @contextmanager
    def execution(self, step: int) -> Iterator[None]:
        """Profile what is done within.

        Args:
            step: number of the step under way.

        Raises:
            CMRMonitorError: profiling is off, or within another such block.
        """
        if self.planner is None:
            raise CMRMonitorError(
                "profiling is off; call enable_profiling(), or set monitoring.enable_profiling to "
                "true"
            )
        if self._plan is _BY_HAND:
            raise CMRMonitorError(
                "profile_execution() is under way already: it cannot be used within itself"
            )
        if self._plan is not None:
            self._refuse(f"a profile of the {self._plan.reason} is under way: no other was begun")
            yield
            return
        self._begin(_BY_HAND, step)
        try:
            yield
        except BaseException as error:
            self._end(step, f"{type(error).__name__}: {error}")
            raise
        self._end(step)

    def get_results(self) -> dict[str, Any]:
        """What the last profile says.

        Raises:
            CMRMonitorError: there is none.
        """
        if self.results is None:
            why = self.refused or (
                "no profile was made yet: call enable_profiling(), then run the model within "
                "profile_execution(), or have a Trainer's steps profiled (monitoring."
                "enable_profiling: true)"
            )
            raise CMRMonitorError(why)
        return self.results

    # -- by steps ---------------------------------------------------------------------------

    def begin_step(self, step: int) -> bool:
        """A batch of a step begins; whether a profile takes place in it, on whatever rank."""
        if self.planner is None or step == self._seen:
            return self._plan is not None
        self._seen = step
        if self._plan is not None:
            if self._session is not None and self._plan.active is not None:
                with self._guard("profiling"):
                    self._session.step()
            return True
        plan = self.planner.begins(step)
        if plan is not None:
            self._begin(plan, step)
        return plan is not None

    def end_step(self, step: int) -> None:
        """A step is over; perhaps the last of a profile."""
        plan = self._plan
        if plan is None or plan.active is None:
            return
        if step >= self._begun + plan.warmup + plan.active - 1:
            self._end(step)

    def hear(self, transitions: Iterable[Transition]) -> None:
        """Alerts changed; those that start firing may pull the trigger."""
        if self.planner is not None and transitions:
            self.planner.hears([t.state.rule for t in transitions if t.name == "firing"])

    def interrupt(self, why: str) -> None:
        """End the profile of a schedule or an alert before its time; what it has is kept."""
        if self._plan is not None and self._plan.active is not None:
            self._end(self._seen, why)

    # -- both -------------------------------------------------------------------------------

    def _refuse(self, why: str) -> None:
        self.refused = why
        logger.warning("%s", why)

    def _begin(self, plan: Plan, step: int) -> None:
        self._plan, self._begun, self._seen = plan, step, step
        if plan is not _BY_HAND and self._files.rank not in self._config.ranks:
            return
        if another_profiler_runs():
            self._refuse(
                "another profiler of torch is on in this process, and there can be only one: no "
                "profile was made"
            )
            return
        try:
            with self._guard("profiling"):
                session = ProfileSession(self._config, plan, step)
                session.start()
                self._session = session
                self._sectioned.enter_sections(_open, layers=self._config.layers)
        except BaseException:
            self._plan = None
            raise

    def _end(self, step: int, error: str = "") -> None:
        plan, session = self._plan, self._session
        self._plan = self._session = None
        if self.planner is not None and plan is not None and plan is not _BY_HAND:
            self.planner.ended(step)
        if session is None:
            return
        with self._guard("profiling"):
            try:
                self._sectioned.leave_sections()
            finally:
                session.stop()
            if session.recorded:
                self._evaluate(session, step, error)

    def _evaluate(self, session: ProfileSession, step: int, error: str) -> None:
        config = self._config
        with tempfile.TemporaryDirectory(prefix="cmr-profile-") as folder:
            raw = Path(folder) / "trace.json"
            session.export(raw)
            size = raw.stat().st_size / _MIB
            if size > config.max_trace_mb:
                self._refuse(
                    f"the trace of the profile has {size:.0f} MiB, over profiling.max_trace_mb = "
                    f"{config.max_trace_mb:g}: it is dropped; profile fewer steps, or less of them"
                )
                return
            first = session.first_step
            names = self._files.names(first, session.plan.reason)
            about = {
                "reason": session.plan.reason,
                "first_step": first,
                "last_step": max(first, step),
                "rank": self._files.rank,
                "error": error or None,
                "trace": None if names is None else str(names[0]),
            }
            found = summarise(read_trace(raw), config.top_operators, about, session.flops())
            if names is not None:
                self._files.write(names, raw, found)
        self.results, self.refused = found, ""
        self._tell(found)

    def _tell(self, found: dict[str, Any]) -> None:
        label = _label(found["about"])
        logger.info("%s. %s", label, found["bottleneck"]["sentence"])
        self._mark(label, found["about"]["last_step"])

    def describe(self) -> str:
        """What the last profile is and says, in two lines; '' where there is none."""
        if self.results is None:
            return ""
        label = _label(self.results["about"])
        return f"{label[0].upper()}{label[1:]}\n  {self.results['bottleneck']['sentence']}"


def _open(component: str, layer: Hashable | None, recompute: bool) -> AbstractContextManager[Any]:
    return annotate(section_name(component, layer, recompute))


def _label(about: Mapping[str, Any]) -> str:
    first, last = about["first_step"], about["last_step"]
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    where = f": {about['trace']}" if about["trace"] else ""
    return f"profile of {steps} ({about['reason']}){where}"
