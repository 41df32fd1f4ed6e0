"""From what a user wrote (a model, a mapping, a DictConfig) to checked settings, or an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cmr_monitor_callbacks.errors import ConfigError, nearest

M = TypeVar("M", bound=BaseModel)


class Settings(BaseModel):
    """Base of the settings: frozen, and a key that is not a field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def plain(value: Any) -> Any:
    """A mapping without OmegaConf nodes, interpolations resolved; other values as they are.

    OmegaConf is not imported for it: what is a DictConfig has loaded it.
    """
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
        return omegaconf.OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def as_plain(settings: BaseModel) -> dict[str, Any]:
    """Settings as JSON can hold them; secrets are masked, functions are named.

    >>> as_plain(Settings())
    {}
    """
    found: dict[str, Any] = json.loads(json.dumps(settings.model_dump(by_alias=True), default=str))
    return found


def parse(model: type[M], value: Any, where: str) -> M:
    """The settings that ``value`` stands for.

    Args:
        model: the class of the settings.
        value: an instance of it, a mapping (a DictConfig too), or None for the defaults.
        where: name of the argument, for messages.

    Raises:
        ConfigError: a field is unknown, or a value is of the wrong type or not allowed. The message
            names each field, its value and what is allowed, and the nearest name.
    """
    if isinstance(value, model):
        return value
    value = {} if value is None else plain(value)
    if not isinstance(value, Mapping):
        secret = any(_is_secret(model, (name,)) for name in model.model_fields)
        got = "something else (it is not shown: a secret)" if secret else repr(value)
        raise ConfigError(f"{where} must be a {model.__name__} or a mapping, got {got}")
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        lines = [_describe(detail, model, where) for detail in error.errors()]
    # not from within: pydantic's own error shows values, which may be secrets
    raise ConfigError("\n".join(lines))


def _describe(detail: ErrorDetails, model: type[BaseModel], where: str) -> str:
    path = ".".join([where, *(str(part) for part in detail["loc"])])
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        fields = _fields_at(model, detail["loc"][:-1])
        return f"{path} is not a setting; {nearest(detail['loc'][-1], fields)}"
    if kind == "missing":
        return f"{path} is required"
    if _is_secret(model, detail["loc"]):
        return f"{path}: {detail['msg'].removeprefix('Value error, ')} (it is not shown: a secret)"
    context = detail.get("ctx", {})
    allowed = {
        "greater_than": "greater than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "int_parsing": "a whole number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "string_type": "a string",
        "list_type": "a list",
        "tuple_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
    }.get(kind)
    if allowed is not None:
        return f"{path} must be {allowed.format(**context)}, got {given!r}"
    if kind in ("literal_error", "enum"):
        return f"{path} must be {context['expected']}, got {given!r}{_hint(given, context)}"
    if kind == "value_error":
        inner = context["error"]
        if isinstance(inner, ConfigError):  # of settings within, which know their own path
            return "\n".join(f"{path}.{line}" for line in str(inner).splitlines())
        return f"{path}: {inner}"
    return f"{path}: {detail['msg']}, got {given!r}"


def _is_secret(model: type[BaseModel], loc: tuple[int | str, ...]) -> bool:
    """Whether a value must not be shown, not even a wrong one."""
    field = model.model_fields.get(str(loc[0])) if loc else None
    return field is not None and "SecretStr" in str(field.annotation)


def _hint(given: Any, context: Mapping[str, Any]) -> str:
    choices = [part.strip(" '") for part in context["expected"].replace(" or ", ", ").split(",")]
    hint = nearest(given, choices)
    return f"; {hint.partition(' (')[0]}" if hint.startswith("did you mean") else ""


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Fields of the model that a location leads to, through mappings and unions of models."""
    current: type[BaseModel] = model
    for part in loc:
        field = current.model_fields.get(str(part))
        if field is None:
            # a key of a mapping, or the name of a union's member: stay where we are
            continue
        inner = _inner_model(field.annotation)
        if inner is not None:
            current = inner
    return [f.alias or name for name, f in current.model_fields.items()]


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    # dict[...] counts as a type in Python 3.10, but not as a class
    plain_class = isinstance(annotation, type) and get_origin(annotation) is None
    if plain_class and issubclass(annotation, BaseModel):
        return annotation  # type: ignore[no-any-return]
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None
