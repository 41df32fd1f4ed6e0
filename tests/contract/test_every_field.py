"""Every field of ``monitoring`` and ``alerts``, nested ones too, has a test that shows it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final, get_args

import pytest
from pydantic import BaseModel

from cmr_monitor_callbacks.config import AlertConfig, MonitoringConfig
from cmr_monitor_callbacks.config.channels import _KINDS, ChannelConfig, RemoteConfig
from tests.contract.fields import SHOWN

FILES: Final = (
    "test_monitoring_fields",
    "test_rank_fields",
    "test_alert_fields",
    "test_quiet_fields",
    "test_rule_fields",
    "test_channel_fields",
    "test_stall_fields",
)
ELSEWHERE: Final = {"alerts.rules.detector": "tests of the detectors"}
"""Fields whose settings have tests of their own, one by one."""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Settings that a field holds: itself, or in a list, a mapping or a union."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in models_in(part)]


def fields_of(model: type[BaseModel], where: str) -> Iterator[str]:
    """Names of all fields, from the top, by their names in files."""
    for name, field in model.model_fields.items():
        path = f"{where}.{field.alias or name}"
        if path == "alerts.channels":
            yield from fields_of_channels(path)
            continue
        inner = [] if path in ELSEWHERE else models_in(field.annotation)
        if not inner:
            yield path
        for one in inner:
            yield from fields_of(one, path)
    if model.model_config.get("extra") == "allow":
        yield f"{where}.*"


def fields_of_channels(where: str) -> Iterator[str]:
    """What all have, what all have that may be slow, and what each kind has."""
    for name in ChannelConfig.model_fields:
        yield f"{where}.*.{name}"
    for name in sorted(set(RemoteConfig.model_fields) - set(ChannelConfig.model_fields)):
        yield f"{where}.remote.{name}"
    for kind, model in _KINDS.items():
        base = RemoteConfig if issubclass(model, RemoteConfig) else ChannelConfig
        for name in sorted(set(model.model_fields) - set(base.model_fields)):
            yield f"{where}.{kind}.{name}"


EVERY: Final = [*fields_of(MonitoringConfig, "monitoring"), *fields_of(AlertConfig, "alerts")]


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    for name in FILES:
        importlib.import_module(f"tests.contract.{name}")
    return SHOWN


def test_the_table_has_every_field_and_no_other(shown: dict[str, str]) -> None:
    assert len(EVERY) == len(set(EVERY)) > 100
    assert set(shown) | set(ELSEWHERE) == set(EVERY)


def test_all_top_fields_are_walked() -> None:
    tops = {tuple(path.split(".")[:2]) for path in EVERY}
    wanted = {("monitoring", name) for name in MonitoringConfig.model_fields}
    assert tops == wanted | {("alerts", name) for name in AlertConfig.model_fields}


@pytest.mark.parametrize("path", [path for path in EVERY if path not in ELSEWHERE])
def test_a_field_has_its_test(shown: dict[str, str], path: str) -> None:
    module, _, name = shown[path].rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


class Inner(BaseModel):
    """Settings within settings."""

    one: int = 0


class Outer(BaseModel):
    """Settings that hold others in each of the ways there are."""

    here: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] | None = None
    plain: int = 0


def test_new_fields_are_found_wherever_they_are() -> None:
    found = list(fields_of(Outer, "x"))
    assert found == ["x.here.one", "x.many.one", "x.named.one", "x.plain"]
