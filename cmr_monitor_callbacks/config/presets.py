"""The shipped presets: YAML files of the Hydra group ``cmr_monitor``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cmr_monitor_callbacks.errors import ConfigError, nearest

_PACKAGE = Path(__file__).resolve().parent.parent


def config_root() -> Path:
    """The directory that holds ``cmr_monitor/*.yaml``.

    In an installed wheel it lies in the package, in an editable install beside it.
    """
    shipped = _PACKAGE / "configs"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "configs"


def preset_names() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(path.stem for path in (config_root() / "cmr_monitor").glob("*.yaml")))


@cache
def _text(name: str) -> str:
    return (config_root() / "cmr_monitor" / f"{name}.yaml").read_text(encoding="utf-8")


def load_preset(name: str) -> dict[str, Any]:
    """A preset as a plain mapping, its nodes named as the arguments of `CMRMonitorCallback`.

    Raises:
        ConfigError: there is no preset of that name.

    >>> sorted(load_preset("default"))
    ['alerts', 'history', 'monitoring', 'probes', 'profiling', 'resources', 'sinks']
    """
    if name not in preset_names():
        raise ConfigError(f"no preset is named {name!r}; {nearest(name, preset_names())}")
    # rules share what they leave as it is in the file; who changes one here must not change others
    apart: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(_text(name))))
    return apart
