"""Changes while a run goes on: an edited rules file, silences, acknowledgements.

They are rank 0's: it alone reads the file, and what it found travels as text to the others, which
apply it at the same window.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cmr_monitor_callbacks.config import AlertConfig, SilenceConfig, parse
from cmr_monitor_callbacks.errors import CMRMonitorError, ConfigError, nearest

logger = logging.getLogger(__name__)
_ALLOWED = ("rules", "silences")
_GONE = 2
"""Looks after which a file is gone: an editor that replaces it takes it away for a moment."""


class Edits:
    """What is to be changed at the next window.

    Args:
        config: whose rules the file adds to.
        check: raises ConfigError where rules do not go with other settings.

    Raises:
        ConfigError: the rules file cannot be read, or a rule in it is wrong.
    """

    def __init__(self, config: AlertConfig, check: Callable[[AlertConfig], object]) -> None:
        self._base = config
        self._check = check
        self._path = None if config.rules_file is None else Path(config.rules_file)
        self._seen: tuple[int, int] | None = None
        self._away = 0
        self._asked: deque[dict[str, Any]] = deque()
        self.config = config
        """With the rules of the file."""
        if self._path is not None:
            self._seen = self._stamp()
            self.config = self.with_rules(self._read())

    def ask(self, kind: str, **what: Any) -> None:
        """Have something changed: ``acknowledge`` or ``silence``; from any thread."""
        self._asked.append({"kind": kind, **what})

    def pending(self) -> str:
        """What is to be changed, as text; '' for nothing. Costs one look at the file's time."""
        asked = [self._asked.popleft() for _ in range(len(self._asked))]
        if self._path is not None:
            stamp = self._stamp()
            self._away = self._away + 1 if stamp is None else 0
            if self._away == _GONE:
                logger.warning("the rules stay as they were: %s is gone", self._path)
            if stamp is not None and stamp != self._seen:
                self._seen = stamp
                asked += self._reread()
        return json.dumps(asked) if asked else ""

    def with_rules(self, found: dict[str, Any]) -> AlertConfig:
        """The configuration with the rules and silences of a file.

        Raises:
            ConfigError: one of them is wrong.
        """
        where = f"{self._base.rules_file}"
        given = parse(AlertConfig, {"rules": {}, **found}, where)
        merged = self._base.model_dump(by_alias=True)
        merged["channels"] = self._base.channels  # read already; some have no name to read them by
        merged["rules"].update(given.model_dump(by_alias=True)["rules"])
        merged["silences"] = [*merged["silences"], *given.model_dump(by_alias=True)["silences"]]
        return parse(AlertConfig, merged, where)

    def _reread(self) -> list[dict[str, Any]]:
        try:
            found = self._read()
            self._check(self.with_rules(found))
        except CMRMonitorError as error:
            logger.warning("the rules stay as they were: %s", error)
            return []
        logger.info("new rules from %s", self._path)
        return [{"kind": "rules", "found": found}]

    def _read(self) -> dict[str, Any]:
        path = self._path
        assert path is not None
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            # what reaches the others as text is what is checked here: JSON has no dates
            found = json.loads(json.dumps(found, default=str))
        except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            # ValueError: no UTF-8, a date or a number that is none, a mapping within itself
            raise ConfigError(f"alerts.rules_file {str(path)!r} cannot be read: {error}") from None
        if isinstance(found, dict):
            found = found.get("alerts", found)
        if not isinstance(found, dict):
            raise ConfigError(f"alerts.rules_file {str(path)!r} must be a mapping, got {found!r}")
        unknown = [key for key in found if key not in _ALLOWED]
        if unknown:
            raise ConfigError(
                f"alerts.rules_file {str(path)!r}: {unknown[0]!r} cannot be set there; "
                f"{nearest(unknown[0], _ALLOWED)}"
            )
        return found

    def _stamp(self) -> tuple[int, int] | None:
        """Time and size of the file; None: it is away, as while an editor replaces it."""
        assert self._path is not None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size


def silence_from(what: dict[str, Any]) -> SilenceConfig:
    """A silence that travelled as text."""
    return parse(SilenceConfig, what, "silence")
