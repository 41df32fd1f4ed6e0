"""Watching a model that nobody instrumented: find its memory, listen to it, let it go."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from cmr_monitor_callbacks.catalogue import STATISTICS
from cmr_monitor_callbacks.config import ProbesConfig
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.probes.adapters import recognise
from cmr_monitor_callbacks.probes.arguments import ArgumentWatch
from cmr_monitor_callbacks.probes.books import Account, Books
from cmr_monitor_callbacks.probes.report import NOTHING, Amounts, Report
from cmr_monitor_callbacks.probes.survey import Link, Part, attributes, part_of, survey
from cmr_monitor_callbacks.probes.watches.base import Watch, Ways
from cmr_monitor_callbacks.probes.watches.buffer import BufferWatch
from cmr_monitor_callbacks.probes.watches.capture import CaptureWatch, ScorerWatch
from cmr_monitor_callbacks.probes.watches.counters import CounterWatch, dictionaries
from cmr_monitor_callbacks.probes.watches.fifo import FifoWatch
from cmr_monitor_callbacks.probes.watches.indexed import IndexedWatch
from cmr_monitor_callbacks.probes.watches.passage import PassageWatch, passages
from cmr_monitor_callbacks.probes.watches.readings import ReadingWatch
from cmr_monitor_callbacks.probes.watches.reconstruction import ReconstructionWatch
from cmr_monitor_callbacks.probes.watches.retrieval import RetrievalWatch
from cmr_monitor_callbacks.probes.watches.seam import SeamWatch, Told
from cmr_monitor_callbacks.probes.wrapping import Wraps
from cmr_monitor_callbacks.sampling import sampled_sources

logger = logging.getLogger(__name__)
Tell = Callable[[dict[str, str]], Mapping[str, str]]
"""Adds to sources, by metric or component."""
TOLD = frozenset({"performance_stats", "memory_stats", "memory_info"})
"""Keys of the statistics that a training step may return."""
_COUNTED = (BufferWatch, IndexedWatch)
_HOLDING = (*_COUNTED, FifoWatch)
_LOOKING = (ReconstructionWatch, PassageWatch, RetrievalWatch, BufferWatch)
_OF_MEMORY = frozenset({"capture", "reconstruction", "buffer", "retrieval"})
"""Components of what is recognised in a model."""


class AutomaticAttachment:
    """Everything that one monitor watches by itself.

    Args:
        new_report: gives a place for numbers.
        config: what is allowed.
        capture: told of ``record_capture`` calls that a model makes to a monitor of its own.
        reconstruction: likewise of ``record_reconstruction``.
    """

    def __init__(
        self,
        new_report: Callable[[], Report],
        config: ProbesConfig,
        capture: Told,
        reconstruction: Told,
    ) -> None:
        self._new_report = new_report
        self._report = new_report()
        self._config = config
        self._seam = capture, reconstruction
        self.ways = self._new_ways()
        self._watched: dict[int, tuple[Part, list[Watch]]] = {}
        self._extra: list[Watch] = []
        self._reading: ReadingWatch | None = None
        self._arguments: ArgumentWatch | None = None
        self._model: nn.Module | None = None
        self._samples = False
        self._passages: list[PassageWatch] = []
        self._left_alone: set[int] = set()
        """Of the model's objects, identities of those whose layer is not watched."""
        self._links: list[Link] = []
        """Of all that is watched."""
        self.changed = False
        """Whether sources were found since somebody looked."""
        self._open_books()
        self._left: dict[Any, int] | None = None
        """Entries of the model that was let go."""
        self.outputs: dict[str, Mapping[Any, Any]] = {}
        """The newest statistics that a training step returned, as numbers."""

    def _new_ways(self) -> Ways:
        config = self._config
        wraps = Wraps(self._report.codes)
        return Ways(self._report, wraps, wrap=config.wrap, hooks=config.hooks, poll=config.poll)

    def _open_books(self) -> None:
        self._books = Books(self._report)
        self._report.settle = self._settle

    def __len__(self) -> int:
        """Objects of the model that are watched."""
        return len(self._watched)

    def __bool__(self) -> bool:
        return bool(self._watched or self._extra)

    # -- finding ----------------------------------------------------------------------------

    def attach(self, model: nn.Module, own_monitor: Any = None) -> None:
        """Find what is new in a model and start to watch it; what is watched already stays so.

        Args:
            model: looked through, nothing of it is run.
            own_monitor: this monitor: a model may hold it as its ``performance_monitor``.
        """
        first = self._model is None
        self._model = model
        new = [
            (part, self._recognise(part))
            for part in survey(model)
            if id(part.value) not in self._watched and self._wanted(part.path)
        ]
        self._left_alone = {id(part.value) for part, watches in new if watches is None}
        found = [(part, watches) for part, watches in new if watches]
        self._choose(model, found, own_monitor)
        for part, watches in found:
            self._add(part, watches)
        self._count_the_rest(model)
        if first:
            self._watch_the_rest(model)
        self._books.begin()
        if self._books.resuming:
            self._settle()

    def _wanted(self, path: str) -> bool:
        return not self._config.objects or any(matches(g, path) for g in self._config.objects)

    def _recognise(self, part: Part) -> list[Watch] | None:
        """The watches of an object; None: it has a layer of its own, which is not watched."""
        watches = recognise(part)
        layer = self.named(part.path)
        if layer is not None:
            for watch in watches:
                if hasattr(watch, "layer"):
                    watch.layer = layer
        kept = [watch for watch in watches if not self._is_off(watch)]
        return kept if kept or not watches else None

    def _is_off(self, watch: Any) -> bool:
        layer = getattr(watch, "layer", None)
        return (
            layer is not None
            and getattr(watch, "one_layer", False)
            and not self._report.watches(layer)
        )

    def _choose(
        self, model: nn.Module, found: list[tuple[Part, list[Watch]]], own_monitor: Any
    ) -> None:
        """Who counts what, where several could."""
        watches = [watch for _, some in found for watch in some]
        ways = self.ways
        ways.reconstructs |= any(isinstance(w, ReconstructionWatch) for w in watches)
        if any(isinstance(w, CaptureWatch) for w in watches):
            ways.calls_by = "capture"
        elif ways.calls_by == "store" and _has_monitor(model, own_monitor):
            ways.calls_by = "monitor"

    def _add(self, part: Part, watches: list[Watch]) -> None:
        for watch in watches:
            self._install(watch)
            if isinstance(watch, _COUNTED) and "buffer" in self._report.kinds:
                self._books.open(watch)
        self._watched[id(part.value)] = part, watches
        self._links += part.links
        self.changed = True

    def named(self, path: str) -> Hashable | None:
        """The layer that the settings give to what is at a path."""
        return next(
            (name for glob, name in self._config.layer_names.items() if matches(glob, path)), None
        )

    def _count_the_rest(self, model: nn.Module) -> None:
        """Read the counters that the model's objects keep, where nothing better is seen."""
        seen = self._better() | self._timed()
        for new in survey(model) if self._config.poll else ():
            part, known = self._watched.get(id(new.value), (new, []))
            counted = any(isinstance(watch, CounterWatch) for watch in known)
            left_alone = id(part.value) in self._left_alone or not self._wanted(part.path)
            if dictionaries(part.value) and not counted and not left_alone:
                watch = CounterWatch(part, seen)
                self._install(watch)
                self._watched[id(part.value)] = part, [*known, watch]
                self._links += () if known else part.links

    def _install(self, watch: Watch) -> None:
        try:
            watch.install(self.ways)
        except Exception as error:
            self._report.failed(f"watching {watch.path}", error)

    def _watch_the_rest(self, model: nn.Module) -> None:
        """Counters where nothing better is seen, the user's own reading, arguments of forwards."""
        config, seen = self._config, self._better() | self._timed()
        extra: list[Watch] = []
        if config.wrap:
            parts = [part for part in survey(model) if "record_capture" in part.offers]
            extra += [SeamWatch(part, *self._seam) for part in parts]
        if config.poll:
            extra.append(CounterWatch(part_of(model, ""), seen, lambda: self.outputs))
        if config.read is not None:
            self._reading = ReadingWatch(part_of(model, ""), config.read)
            self._install(self._reading)
        modules = dict(model.named_modules())
        paths = [part.path for part, _ in self._watched.values()]
        inner = {
            part.path
            for part, some in self._watched.values()
            if any(isinstance(watch, (ReconstructionWatch, ScorerWatch)) for watch in some)
        }
        outer = passages(model, paths, inner)
        found = [PassageWatch(part_of(modules[name], name)) for name in outer]
        self._passages = found
        extra += found
        for watch in extra:
            self._install(watch)
        self._extra += extra
        if config.hooks and config.wrap and self._report.kinds & _OF_MEMORY:
            self._arguments = ArgumentWatch(self._take_argument)
            self._arguments.install(model, self.ways)

    def _better(self) -> set[str]:
        """Kinds of counters that are seen better than by reading the model's own."""
        watches = [watch for _, some in self._watched.values() for watch in some]
        wraps = self.ways.wrap
        seen: set[str] = set()
        if any(isinstance(w, _COUNTED) and w.counts_calls for w in watches):
            seen |= {"capture", "moves"}
        if wraps and any(isinstance(w, (RetrievalWatch, BufferWatch)) for w in watches):
            seen |= {"retrieval", "cache"}
        if self.ways.reconstructs:
            seen.add("reconstruction")
        return seen

    def _timed(self) -> set[str]:
        """Kinds whose calls are timed, other than where what they do is counted."""
        if not self.ways.wrap or self.ways.calls_by == "store":
            return set()
        return {"calls", "reconstruction"} if self.ways.calls_by == "monitor" else {"calls"}

    def _take_argument(self, value: Any, path: str, directly: bool) -> bool:
        """Watch an object that a forward is given; its layer is the module that it comes to."""
        known = self._watched.get(id(value))
        if known is not None and known[1][0].alive:
            part, watches = known
            if directly and not part.links and part.path != path:
                for watch in watches:
                    if isinstance(watch, _COUNTED):
                        self._rename(watch, path)
                self._watched[id(value)] = replace(part, path=path), watches
            return True
        part = part_of(value, path)
        watches = (self._recognise(part) if self._wanted(path) else None) or []
        if watches:
            self.ways.weakly = True
            self._add(part, watches)
            self.ways.weakly = False
            # whoever made it may drop it at any time
            self._watched[id(value)] = replace(part, value=None), watches
        return bool(watches)

    def _rename(self, watch: Any, path: str) -> None:
        if self.named(path) is None and watch.layer == watch.path:
            watch.path = watch.layer = path
        self.changed = True

    # -- while it runs ----------------------------------------------------------------------

    def watches(self) -> list[Watch]:
        """Every watch."""
        return [*(w for _, some in self._watched.values() for w in some), *self._extra]

    def _sources(self) -> list[Watch]:
        return [*([] if self._reading is None else [self._reading]), *self.watches()]

    def refresh(self) -> None:
        """Notice objects that were replaced; a few identity tests, cheap enough for every step."""
        if self._arguments is not None and self._arguments.fruitless:
            self._arguments.remove_fruitless()
        self._report.scope.now.entered = NOTHING
        for passage in self._passages:
            passage.begin_step()
        if self._all_there():
            return
        gone = [key for key, (part, _) in self._watched.items() if not part.still_there]
        self._look()
        for key in gone:
            part, watches = self._watched.pop(key)
            mine = {id(link) for link in part.links}
            self._links = [link for link in self._links if id(link) not in mine]
            for watch in watches:
                if isinstance(watch, _COUNTED):
                    self._books.close(watch)
            self.ways.wraps.undo(part.value)
        if self._model is not None:
            self.attach(self._model)

    def _all_there(self) -> bool:
        try:
            for holder, key, value in self._links:
                if holder[key] is not value:
                    return False
        except (KeyError, IndexError):
            return False
        return True

    def poll(self) -> None:
        """Read what holds now, and tell what came and went unseen since the last time."""
        self.refresh()
        self._look()

    def _look(self) -> None:
        report = self._report
        blind = report.distrust_what_is_compiled()
        for key in [k for k, (_, some) in self._watched.items() if not some[0].alive]:
            del self._watched[key]
        for watch in self.watches():
            self._poll(watch)
        if "buffer" in report.kinds:
            self._books.balance(self._accounts(), blind=blind)
            self._books.show(self._accounts())
        if self._reading is not None:  # the user's word on a gauge is the last
            self._poll(self._reading)

    def _poll(self, watch: Watch) -> None:
        try:
            watch.poll()
        except Exception as error:
            self._report.failed(f"reading {watch.path}", error)

    def begin_anew(self) -> None:
        """What buffers hold now is what they held at the start: what was before is thrown away."""
        self._books.begin_anew(self._accounts())

    def entries(self) -> dict[Any, int] | None:
        """Entries by layer as the counts have it, for a checkpoint; None: nothing counts them."""
        found = self._books.entries()
        return self._left if found is None and self._model is None else found

    def resume(self, entries: Mapping[Any, int] | None) -> None:
        """Go on with a run that was left with so many entries.

        Args:
            entries: what `entries` gave; None: nobody knows.
        """
        self._books.resume(entries)
        if self._books.resuming:
            self._settle()

    def _settle(self) -> None:
        if "buffer" in self._report.kinds:
            blind = self._report.distrust_what_is_compiled()
            self._books.balance(self._accounts(), blind=blind)

    def _accounts(self) -> list[Account]:
        return [
            watch
            for _, watches in self._watched.values()
            for watch in watches
            if isinstance(watch, _HOLDING)
        ]

    def sample(self, on: bool) -> None:
        """Look at what is not looked at in every step: similarities, the output."""
        if on is self._samples:
            return
        self._samples = on
        for watch in self.watches():
            if isinstance(watch, _LOOKING):
                watch.sample(on)

    @property
    def entered(self) -> Amounts:
        """Samples and token positions that entered the model since the step began."""
        return self._report.scope.now.entered

    def take_outputs(self, outputs: Mapping[Any, Any]) -> None:
        """Copy the numbers of the statistics that a training step returned."""
        for key in TOLD:
            value = outputs.get(key)
            if isinstance(value, Mapping):
                self._copy(key, value, 0)

    def _copy(self, name: str, value: Mapping[Any, Any], depth: int) -> None:
        numbers: dict[Any, Any] = {}
        for key, item in value.items():
            if isinstance(item, (int, float)):
                numbers[key] = item
            elif isinstance(item, Mapping) and depth < 3:
                plain = {k: x for k, x in item.items() if isinstance(x, (int, float))}
                if len(plain) == len(item):
                    numbers[key] = plain
                self._copy(f"{name}.{key}", item, depth + 1)
        self.outputs[name] = numbers

    # -- telling ----------------------------------------------------------------------------

    def tells(self) -> set[str]:
        """What is seen: ``capture`` (states), ``calls`` (of the capture), ``reconstruction``."""
        if not self:
            return set()
        seen = self._better()
        return seen | {"calls"} if self.ways.calls_by == "capture" else seen

    def sources(self) -> dict[str, str]:
        """By component or metric, where its numbers come from; the first of several, and more."""
        self.changed = False
        found: dict[str, list[str]] = {}
        for watch in self._sources():
            for name, text in watch.sources.items():
                if name.startswith("#"):
                    name = STATISTICS[int(name[1:])].name
                found.setdefault(name, []).append(text)
        return {
            name: texts[0] + (f" and {len(texts) - 1} more" if len(texts) > 1 else "")
            for name, texts in found.items()
        }

    def describe(self, every: int = 1, told: Tell = dict) -> str:
        """What was found, what each number comes from, and what cannot be known; '' if nothing.

        Args:
            every: calls are timed in every so many-th step.
            told: given the sources, has them say by which clock they are timed.
        """
        watches = self.watches()
        found = sampled_sources(told(self.sources()), every)
        lines = [f"  {name}: {text}" for name, text in sorted(found.items())]
        unknown = [f"  not known: {w.path}: {text}" for w in watches for text in w.unknown]
        if lines and self._model is not None and _is_compiled(self._model):
            unknown.append(
                "  not known: what the memory does inside compiled code; a CMRProbe can tell"
            )
        return "\n".join([*lines, *unknown])

    def detach(self) -> None:
        """Put everything back as it was."""
        if self._model is not None:
            self._left = self._books.entries()
        self._report.close()
        self.ways.wraps.undo()
        for handle in self.ways.handles:
            handle.remove()
        self._report = self._new_report()
        self.ways = self._new_ways()
        self._watched.clear()
        self._extra.clear()
        self._arguments = self._model = self._reading = None
        self._open_books()
        self._links.clear()
        self._passages = []
        self._samples = False
        self.outputs = {}


def _is_compiled(model: nn.Module) -> bool:
    return any(
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )


def _has_monitor(model: nn.Module, own: Any) -> bool:
    for part in survey(model):
        held = attributes(part.value).get("performance_monitor")
        if held is not None and (held is own or "record_capture" in part_of(held, "").offers):
            return held is own or not isinstance(held, type(own))
    return False
