"""Profiles of a plain loop: what is in the trace, what the results say, what is left of it all."""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from cmr_monitor_callbacks import CMRMonitorError, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.config import ProfilingConfig, ScheduleConfig, TriggerConfig
from tests.memory_models.cmr_like import CMRLikeModel, sequences

MIB = 2**20
WORKER = re.compile(r"^(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?$")
"""Files that TensorBoard's PyTorch plugin (torch-tb-profiler 0.4.3) takes for traces."""


class Layer(nn.Module):
    """A layer with a probe, whose retrieval allocates so many MiB."""

    def __init__(self, layer: int, mib: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.probe = CMRProbe(layer)
        self.mib = mib
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        with self.probe.timer("retrieval") as timer:
            held = torch.empty(self.mib * MIB, dtype=torch.uint8)
            if self.fail:
                raise ValueError("on purpose")
            del held
        self.probe.retrieval(1, 4, seconds=timer.seconds)
        with self.probe.timer("capture") as timer:
            x = self.linear(x)
        self.probe.capture(4, 4, 4, timer.seconds)
        return x


class Model(nn.Module):
    """Two layers."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Layer(4, 3), Layer(6, 20)])
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


INPUT = torch.ones(4, 8)
TOKENS = sequences(1)[:][0]


def watched(model: nn.Module, **settings: Any) -> CMRPerformanceMonitor:
    """A strict monitor of a model, that may profile."""
    monitor = CMRPerformanceMonitor({"on_monitor_error": "raise"}, model=model, profiling=settings)
    monitor.enable_profiling()
    return monitor


def events(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The sections in the trace file itself."""
    found = json.loads(gzip.decompress(Path(results["about"]["trace"]).read_bytes()))
    return [
        event
        for event in found["traceEvents"]
        if event.get("cat") == "user_annotation" and event["name"].startswith("cmr/")
    ]


def test_the_specifications_snippet() -> None:
    model, input_ids = CMRLikeModel(), TOKENS
    monitor = CMRPerformanceMonitor(model=model)
    names = {"monitor": monitor, "model": model, "input_ids": input_ids}
    exec(
        """
# Enable profiling
monitor.enable_profiling()

# Run profiled execution
with monitor.profile_execution():
    outputs = model(input_ids)

# Get profiling results
profile_results = monitor.get_profile_results()
""",
        names,
    )
    results: Any = names["profile_results"]
    assert type(results) is dict
    assert {"sections", "operators", "memory", "gpu", "bottleneck"} <= set(results)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    components = {row["component"] for row in results["sections"].values()}
    assert {"forward", "capture", "retrieval", "reconstruction", "store"} <= components
    assert results["sections"]["cmr/forward"]["calls"] == 1
    assert results["operators"][0]["self_seconds"] > 0
    assert results["memory"]["cpu"]["peak_bytes"] > 0
    if not torch.cuda.is_available():
        assert results["gpu"] == {"busy_share": None, "devices": {}}
    assert results["bottleneck"]["section"] in results["sections"]
    assert results["about"]["trace"] is None  # there is no folder


def test_before_a_profile_it_is_said_what_to_call() -> None:
    monitor = CMRPerformanceMonitor()
    with (
        pytest.raises(CMRMonitorError, match="profiling is off; call enable_profiling"),
        monitor.profile_execution(),
    ):
        raise AssertionError("not reached")
    monitor.enable_profiling()
    with pytest.raises(CMRMonitorError, match=r"no profile was made yet: .* profile_execution"):
        monitor.get_profile_results()


def test_sections_are_in_the_trace_by_name_and_nested(tmp_path: Path) -> None:
    model = Model()
    monitor = watched(model, folder=str(tmp_path))
    with monitor.profile_execution():
        for _ in range(3):
            model(INPUT)
    results = monitor.get_profile_results()
    found = events(results)
    layers = [
        f"cmr/{part}/layer_{n}" for n in (4, 6) for part in ("forward", "retrieval", "capture")
    ]
    assert [e["name"] for e in sorted(found, key=lambda e: e["ts"])] == ["cmr/forward", *layers] * 3

    def inside(name: str, outer: str) -> bool:
        around = [e for e in found if e["name"] == outer]
        return all(
            any(o["ts"] <= e["ts"] and e["ts"] + e["dur"] <= o["ts"] + o["dur"] for o in around)
            for e in found
            if e["name"] == name
        )

    for name in layers:
        assert inside(name, "cmr/forward")
        assert inside(name, f"cmr/forward/{name.rpartition('/')[2]}")
    assert not inside("cmr/capture/layer_4", "cmr/forward/layer_6")
    # what the results say is what the file says, and parts add up to the whole
    rows = results["sections"]
    for name in {"cmr/forward", *layers}:
        durations = [e["dur"] * 1e-6 for e in found if e["name"] == name]
        assert rows[name]["calls"] == 3
        assert rows[name]["seconds"] == pytest.approx(sum(durations))
        assert rows[name]["median_seconds"] == pytest.approx(sorted(durations)[1])
    own = sum(row["self_seconds"] for row in rows.values())
    assert own == pytest.approx(rows["cmr/forward"]["seconds"])
    assert rows["cmr/forward"]["seconds"] <= results["about"]["seconds"]
    assert results["layers"]["6"]["seconds"] == rows["cmr/forward/layer_6"]["seconds"]
    linear = next(row for row in results["operators"] if row["name"] == "aten::linear")
    assert linear["calls"] == 6


class Beside(nn.Module):
    """Memory layers beside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.memories = nn.ModuleDict({"1": Layer(1)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.memories["1"](x)
        return out


def test_blocks_beside_the_memory_are_sections_too() -> None:
    model = Beside()
    for layers, expected in (
        (True, {"cmr/forward/layer_1", *(f"cmr/block/layer_{n}" for n in range(3))}),
        (False, set()),
    ):
        monitor = watched(model, layers=layers)
        with monitor.profile_execution():
            model(INPUT)
        own = {"cmr/forward", "cmr/retrieval/layer_1", "cmr/capture/layer_1"}
        assert set(monitor.get_profile_results()["sections"]) == own | expected
        monitor.detach()


def test_allocations_belong_to_their_section() -> None:
    model = Model()
    monitor = watched(model)
    with monitor.profile_execution():
        model(INPUT)
    results = monitor.get_profile_results()
    rows = results["sections"]
    small = MIB // 10  # outputs of the linear layers
    for layer, mib in ((4, 3), (6, 20)):
        for name in (f"cmr/retrieval/layer_{layer}", f"cmr/forward/layer_{layer}"):
            assert mib * MIB <= rows[name]["peak_bytes"]["cpu"] < mib * MIB + small, name
        assert rows[f"cmr/capture/layer_{layer}"]["peak_bytes"]["cpu"] < small
    whole = rows["cmr/forward"]  # the one was given back before the other came
    assert 20 * MIB <= whole["peak_bytes"]["cpu"] < 20 * MIB + small
    assert 23 * MIB <= whole["allocated_bytes"]["cpu"] < 23 * MIB + small
    assert 20 * MIB <= results["memory"]["cpu"]["peak_bytes"] < 20 * MIB + small
    without = watched(model, profile_memory=False)
    with without.profile_execution():
        model(INPUT)
    assert without.get_profile_results()["memory"] == {}
    assert without.get_profile_results()["sections"]["cmr/forward"]["peak_bytes"] is None


def test_the_peak_is_the_profiles_own() -> None:
    model = Model()
    monitor = watched(model)
    with monitor.profile_execution():  # it sees these come, and nobody sees them go before the next
        held = [torch.empty(9 * MIB, dtype=torch.uint8) for _ in range(2)]
    with monitor.profile_execution():
        model(INPUT)
    assert monitor.get_profile_results()["memory"]["cpu"]["peak_bytes"] < 21 * MIB
    assert len(held) == 2


def test_operations_are_counted_where_asked() -> None:
    model = Model()
    monitor = watched(model, with_flops=True)
    with monitor.profile_execution():
        model(INPUT)
    [row] = [r for r in monitor.get_profile_results()["operators"] if r["name"] == "aten::addmm"]
    assert row["flops"] == 2 * 2 * 4 * 8 * 8  # two products of (4, 8) and (8, 8)


def test_an_exception_passes_and_what_was_seen_is_kept(tmp_path: Path) -> None:
    model = Model()
    monitor = watched(model, folder=str(tmp_path))
    model.blocks[1].fail = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="on purpose"), monitor.profile_execution():
        model(INPUT)
    results = monitor.get_profile_results()
    assert results["about"]["error"] == "ValueError: on purpose"
    assert results["sections"]["cmr/capture/layer_4"]["calls"] == 1
    assert "cmr/capture/layer_6" not in results["sections"]
    assert [e["name"] for e in events(results)].count("cmr/retrieval/layer_6") == 1
    model.blocks[1].fail = False  # type: ignore[assignment]
    with monitor.profile_execution():
        model(INPUT)
    assert monitor.get_profile_results()["about"]["error"] is None
    assert monitor.failures == 0


def test_a_profile_within_a_profile_is_an_error_and_harms_nothing() -> None:
    model = Model()
    monitor = watched(model)
    with monitor.profile_execution():
        with (
            pytest.raises(CMRMonitorError, match="cannot be used within itself"),
            monitor.profile_execution(),
        ):
            raise AssertionError("not reached")
        model(INPUT)
    assert monitor.get_profile_results()["sections"]["cmr/forward"]["calls"] == 1


def test_another_profiler_goes_on_undisturbed() -> None:
    model = Model()
    monitor = watched(model)
    with profile() as other:
        with monitor.profile_execution():
            model(INPUT)
        model(INPUT)
    assert {row.key: row.count for row in other.key_averages()}["aten::linear"] == 4
    with pytest.raises(CMRMonitorError, match="another profiler of torch is on"):
        monitor.get_profile_results()
    assert monitor.failures == 0
    with monitor.profile_execution():
        model(INPUT)
    assert monitor.get_profile_results()["sections"]["cmr/forward"]["calls"] == 1


def test_by_hand_within_a_scheduled_profile_the_scheduled_one_goes_on() -> None:
    model = Model()
    monitor = watched(model, schedule={"wait": 0, "warmup": 0, "active": 2})
    profiler = monitor.profiler
    for step in range(2):
        assert profiler.begin_step(step)
        with monitor.profile_execution():
            model(INPUT)
        assert "a profile of the schedule is under way" in profiler.refused
        profiler.end_step(step)
    results = monitor.get_profile_results()
    assert results["about"]["reason"] == "schedule"
    assert results["sections"]["cmr/forward"]["calls"] == 2
    assert not profiler.begin_step(2)


def test_other_threads_work_while_a_profile_is_on() -> None:
    model = Model()
    monitor = watched(model)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                model(INPUT)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        with monitor.profile_execution():
            model(INPUT)
        assert monitor.get_profile_results()["sections"]["cmr/forward"]["calls"] >= 1
    for thread in threads:
        thread.join()
    assert not failed


def test_a_recompute_is_a_section_of_its_own() -> None:
    model = Model(recompute=True)
    monitor = watched(model)
    with monitor.profile_execution():
        model(INPUT.clone().requires_grad_()).sum().backward()
    rows = monitor.get_profile_results()["sections"]
    for layer in (4, 6):
        for name in (f"cmr/capture/layer_{layer}", f"cmr/forward/layer_{layer}"):
            assert rows[name]["calls"] == rows[f"{name}/recompute"]["calls"] == 1


def test_a_trace_lies_where_tensorboard_looks_and_few_are_kept(tmp_path: Path) -> None:
    model = Model()
    monitor = watched(model, keep=2)
    monitor.open_history(tmp_path)
    paths = []
    for step in range(4):
        monitor.current_step = step
        with monitor.profile_execution():
            model(INPUT)
        paths.append(Path(monitor.get_profile_results()["about"]["trace"]))
    for path in paths:
        assert path.relative_to(tmp_path).parts[:2] == ("plugins", "profile")
        assert WORKER.match(path.name)
    assert [path.exists() for path in paths] == [False, False, True, True]
    folders = sorted(path.name for path in (tmp_path / "plugins" / "profile").iterdir())
    assert folders == ["step_3_profile_execution", "step_4_profile_execution"]
    assert {note["label"].partition(":")[0] for note in monitor.history.marks()} == {
        f"profile of step {step} (profile_execution)" for step in (1, 2, 3, 4)
    }
    monitor.close_history("completed")


def test_a_trace_that_is_too_large_is_dropped_and_named(tmp_path: Path) -> None:
    monitor = watched(Model(), max_trace_mb=0.001, folder=str(tmp_path))
    with monitor.profile_execution():
        torch.ones(3).sum()
    with pytest.raises(CMRMonitorError, match=r"over profiling.max_trace_mb = 0.001"):
        monitor.get_profile_results()
    assert list(tmp_path.iterdir()) == []


# -- nothing is left, nothing is paid for ----------------------------------------------------


def state(model: nn.Module) -> list[Any]:
    """What hooks and dictionaries the modules have, and what they call."""
    out: list[Any] = []
    for module in model.modules():
        out += [list(module._forward_hooks), list(module._forward_pre_hooks)]
        out += [sorted(k for k in vars(module) if not k.startswith("_"))]
    return out


def test_after_a_profile_the_model_is_as_before() -> None:
    model = CMRLikeModel()
    watching = watched(model)
    before, classes = state(model), {}
    buffer = model.memory_buffer
    classes = {name: vars(type(w))["__call__"] for name, w in vars(buffer).items() if callable(w)}
    assert classes
    with watching.profile_execution():
        model(TOKENS)
        changed = {name: vars(type(vars(buffer)[name]))["__call__"] for name in classes}
        assert changed["store_state"] is not classes["store_state"]
    assert state(model) == before
    assert {name: vars(type(vars(buffer)[name]))["__call__"] for name in classes} == classes
    watching.detach()
    assert not any(callable(value) for value in vars(buffer).values())


def test_a_model_let_go_in_the_middle_of_a_profile_is_as_before() -> None:
    model = Model()
    monitor = watched(model)
    with monitor.profile_execution():
        model(INPUT)
        monitor.detach()
        assert not any(module._forward_hooks for module in model.modules())
        model(INPUT)
    assert monitor.get_profile_results()["sections"]["cmr/forward"]["calls"] == 1


class Buffer:
    """A full buffer, as strangers write it."""

    def __init__(self) -> None:
        self.max_entries_per_layer = 2
        self.layer_buffers: dict[int, list[Any]] = {4: [0, 0]}

    def store_state(self, hidden_state: Tensor, layer_idx: int) -> bool:
        """Too late."""
        return len(self.layer_buffers[layer_idx]) < self.max_entries_per_layer

    def retrieve_by_layer(self, layer_idx: int) -> list[Any]:
        """All of a layer."""
        return self.layer_buffers[layer_idx]


class Reconstructor(nn.Module):
    """Gives the states back as they are."""

    def forward(self, hidden_states: Tensor, memories: list[Any], layer_idx: int) -> Any:
        return hidden_states, {"num_memories_used": len(memories)}


class Stranger(nn.Module):
    """Does the same in each call, and knows of no monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.memory_buffer = Buffer()
        self.reconstructor = Reconstructor()

    def forward(self, x: Tensor) -> Tensor:
        self.memory_buffer.store_state(x, 4)
        out, _ = self.reconstructor(x, self.memory_buffer.retrieve_by_layer(4), 4)
        assert isinstance(out, Tensor)
        return out


def called(run: Callable[[], object]) -> list[str]:
    """Every Python function that is called, and every one of C."""
    found: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found.append(f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}")
        elif event == "c_call":
            found.append(argument.__qualname__)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("kind", ["probes", "watched"])
def test_with_profiling_allowed_but_none_on_no_function_more_is_called(kind: str) -> None:
    model: nn.Module = Model() if kind == "probes" else Stranger()
    monitor = CMRPerformanceMonitor({"on_monitor_error": "raise"}, model=model)
    for _ in range(3):  # until each call is like the last
        model(INPUT)
    monitor.flush()

    def run() -> None:
        model(INPUT)

    never = called(run)
    monitor.enable_profiling()
    assert called(run) == never
    with monitor.profile_execution():
        during = called(run)
    assert len(during) > len(never)  # it does see what is called
    components = {row["component"] for row in monitor.get_profile_results()["sections"].values()}
    assert {"forward", "capture", "retrieval"} <= components
    assert called(run) == never


# -- torch.compile ----------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


class Tanh(nn.Module):
    """A layer that compiles."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


@pytest.mark.parametrize("way", ["in place", "block in place", "wrapper", "elsewhere"])
def test_compiled_code_is_not_compiled_anew(fresh_compiler: None, way: str) -> None:
    torch.manual_seed(0)
    model = Model()
    model.blocks = nn.ModuleList(Tanh(block.linear) for block in model.blocks)  # type: ignore[union-attr,misc]
    top: Any = model
    if way == "wrapper":
        top = torch.compile(model, backend="aot_eager", fullgraph=True)
    monitor = watched(top)
    if way == "elsewhere":
        top = torch.compile(model, backend="aot_eager", fullgraph=True)
    parts = model.blocks if way == "block in place" else [model] if way == "in place" else []
    for part in parts:
        part.compile(backend="aot_eager", fullgraph=True)
    plain = top(INPUT)
    compiled = graphs()
    assert compiled > 0
    top(INPUT)
    for _ in range(3):
        with monitor.profile_execution():
            assert torch.equal(top(INPUT), plain)
        assert torch.equal(top(INPUT), plain)
    assert graphs() == compiled
    assert not counters["graph_break"]
    # compiled code is one section, where the monitor can see it
    blocks = {"cmr/forward/layer_0", "cmr/forward/layer_1"} if len(parts) > 1 else set()
    whole = set() if way == "elsewhere" else {"cmr/forward"}
    assert set(monitor.get_profile_results()["sections"]) == whole | blocks


class Compiled(nn.Module):
    """A method that the monitor replaces, called within compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def reconstruct(self, hidden: Tensor, memories: Tensor, layer_idx: int) -> Tensor:
        """Called in the forward."""
        return self.linear(hidden) + memories

    def forward(self, x: Tensor) -> Tensor:
        return self.reconstruct(x, x, 4)


def test_a_replaced_method_in_compiled_code_is_compiled_at_most_once_more(
    fresh_compiler: None,
) -> None:
    model = Compiled()
    monitor = watched(model)
    assert "reconstruct" in vars(model)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    plain = run(INPUT)
    compiled = graphs()
    for _ in range(12):  # more often than the limit of recompiles
        with monitor.profile_execution():
            assert torch.equal(run(INPUT), plain)
        assert torch.equal(run(INPUT), plain)
    assert graphs() <= compiled + 1
    assert not counters["graph_break"]


# -- the manual -------------------------------------------------------------------------------

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "profiling.md"


def test_the_manuals_first_snippet_runs() -> None:
    snippet = re.findall(r"```python\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {"model": Model(), "input_ids": INPUT}
    exec(snippet, names)
    table = MANUAL.read_text(encoding="utf-8").partition("| key | holds |")[2].partition("\n\n")[0]
    keys = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert list(names["profile_results"]) == keys


def test_the_manuals_table_of_settings_is_that_of_the_code() -> None:
    text = MANUAL.read_text(encoding="utf-8").partition("| field | default |")[2]
    rows = re.findall(r"^\| (`[^|]*`) \| `([^|]*)` \|", text, re.MULTILINE)
    said = {name.strip("` "): value for names, value in rows for name in names.split(",")}
    defaults = ProfilingConfig().model_dump(mode="json")
    assert set(said) == set(defaults)
    for name, value in said.items():
        if name == "schedule":
            assert value == "{" + ", ".join(f"{k}: {v}" for k, v in ScheduleConfig()) + "}"
        elif name == "trigger":
            assert value == "{" + ", ".join(f"{k}: {v}" for k, v in TriggerConfig()) + "}"
        else:
            assert json.loads(value) == defaults[name]
