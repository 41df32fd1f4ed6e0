"""What enters and leaves the watched model: shapes, padding, what its output looks like, errors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from inspect import Parameter
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.catalogue import STATISTICS
from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.probes.reading import parameters, spread
from cmr_monitor_callbacks.probes.report import NOTHING, Amounts, compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import BaseWatch, Ways, guarded, method
from cmr_monitor_callbacks.probes.wrapping import hook
from cmr_monitor_callbacks.recording.batches import batch_shape, first_tensor
from cmr_monitor_callbacks.recording.tally import CALL, PLACES, UNTIMED

_SEEN, _PADDED, _ROWS, _OUTPUTS, _NONFINITE, _ENTROPY = (
    ROW[name]
    for name in (
        "positions_seen",
        "positions_padded",
        "rows_seen",
        "outputs_seen",
        "outputs_nonfinite",
        "output_entropy_sum",
    )
)
_OF_BUFFER: Final = {
    *(i for i, s in enumerate(STATISTICS) if s.component in ("buffer", "moves")),
    *(ROW[name] for name in ("states_attempted", "states_captured", "states_stored")),
    CALL["state taken in a capture"],
    CALL["state refused in a capture"],
}
_WITHOUT_CALL: Final = {
    place: CALL[f"{name} in a capture"]
    for name in ("state taken", "state refused")
    for place in (CALL[name], UNTIMED[CALL[name]])
}
_SERVED: Final = {"model", "errors", "capture", "reconstruction", "retrieval"}
"""Components of which something is counted here, or is left out where a pass is run again."""
_MASKS: Final = {"attention_mask": False, "mask": False, "key_padding_mask": True}
"""Masks of positions by name, and whether what they mark is padding."""
_BY_PLACE: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class PassageWatch(BaseWatch):
    """The forward of the model that training calls; of one inside another, the outer one."""

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self._sample = False
        self._without_grad: tuple[int, int] | None = None
        """Where in the tally a pass without grad stands, which may be run again with grad."""
        self._last = NOTHING
        """What entered in the last pass."""
        self._names: list[str] = []
        """Of the forward's parameters."""

    def begin_step(self) -> None:
        """A pass of the last step is run no more."""
        self._without_grad = None

    def sample(self, on: bool) -> None:
        """Look at the output of each forward, or of none."""
        self._sample = on

    def install(self, ways: Ways) -> None:
        """Hook the forward."""
        report, owner = ways.report, self._owner()
        self._report = report
        if not ways.hooks or not report.kinds & _SERVED:
            return
        counts = "model" in report.kinds
        self._names = [
            parameter.name
            for parameter in parameters(method(owner, "forward"))
            if parameter.kind in _BY_PLACE
        ]
        enters = guarded(report, f"{self.path}.forward", self._enters)
        leaves = guarded(report, f"{self.path}.forward", self._leaves)
        forget = guarded(report, f"{self.path}.forward", partial(_forget, report.tally))
        scope, tally, began = report.scope, report.tally, [0]

        def before(_: Any, module: nn.Module, args: Any, kwargs: Any) -> None:
            if compiling() or scope.now.passing is not None or graph_task() != -1:
                return
            scope.now.passing = self
            if torch.is_grad_enabled() and self._without_grad is not None:
                forget(*self._without_grad)
                scope.now.entered = _sum(scope.now.entered, self._last, -1)
                self._without_grad = None
            began[0] = len(tally)
            if counts:
                enters(args, kwargs)

        def after(_: Any, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if compiling() or scope.now.passing is not self:
                return
            scope.now.passing = None
            if not torch.is_grad_enabled():
                self._without_grad = began[0], len(tally)
            if out is None:
                raised = sys.exc_info()[1]
                if raised is not None:  # this hook is called on the way out too
                    report.error("model", None, raised, module)
            elif self._sample and counts:
                leaves(args, kwargs, out)

        ways.handles += [
            owner.register_forward_pre_hook(hook(before), with_kwargs=True),
            owner.register_forward_hook(hook(after), with_kwargs=True, always_call=True),
        ]
        names = ("sequence_length", "padding_share", "output_nonfinite_share", "output_entropy")
        if counts:
            self.source("", "hook", "forward", *names)

    def _enters(self, args: Any, kwargs: Any) -> None:
        given = self._given(args, kwargs)
        tensor = first_tensor(given)
        self._last = batch_shape(tensor)
        under = self._report.scope.now
        under.entered = _sum(under.entered, self._last)
        if tensor is None or tensor.ndim < 2:
            return
        rows, positions = tensor.shape[:2]
        items = [_ROWS, rows, _SEEN, rows * positions]
        for name, marks_padding in _MASKS.items():
            mask = given.get(name)
            if isinstance(mask, torch.Tensor) and mask.shape == tensor.shape[:2]:
                if mask.device.type == "cpu":  # elsewhere it would have to be waited for
                    marked = int(mask.bool().sum())
                    padded = marked if marks_padding else rows * positions - marked
                    items += (_PADDED, padded)
                break
        self._report.extend(items)

    def _given(self, args: Any, kwargs: Any) -> dict[Any, Any]:
        """The forward's arguments by name, those of a batch that is a mapping among them."""
        # what has no name gets its place instead
        names = [*self._names, *range(len(self._names), len(args))]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        batch = next(iter(given.values()), None)
        return {**batch, **given} if isinstance(batch, Mapping) else given

    def _leaves(self, args: Any, kwargs: Any, out: Any) -> None:
        logits, named = _logits(out)
        if logits is None or logits.device.type != "cpu" or not logits.numel():
            return
        with torch.no_grad():
            rows = spread(logits.detach().reshape(-1, logits.shape[-1])).float()
            finite = torch.isfinite(rows)
            bad = rows.numel() - int(finite.sum())
            items: list[Any] = [_OUTPUTS, rows.numel(), _NONFINITE, bad]
            tokens = first_tensor(self._given(args, kwargs))
            given_tokens = tokens is not None and not tokens.is_floating_point()
            if (named or given_tokens) and not bad and rows.shape[-1] > 1:
                logs = torch.log_softmax(rows, dim=-1)
                items += (_ENTROPY, max(0.0, float(-(logs.exp() * logs).sum(-1).mean())))
        self._report.extend(items)


def _sum(one: Amounts, other: Amounts, sign: int = 1) -> Amounts:
    """What is known of both, together; less the other where ``sign`` is -1."""
    samples, tokens = (
        a if b is None else sign * b + (a or 0) for a, b in zip(one, other, strict=True)
    )
    return samples, tokens


def _forget(tally: list[Any], start: int, end: int) -> None:
    """Leave out of the tally what a pass did, but for what it did to the buffer."""
    if end > len(tally):  # it was taken up since
        return
    kept: list[Any] = []
    for at, number in zip(tally[start:end:2], tally[start + 1 : end : 2], strict=True):
        layer, place = divmod(at, PLACES)
        if place in _OF_BUFFER:
            kept += (at, number)
        elif place in _WITHOUT_CALL:
            kept += (layer * PLACES + _WITHOUT_CALL[place], 0)
    tally[start:end] = kept


def _logits(out: Any) -> tuple[torch.Tensor | None, bool]:
    """The output's logits, and whether they are called so."""
    if isinstance(out, Mapping):
        found = out.get("logits")
    else:
        found = getattr(out, "__dict__", {}).get("logits")
    if isinstance(found, torch.Tensor):
        return (found, True) if found.is_floating_point() and found.ndim >= 2 else (None, False)
    first = out[0] if isinstance(out, tuple) and out else out
    if isinstance(first, torch.Tensor) and first.is_floating_point() and first.ndim >= 2:
        return first, False
    return None, False


def passages(model: nn.Module, paths: list[str], inner: set[str]) -> list[str]:
    """Names of the modules whose forward may be the model's: the outermost and what holds memory.

    Args:
        model: what is attached.
        paths: of the objects watched in it.
        inner: of those, the modules that are parts of a memory.
    """
    holding = {path.partition(".")[0] for path in paths}
    children = [name for name, _ in model.named_children() if name not in inner]
    return ["", *(name for name in children if name in holding or len(children) == 1)]
