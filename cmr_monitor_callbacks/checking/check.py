"""The dry check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cmr_monitor_callbacks.checking.cost import estimate
from cmr_monitor_callbacks.checking.report import CheckReport, Counted, Measured, ModelPart
from cmr_monitor_callbacks.checking.rules import check_rules
from cmr_monitor_callbacks.checking.settings import Settings, load_settings
from cmr_monitor_callbacks.checking.sources import Sources
from cmr_monitor_callbacks.checking.targets import (
    bound,
    current_folder_importable,
    make_input,
    make_model,
)
from cmr_monitor_callbacks.checking.watching import Watched, as_it_was, checked_forward
from cmr_monitor_callbacks.errors import ConfigError, LayerError


def check(
    settings: str | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    batch: str | None = None,
    ranks: int | None = None,
    pairs: int = 10,
) -> CheckReport:
    """Check settings, and a model with them; nothing is trained and no file is written.

    Args:
        settings: a YAML file or the name of a preset; None: the preset ``default``.
        overrides: changes of single settings, in Hydra's notation.
        model: ``module:callable`` or ``module:Class``; None: settings alone.
        batch: ``module:callable`` that gives an example batch, for real forward passes; a tuple or
            list is the arguments of the forward, a mapping its keyword arguments.
        ranks: number of processes that the run will have; None: not known.
        pairs: pairs of passes that are timed, with and without the monitor.

    Raises:
        ConfigError: a setting is wrong, the model or the batch cannot be made, or the forward pass
            fails; the message names the field, the value and what is allowed.

    >>> report = check("strict", ["monitoring.components=[capture,buffer]"])
    >>> [note.reason for note in report.rules if note.rule == "retrieval_useless"]
    ['retrieval_quality needs the component retrieval, which monitoring.components switches off']
    """
    if batch is not None and model is None:
        raise ConfigError(f"input {batch!r} needs a model to go into; give --model too")
    checked = load_settings(settings, overrides)
    part, counted, measured = None, None, None
    sources = Sources(checked.monitoring, ranks, resources=checked.resources)
    if model is not None:
        with current_folder_importable():
            made = make_model(model)
            given = None if batch is None else (batch, make_input(batch))
            with as_it_was(made):
                part, sources, counted, measured = _look(made, model, checked, given, ranks, pairs)
    rules = checked.rules if checked.alerts.enable_alerts else ()
    return CheckReport(
        checked.describe(),
        part,
        check_rules(rules, sources),
        estimate(checked, rules, sources),
        counted,
        measured,
    )


def _look(
    model: nn.Module,
    target: str,
    settings: Settings,
    given: tuple[str, Any] | None,
    ranks: int | None,
    pairs: int,
) -> tuple[ModelPart, Sources, Counted | None, Measured | None]:
    """Attach, run what there is to run, and let go."""
    watched = Watched(model, settings)
    monitor, counted, measured = watched.monitor, None, None
    try:
        attached, probes = watched.attach(monitor), watched.probes
        snapshot = watched.look()
        if given is not None:
            forward = checked_forward(model, bound(model, given[1]), given[0])
            counted = watched.count(forward)
            snapshot = monitor.snapshot
        described = monitor.describe()
    except LayerError as error:
        raise ConfigError(f"model {target!r}: {error}") from None
    finally:
        monitor.detach()
    sources = Sources(
        settings.monitoring,
        ranks,
        snapshot.sources,
        snapshot.layer_ids,
        certain=given is not None or attached == probes,
        seen=None if counted is None else frozenset((*counted.whole, *counted.layers)),
        resources=settings.resources,
    )
    if given is not None:
        measured = watched.measure(forward, settings.rules, pairs)
    part = ModelPart(
        target,
        f"{type(model).__module__}.{type(model).__qualname__}",
        sum(parameter.numel() for parameter in model.parameters()),
        probes,
        attached - probes,
        snapshot.layer_ids,
        dict(snapshot.sources),
        sources.missing,
        tuple(_unknown(described)),
        tuple(monitor.error_log) if monitor.failures else (),
    )
    return part, sources, counted, measured


def _unknown(described: str) -> list[str]:
    """What the monitor says that it cannot know."""
    lines = (line.strip().partition("not known: ") for line in described.splitlines())
    return [text for before, sign, text in lines if sign and not before]
