"""All ways in which one monitor listens to a model: its probes, and what is watched without any."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from cmr_monitor_callbacks.config import ProbesConfig
from cmr_monitor_callbacks.failures import Failures
from cmr_monitor_callbacks.probes.attachment import Attachment
from cmr_monitor_callbacks.probes.automatic import TOLD, AutomaticAttachment
from cmr_monitor_callbacks.probes.forwards import (
    holders,
    layer_forwards,
    whole_forwards,
    within_compiled,
)
from cmr_monitor_callbacks.probes.largest import HeldTensors, memory_tensors
from cmr_monitor_callbacks.probes.link import Link
from cmr_monitor_callbacks.probes.report import NOTHING, Amounts, Report
from cmr_monitor_callbacks.probes.sections import Open, Sections
from cmr_monitor_callbacks.probes.timing import Timing
from cmr_monitor_callbacks.probes.watches.seam import Told
from cmr_monitor_callbacks.recording.ledger import Ledger
from cmr_monitor_callbacks.sampling import sampled_sources


def _no_model() -> None:
    return None


def _always(layer: Hashable | None, args: Any, kwargs: Any) -> Hashable | None:
    return layer


_PROBED = ("capture", "reconstruction", "buffer", "retrieval", "errors")


class Listening:
    """Attaches to a model, reads it, and lets it go.

    Args:
        ledger: where numbers go.
        kinds: components that are collected.
        watches_layer: says whether a layer is watched.
        config: what is allowed.
        timing: by which clock calls are timed.
        failures: told of the model's errors, and where a watch itself fails.
        step: gives the step that is under way.
        told: what is done with ``record_capture`` and ``record_reconstruction``.

    Attributes:
        watching: whether anything is watched; a model with probes alone needs no look at each step.
        timed: whether calls are timed now.
    """

    def __init__(
        self,
        ledger: Ledger,
        kinds: frozenset[str],
        watches_layer: Callable[[Hashable | None], bool],
        config: ProbesConfig,
        timing: Timing,
        failures: Failures,
        step: Callable[[], int],
        told: tuple[Told, Told],
    ) -> None:
        self._ledger = ledger
        self._watches_layer = watches_layer
        self._config = config
        self._failures = failures
        self._step = step
        self._probes = Attachment(ledger, kinds, watches_layer, self._note_error)
        new_report = partial(
            Report, ledger, kinds, watches_layer, timing.timed, self._count_error, failures.note
        )
        self.timing = timing
        self.automatic = AutomaticAttachment(new_report, config, *told)
        self.watching = False
        self._model: Callable[[], nn.Module | None] = _no_model
        self._sections = Sections()
        self.timed = True
        self._sources: dict[int, Mapping[str, str]] = {}
        """By the steps from one timed step to the next."""
        self._find_sources()

    def attach(self, model: nn.Module, own_monitor: Any) -> int:
        """Listen to the probes of a model, or watch it; what is attached already stays so.

        Args:
            model: what to listen to.
            own_monitor: whose this is; a model may hold it as its ``performance_monitor``.

        Returns:
            number of probes and of objects of the model that are listened to.

        Raises:
            LayerError: two layers would be shown under one name.
        """
        self._model = weakref.ref(model)
        if self.timing.choose(model):
            self._time_calls(on=self.timed)
        if self._config.explicit:
            self._probes.attach(model)
        automatic = self._config.automatic
        if automatic or (automatic is None and not len(self._probes)):
            self.automatic.attach(model, own_monitor)
        self.watching = bool(self.automatic)
        self._find_sources()
        return self.found

    @property
    def found(self) -> int:
        """Probes and objects of the model that are listened to."""
        return len(self._probes) + len(self.automatic)

    def detach(self) -> None:
        """Stop listening; the model is as it was before."""
        self.poll(begun=False)
        self._sections.leave()
        self._probes.detach()
        self.automatic.detach()
        self.watching = False
        self.timing.close()
        self._probes.clock = None

    def refresh(self) -> None:
        """Before a step: notice objects that were replaced since the last."""
        if not self.watching:
            return
        try:
            self.automatic.refresh()
        except Exception as error:
            self._failures.note("looking for replaced objects", error)

    def time_calls(self, *, on: bool) -> None:
        """Time the calls that begin from now on, or leave that out; all are counted.

        What a model gives as ``seconds`` by itself is taken always.
        """
        if on is not self.timed:
            self.timed = on
            self._time_calls(on=on)

    def _time_calls(self, *, on: bool) -> None:
        self.timing.switch(on=on)
        self._probes.clock = self.timing.clock
        self._probes.time_calls(on=on)

    def look_closely(self, *, on: bool) -> None:
        """Take similarities and look at the output, or leave that out."""
        if self.watching:
            self.automatic.sample(on)

    @property
    def entered(self) -> Amounts:
        """Samples and token positions that entered a watched model since the step began."""
        return self.automatic.entered if self.watching else NOTHING

    def take_outputs(self, outputs: Any) -> None:
        """Note the statistics that a training step returned, as numbers; nothing is kept alive."""
        if self.watching and type(outputs) is dict and not TOLD.isdisjoint(outputs):
            with self._failures.guard("reading what the step returned"):
                self.automatic.take_outputs(outputs)

    def poll(self, *, begun: bool = True) -> None:
        """Read what the model holds.

        Args:
            begun: whether that may begin a window; else only one that has begun gets it.
        """
        if self.watching and (begun or self._ledger.dirty or self._ledger.recorder.pending):
            with self._failures.guard("reading the model"):
                self.automatic.poll()
        if (self.watching and self.automatic.changed) or self.timing.changed:
            self._find_sources()

    def entries(self) -> list[list[Any]] | None:
        """Layer and entries of each layer that holds any, as plain data for a checkpoint."""
        found = self.automatic.entries()
        return None if found is None else [[layer, count] for layer, count in found.items()]

    def resume(self, entries: Iterable[tuple[Any, int]] | None) -> None:
        """Go on with a run; what its buffers hold more or less than then was loaded or cleared.

        Args:
            entries: what `entries` gave where it was left; None: nobody knows.
        """
        with self._failures.guard("comparing the entries with the checkpoint's"):
            self.automatic.resume(None if entries is None else dict(entries))

    def place_cells(self, device: torch.device) -> None:
        """Make room for numbers that live on a device, before the first compiled call."""
        self._probes.place_cells(device)

    def held_tensors(self) -> list[HeldTensors]:
        """The tensors of what is watched, and of what holds a probe; the largest first."""
        model = self._model()
        found = [] if model is None else holders(model, [link.path for link in self._probes.links])
        return memory_tensors(self.automatic.watches(), found)

    def enter_sections(self, open_section: Open, *, layers: bool) -> None:
        """Have what the model's memory does be sections of the profile that begins.

        Args:
            open_section: opens one, given component, layer, and whether it is a recompute.
            layers: whether the forward of each layer is one.
        """
        sections, ways, model = self._sections, self.automatic.ways, self._model()
        sections.enter(open_section)
        # what is called in compiled code is not touched: that would compile it anew
        compiled = {kind for kind, blind in ways.report.blind.items() if blind[0]}
        compiled |= {"store"} if "capture" in compiled else set()
        sections.add_wraps(w for w in ways.wraps.sections.items() if w[1][0] not in compiled)
        sections.add_probes(link.probe for link in self._probes.links)
        blind = set() if model is None else within_compiled(model)
        for owner, component, layer in ways.forwards:
            module = owner()
            if module is not None and id(module) not in blind and component not in compiled:
                sections.add_forward(module, component, layer)
        if model is None:
            return
        probes = [(link.path, link.probe.layer) for link in self._probes.links]
        inner = layer_forwards(model, probes) if layers else []
        for module, component, layer_name in inner:
            if id(module) not in blind:
                sections.add_forward(module, component, partial(_always, layer_name))
        for module in whole_forwards(model, [module for module, _, _ in inner]):
            if id(module) not in blind:
                sections.add_forward(module, "forward", partial(_always, None))

    def leave_sections(self) -> None:
        """The profile is over: the model is as it was."""
        self._sections.leave()

    def _find_sources(self) -> None:
        explicit = self._probes.source()
        probed: Mapping[str, str] = dict.fromkeys(_PROBED, explicit) if explicit else {}
        own = {"timing": "timer:steps", "model": "batch:shapes", "monitor": "self"}
        self.timing.look()
        self._sources = {1: self.timing.told({**self.automatic.sources(), **probed, **own})}

    def sources(self, every: int) -> Mapping[str, str]:
        """By metric or component, where its numbers come from; the same object until it changes.

        Args:
            every: calls are timed in every so many-th step.
        """
        if every not in self._sources:
            self._sources[every] = sampled_sources(self._sources[1], every)
        return self._sources[every]

    def _note_error(self, link: Link, exc: BaseException) -> None:
        self._failures.log_error(self._step(), "model", link.probe.layer, exc)

    def _count_error(self, component: str, layer: Hashable | None, exc: BaseException) -> None:
        column = 0
        if layer is not None and self._watches_layer(layer):
            column = self._ledger.layout.column(layer)
        self._ledger.recorder.add_any("errors", column, (1, None, None))
        self._failures.log_error(self._step(), component, layer, exc)
