"""The JSON report keeps to its schema, and the schema lets nothing else pass."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cmr_monitor_callbacks import RunHistory
from cmr_monitor_callbacks.catalogue import METRICS
from cmr_monitor_callbacks.custom import Tracked
from cmr_monitor_callbacks.history import HistoryStore
from cmr_monitor_callbacks.reports import contents, report_of
from tests.histories import START, end, filled_snapshot, snapshot, store
from tests.reported import HOSTILE, filled

SCHEMA = json.loads(Path(contents.__file__).with_name("report.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
Path_ = tuple[str | int, ...]


def two_ranks(path: Path | None) -> HistoryStore:
    opened = filled(path, 12)
    opened.window(snapshot(60, {"step_time": 0.1}, own={"straggler_ratio": 1.5}))
    return opened


def extreme(path: Path | None) -> HistoryStore:
    """Numbers that JSON has no sign for, or that overflow when they are put together."""
    opened = store(path)
    for step in range(20):
        values = {"step_time": math.inf, "throughput": 1e308, ("states_stored", "l"): 1e308}
        values["storage_efficiency"] = math.nan if step % 2 else -math.inf
        opened.window(snapshot(step, values, layers=("l",), own={"score": math.nan}))
    return opened


def one_window(path: Path | None) -> HistoryStore:
    opened = store(path)
    opened.window(filled_snapshot(0))
    return opened


RUNS: dict[str, Callable[[Path | None], HistoryStore]] = {
    "no window": lambda path: store(path),
    "one window": one_window,
    "no layer": lambda path: filled(path, 20, ()),
    "one layer": lambda path: filled(path, 20, (0,)),
    "many layers": lambda path: filled(path, 20, tuple(range(48))),
    "named layers": lambda path: filled(path, 20, ("encoder.0", "4", 4, "ü/\n")),
    "hostile texts": lambda path: filled(path, 20, ("<b>",), text=HOSTILE),
    "gaps": lambda path: filled(path, 20, gaps=True),
    "nothing happened": lambda path: filled(path, 20, eventful=False),
    "not finite": extreme,
    "ranks": two_ranks,
}


def strict(report: dict[str, Any]) -> dict[str, Any]:
    """As who reads the file has it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = json.dumps(report, allow_nan=False)
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_report_of_that_form(name: str, in_memory: bool, tmp_path: Path) -> None:
    opened = RUNS[name](None if in_memory else tmp_path / "history.sqlite")
    with RunHistory(opened if in_memory else tmp_path) as history:
        for time_range in (None, "10s", 0):
            report = report_of(history, time_range)
            VALIDATOR.validate(strict(report))
            assert strict(report) == report, "a reader of the file has another report"
    end(opened)
    if not in_memory:
        with RunHistory(tmp_path) as history:
            VALIDATOR.validate(strict(report_of(history)))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_keys_of_the_specified_example(tmp_path: Path) -> None:
    filled(tmp_path / "history.sqlite")
    now = datetime(2024, 1, 15, 10, 30, tzinfo=timezone.utc)
    with RunHistory(tmp_path) as history:
        report = strict(report_of(history, now=now.timestamp()))
    assert report["timestamp"] == "2024-01-15T10:30:00Z"
    assert datetime.fromisoformat(report["timestamp"].replace("Z", "+00:00")) == now
    assert report["system_health"] == "critical"
    assert report["component_status"]["capture"] == "critical"
    for name in ("memory_buffer", "retrieval_system", "reconstruction"):
        assert report["component_status"][name] == "healthy"
    for name in ("avg_latency", "throughput", "error_rate"):
        assert isinstance(report["performance_metrics"][name], float)


@pytest.mark.parametrize("name", ["no window", "one window"])
def test_the_same_keys_where_nothing_is_known(name: str) -> None:
    report = report_of(RunHistory(RUNS[name](None)))
    assert report["performance_metrics"] == dict.fromkeys(
        ("avg_latency", "throughput", "error_rate")
    )
    assert report["component_status"]["memory_buffer"] == "unknown"
    assert report["system_health"] == "unknown"
    assert report["timestamp"] == "2023-11-14T22:13:20Z", "when the run began, not 1970"


# -- mutations ------------------------------------------------------------------------------------

MAPS = {
    ("metrics",),
    ("layers",),
    ("ranks",),
    ("resources",),
    ("run", "versions"),
    ("alerts", "fired"),
    ("health", "components"),
}
"""Objects whose keys are names: one may be missing, and others may be there."""
NULLABLE = {
    *("folder", "outcome", "ended", "last_window", "step", "git_commit", "from", "to"),
    *("first_step", "last_step", "avg_latency", "throughput", "error_rate", "score"),
    *("value", "total", "mean", "min", "p50", "p95", "max", "last", "phase", "share", "part"),
    *("part_share", "layer", "rank", "severity", "threshold"),
}
ENUMS = {
    *("system_health", "status", "state", "polarity", "over", "trend", "phase", "part", "before"),
    *("after", "name", "severity", "origin", "schema"),
}
TIMES = {"timestamp", "started", "ended", "last_window", "from", "to", "time"}
TIMES |= {"first_time", "last_time"}


def is_map(path: Path_) -> bool:
    of_layer = len(path) == 2 and path[0] in ("layers", "ranks")
    return path in MAPS or of_layer or path[-1:] == ("evidence",)


def walk(node: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every node below the root, with where it is."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key), value
        if isinstance(value, (dict, list)):
            yield from walk(value, (*path, key))


def mutated(report: dict[str, Any], path: Path_, change: Callable[[Any, Any], None]) -> Any:
    """A report of which the change was made, to what holds the last key of the path."""
    other = copy.deepcopy(report)
    at: Any = other
    for key in path[:-1]:
        at = at[key]
    change(at, path[-1])
    return other


def wrong(path: Path_, value: Any) -> Iterator[Any]:
    """Values that may not stand there."""
    name = path[-1]
    numbers = path[0] in ("layers",)
    yield from ([1], {"a": 1}, True)
    if isinstance(value, str) and name != "layer":
        yield 1.5
    if isinstance(value, (int, float)) and name != "layer":
        yield "1"
    if isinstance(value, int) and name != "change":
        yield 1.5
    if not isinstance(value, str) and name in ("score", "share", "part_share", "rank", "windows"):
        yield -1
    if name == "score":
        yield 101
    if name not in NULLABLE and not numbers and not isinstance(value, type(None)):
        yield None
    if name in ENUMS or path[0] == "component_status":
        yield f"{value}?"
    if name in TIMES:
        yield from ("2024-01-15T10:30:00Z?", "2024-01-15T10:30:00+01:00", "yesterday")


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """A report in which everything there can be is there."""
    report = report_of(RunHistory(filled(None, 40, (2, "b"))))
    report["ranks"] = {"0": {"step_time": 0.1}}
    filled_in = {"outcome": "completed", "ended": report["run"]["started"], "git_commit": "ab12"}
    report["run"] |= filled_in
    missing = [
        path for path, value in walk(report) if isinstance(value, (dict, list)) and not value
    ]
    assert missing == [], "a list without members has nothing to change"
    VALIDATOR.validate(strict(report))
    return report


def test_no_mutation_passes(full: dict[str, Any]) -> None:
    survived: list[tuple[str, Path_, Any]] = []
    tried = 0

    def refuse(what: str, path: Path_, change: Callable[[Any, Any], None], shown: Any) -> None:
        nonlocal tried
        tried += 1
        if VALIDATOR.is_valid(mutated(full, path, change)):
            survived.append((what, path, shown))

    for path, value in walk(full):
        if path[0] in ("metrics", "layers", "alerts", "errors") and path[1:2] not in (
            ("throughput",),
            ("error_count",),
            ("2",),
            ("firing",),
            ("fired",),
            (0,),
            (),
        ):
            continue  # of one form with those that are tried
        if path[-2:-1] == ("evidence",):
            continue  # each finding has numbers of its own
        in_list = isinstance(path[-1], int)
        if not in_list and not is_map(path[:-1]):
            refuse("removed", path, lambda at, key: at.pop(key), None)
        if isinstance(value, dict) and not is_map(path):
            refuse("unknown key", path, lambda at, key: at[key].update(surprise=1), None)
        if isinstance(value, (dict, list)):
            nothing = () if path == ("diagnostics",) else (None,)  # nobody looked
            for other in ("text", 1, *nothing, [] if isinstance(value, dict) else {}):
                refuse("type", path, lambda at, key, o=other: at.__setitem__(key, o), other)
            continue
        for other in wrong(path, value):
            refuse("value", path, lambda at, key, o=other: at.__setitem__(key, o), other)
    refuse("unknown key", ("x",), lambda at, key: at.__setitem__(key, 1), 1)
    assert survived == []
    assert tried > 500


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metrics", "Bad Name"), None),
        (("ranks", "first"), {}),
        (("health", "components", "memory_buffer"), {"score": 1.0, "status": "healthy"}),
        (("alerts", "fired", "slow"), 0),
        (("metrics", "throughput", "total"), 1.0),
        (("metrics", "error_count", "p50"), 1.0),
        (("layers", "2", "not a name"), 1.0),
    ],
)
def test_names_and_counters_are_checked_too(full: dict[str, Any], path: Path_, value: Any) -> None:
    given = full["metrics"]["throughput"] if value is None else value
    assert not VALIDATOR.is_valid(mutated(full, path, lambda at, key: at.__setitem__(key, given)))


def test_a_users_own_numbers_may_stand_in_it() -> None:
    opened = store(None)
    for step in range(3):
        tracked = {"grad_norm": Tracked.of(1.0 + step, START)}
        one = snapshot(step, {"step_time": 0.5})
        opened.window(dataclasses.replace(one, custom=tracked, custom_run=tracked))
    report = strict(report_of(RunHistory(opened)))
    VALIDATOR.validate(report)
    assert report["metrics"]["custom/grad_norm"]["value"] == 2.0


def test_every_metric_of_the_catalogue_may_stand_in_it() -> None:
    opened = store(None)
    for step in range(3):
        opened.window(snapshot(step, {m.name: 0.5 for m in METRICS}))
    report = strict(report_of(RunHistory(opened)))
    VALIDATOR.validate(report)
    assert {m.name for m in METRICS} <= set(report["metrics"])
    assert report["timestamp"] == datetime.fromtimestamp(START + 2, timezone.utc).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
