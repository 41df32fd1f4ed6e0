"""The table of diagnostics: each with what it is about, how bad it is and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cmr_monitor_callbacks.diagnostics import (
    buffers,
    cross_checks,
    holdings,
    reading_memory,
    setting_up,
)
from cmr_monitor_callbacks.diagnostics.finding import Finding, Hit
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.health import Severity

WARNING, ERROR, CRITICAL = Severity.WARNING, Severity.ERROR, Severity.CRITICAL


@dataclass(frozen=True)
class Diagnostic:
    """One row of the table.

    Attributes:
        run: gives the places at which it holds; its name is the diagnostic's.
        section: key of `run_diagnostics` that it is shown under.
        component: what it is about.
        severity: of its findings.
        advice: what to do.
    """

    run: Callable[[Material], Iterator[Hit]]
    section: str
    component: str
    severity: Severity
    advice: str

    @property
    def name(self) -> str:
        """The name of its findings."""
        return self.run.__name__

    def findings(self, material: Material) -> list[Finding]:
        """What it finds."""
        return [
            Finding(
                self.name,
                self.severity,
                self.component,
                hit.layer,
                hit.sentence,
                hit.evidence,
                self.advice,
            )
            for hit in self.run(material)
        ]


def _of(module: object, section: str, *rows: tuple[str, str, Severity, str]) -> list[Diagnostic]:
    return [
        Diagnostic(getattr(module, name), section, component, severity, advice)
        for name, component, severity, advice in rows
    ]


SECTIONS: Final = (
    "memory_analysis",
    "retrieval_analysis",
    "reconstruction_analysis",
    "hook_analysis",
    "optimization_analysis",
    "counter_analysis",
    "setup_analysis",
    "monitor_analysis",
)
"""Keys of what `run_diagnostics` gives, beside ``component_health``."""

DIAGNOSTICS: Final[tuple[Diagnostic, ...]] = (
    *_of(
        setting_up,
        "setup_analysis",
        (
            "no_memory_found",
            "model",
            ERROR,
            ("Hold a CMRProbe in each memory layer, or let the monitor watch (probes.automatic)."),
        ),
        (
            "target_layer_missing",
            "model",
            ERROR,
            "Correct the setting; layers count from 0 or from 1, as the model does.",
        ),
        (
            "layer_never_runs",
            "capture",
            ERROR,
            (
                "See whether the model calls this layer's memory: its number, its hook, its "
                "condition."
            ),
        ),
        (
            "interventions_never_run",
            "reconstruction",
            ERROR,
            ("See that the model's interventions are switched on, and that their layers exist."),
        ),
        (
            "threshold_takes_nothing",
            "capture",
            ERROR,
            "Lower the relevance threshold, or see what scores the scorer gives.",
        ),
        (
            "threshold_takes_everything",
            "capture",
            WARNING,
            (
                "Raise the relevance threshold; now every state is stored, and old ones are "
                "dropped for it."
            ),
        ),
        (
            "nothing_stored",
            "buffer",
            ERROR,
            (
                "See why the buffer refuses: its own threshold, its capacity, entries that "
                "may not be dropped."
            ),
        ),
        (
            "capacity_under_one_sequence",
            "buffer",
            ERROR,
            "Raise the capacity of the layer, or capture fewer states of a sequence.",
        ),
    ),
    *_of(
        buffers,
        "memory_analysis",
        (
            "capacity_never_reached",
            "buffer",
            WARNING,
            "Lower the capacity, or capture more: preallocated memory is not used.",
        ),
        (
            "buffer_refuses",
            "buffer",
            WARNING,
            "Raise the layer's capacity, or let entries go sooner (policy, protection).",
        ),
        (
            "over_capacity",
            "buffer",
            ERROR,
            "See whether anything evicts: nothing bounds this layer.",
        ),
        (
            "entries_evicted_young",
            "buffer",
            WARNING,
            ("Raise the capacity, or capture fewer states: entries go before they can be read."),
        ),
        (
            "books_do_not_balance",
            "buffer",
            ERROR,
            (
                "Tell of what was dropped or loaded (CMRProbe.buffer: evicted, cleared, "
                "loaded); numbers of this layer are wrong."
            ),
        ),
        (
            "probe_disagrees",
            "buffer",
            ERROR,
            ("See what is given to CMRProbe.buffer as entries: it is not what the buffer holds."),
        ),
    ),
    *_of(
        holdings,
        "memory_analysis",
        (
            "entries_nonfinite",
            "buffer",
            CRITICAL,
            "Find what stored them; clear the layer, and capture finite states alone.",
        ),
        (
            "entries_empty",
            "buffer",
            WARNING,
            "See what is captured, and whether rows are counted before they are written.",
        ),
        (
            "duplicate_entries",
            "buffer",
            WARNING,
            (
                "Store a state only if it differs from those held, or see whether layers' "
                "states collapsed."
            ),
        ),
        (
            "relevance_flat",
            "buffer",
            WARNING,
            "See whether the scorer is trained, and whether its score reaches the buffer.",
        ),
        (
            "entries_never_read",
            "retrieval",
            WARNING,
            (
                "See how entries are chosen: always the same are; lower the capacity, or "
                "drop what is not read."
            ),
        ),
        (
            "evicted_then_missed",
            "buffer",
            WARNING,
            "Raise the layer's capacity, or evict what is read least (policy).",
        ),
        (
            "memory_frozen",
            "buffer",
            WARNING,
            ("See whether the layer still captures, and whether its policy lets new entries in."),
        ),
    ),
    *_of(
        reading_memory,
        "retrieval_analysis",
        (
            "retrieval_returns_nothing",
            "retrieval",
            ERROR,
            "See the retrieval's own threshold and which layer it asks.",
        ),
        (
            "retrieval_hits_nothing",
            "retrieval",
            ERROR,
            "See the distance at which a slot counts as found, and how keys are made.",
        ),
        (
            "cache_useless",
            "retrieval",
            WARNING,
            "Make the cache's key coarser or its lifetime longer, or leave it out.",
        ),
        (
            "layer_not_worth_its_memory",
            "retrieval",
            WARNING,
            "Give its capacity to layers whose entries are read.",
        ),
        (
            "retrieval_slows_with_size",
            "retrieval",
            WARNING,
            "Bound the memory, or use an index whose time does not grow with it.",
        ),
    ),
    *_of(
        reading_memory,
        "reconstruction_analysis",
        (
            "dead_layer",
            "reconstruction",
            WARNING,
            "Add an intervention at this layer, or stop capturing there.",
        ),
        (
            "reconstructions_use_nothing",
            "reconstruction",
            ERROR,
            "See what the retrieval hands to the reconstruction, and from which layer.",
        ),
        (
            "reconstruction_does_nothing",
            "reconstruction",
            WARNING,
            "See the gate or blend weight: it may be closed, or its output zero.",
        ),
        (
            "layer_reconstructs_worse",
            "reconstruction",
            WARNING,
            "See what this layer stores; it may need another threshold or more capacity.",
        ),
        (
            "memory_changes_nothing",
            "reconstruction",
            ERROR,
            (
                "What is read does not reach the loss: see the gate, the blend, and whether "
                "memory is on in validation."
            ),
        ),
        (
            "memory_hurts",
            "reconstruction",
            WARNING,
            (
                "Entries may be stale or too many: lower their age, raise the threshold, see "
                "the blend weight."
            ),
        ),
        (
            "memory_not_compared",
            "reconstruction",
            WARNING,
            (
                "See the reason; set monitoring.diagnostics.compare_memory_every to 0 where "
                "it cannot be done."
            ),
        ),
    ),
    *_of(
        cross_checks,
        "hook_analysis",
        ("hooks_capture_twice", "capture", WARNING, "Keep one: each state is captured as often."),
        (
            "hook_never_runs",
            "capture",
            ERROR,
            "Register hooks before the module's first compiled call.",
        ),
        ("hooks_slow", "timing", WARNING, "Do less in hooks, or in fewer steps."),
    ),
    *_of(
        cross_checks,
        "counter_analysis",
        ("model_counter_dead", "model", WARNING, "Do not read this number: nothing counts it up."),
        (
            "model_counter_differs",
            "model",
            WARNING,
            "See what the model counts there: calls or states, refused ones too, or twice.",
        ),
    ),
    *_of(
        cross_checks,
        "optimization_analysis",
        (
            "optimisation_made_it_worse",
            "optimization",
            WARNING,
            "Switch this optimisation off and compare the two runs.",
        ),
    ),
    *_of(
        cross_checks,
        "monitor_analysis",
        (
            "monitor_failing",
            "errors",
            WARNING,
            "The error log says which part and why (cmr-monitor report).",
        ),
        (
            "samples_rejected",
            "errors",
            WARNING,
            "The error log says which numbers; see what the probe is given.",
        ),
    ),
)
"""Every diagnostic, in the order in which they are shown."""
