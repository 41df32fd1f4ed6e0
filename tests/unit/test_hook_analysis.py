"""The hooks of a model: listed, measured, put back; conflicts are found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.diagnostics import hook_conflicts, list_hooks, measure_hooks
from tests.memory_models.small import SmallNet


class Capturing(nn.Module):
    """Captures in hooks, twice by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.captured: list[Tensor] = []
        for _ in range(2):
            self.block.register_forward_hook(self._hook(2))
        self.other.register_forward_hook(self._hook(4))

    def _hook(self, layer: int) -> Any:
        def save(module: nn.Module, args: Any, out: Tensor) -> None:
            self._capture_states(out, layer)

        return save

    def _capture_states(self, hidden_states: Tensor, layer_idx: int) -> None:
        self.captured.append(hidden_states.detach())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.other(self.block(x))
        return out


def test_hooks_are_listed_in_the_order_in_which_they_run() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    ran: list[str] = []

    def first(module: nn.Module, args: Any) -> None:
        ran.append("first")

    def second(module: nn.Module, args: Any) -> None:
        ran.append("second")

    model[0].register_forward_pre_hook(second)
    model[0].register_forward_pre_hook(first, prepend=True)
    model[1].register_full_backward_hook(lambda module, given, out: None)
    listed = list_hooks(model)
    assert [(h.module, h.kind, h.order) for h in listed] == [
        ("0", "forward_pre", 0),
        ("0", "forward_pre", 1),
        ("1", "backward", 0),
    ]
    model(torch.ones(1, 2))
    assert [h.function.rpartition(".")[2] for h in listed[:2]] == ran == ["first", "second"]
    assert {h.owner for h in listed} == {"tests"}


def test_the_monitors_own_hooks_are_told_apart() -> None:
    net = SmallNet()
    handle = net.reconstructor.register_forward_hook(lambda module, args, out: None)
    monitor = CMRPerformanceMonitor(model=net)
    here = [h for h in list_hooks(net) if h.module == "reconstructor" and h.kind == "forward"]
    assert [h.ours for h in here] == [False, True]
    monitor.detach()
    assert [h.ours for h in list_hooks(net)] == [False]
    handle.remove()


def test_two_hooks_that_capture_on_one_module_are_found() -> None:
    model = Capturing()
    assert [h.captures for h in list_hooks(model)] == [True, True, True]
    (conflict,) = hook_conflicts(model)
    assert (conflict.kind, conflict.module) == ("capture_twice", "block")
    assert len(conflict.functions) == 2


def test_a_hook_registered_after_compiling_is_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, args, out: None)
    known = [hook.id for hook in list_hooks(model)]
    model[0].compile(backend="eager")
    assert hook_conflicts(model, known, since_compiled=True) == []
    for layer in model:
        layer.register_forward_hook(lambda module, args, out: None)
    (conflict,) = hook_conflicts(model, known, since_compiled=True)
    assert (conflict.kind, conflict.module) == ("after_compile", "0")


def test_what_each_costs_and_changes_is_measured_and_put_back() -> None:
    clock = ManualClock()
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def slow(module: nn.Module, args: Any, out: Tensor) -> None:
        clock.advance(0.5)

    def doubles(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        clock.advance(0.25)
        return 2 * out

    model[0].register_forward_hook(slow)
    model[0].register_forward_hook(doubles)
    model[1].register_full_backward_hook(lambda module, given, out: None)
    before = [dict(module._forward_hooks) for module in model]
    plain = model(torch.ones(3, 2))
    with measure_hooks(model, clock.monotonic) as measured:
        out = model(torch.ones(3, 2))
        out.sum().backward()
        model(torch.ones(3, 2))
    assert torch.equal(out, plain)
    assert [dict(module._forward_hooks) for module in model] == before
    first, second = (h.id for h in list_hooks(model) if h.kind == "forward")
    assert measured.calls["0", "forward", first] == 2
    assert measured.seconds["0", "forward", first] == 1.0
    assert measured.seconds["0", "forward", second] == 0.5
    assert measured.changed == {("0", "forward", second)}
    assert sum(n for (_, kind, _), n in measured.calls.items() if kind == "backward") == 1
