"""YAML files as pydantic models: a file, overrides on top, and one sentence when it is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vora_core.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

_MAX_BASES = 8
_MAY_HOLD_EMPTY = ("args", "env")


def load(
    kind: type[Model],
    file: Path,
    overrides: Iterable[str] = (),
    *,
    subject: str,
    variables: Mapping[str, str] | None = None,
    based: bool = False,
) -> Model:
    """A model from a YAML file.

    Args:
        kind: the model's class.
        file: the file.
        overrides: ``key=value``, with dots for nested keys and numbers for places in lists; values
            are YAML.
        subject: what the file is, for messages: "recipe".
        variables: text that replaces ``{NAME}`` in the file.
        based: whether the file may begin with ``base: OTHER.yaml``, a file beside it that it
            changes key by key.

    Raises:
        ConfigError: the file cannot be read, or a key or a value is wrong; the sentence names it.
    """
    data = read(file, subject=subject, variables=variables, based=based)
    return validate(kind, override(data, overrides), subject=subject)


def read(
    file: Path,
    *,
    subject: str,
    variables: Mapping[str, str] | None = None,
    based: bool = False,
) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping. See :func:`load`.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or holds something else.
    """
    return _read(file, subject, variables or {}, based, 0)


def _read(
    file: Path, subject: str, variables: Mapping[str, str], based: bool, depth: int
) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The {subject} {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The {subject} {file} cannot be read: it is not UTF-8.") from error
    for name, value in variables.items():
        text = text.replace("{" + name + "}", value)
    data = parse(text, f"The {subject} {file}")
    if data is None:
        data = {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"The {subject} {file} is not a mapping of keys to values.")
    if based and "base" in data:
        if depth >= _MAX_BASES:
            raise ConfigError(f"The {subject} {file} has a base that refers back to it.")
        below = file.parent / str(data.pop("base"))
        return overlay(_read(below, subject, variables, based, depth + 1), data)
    return data


def parse(text: str, what: str) -> Any:
    """Plain data from YAML text.

    Args:
        text: the YAML.
        what: the beginning of the sentence when it is wrong: "The recipe a.yaml".

    Raises:
        ConfigError: it is not valid YAML; the sentence gives the line.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{what} is not valid YAML{where}.") from error


def overlay(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings are joined key by key, anything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        joined = isinstance(old, dict) and isinstance(value, Mapping)
        result[key] = overlay(old, value) if joined and isinstance(old, dict) else value
    return result


def override(data: dict[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """Set ``key=value`` in plain data, in place; dots nest, numbers count into lists.

    Raises:
        ConfigError: a change is not written so, or reaches into what has no keys.
    """
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise ConfigError(f"An override is written key=value, not {change!r}.")
        _set(data, key, parse(value, f"The value of the override {change!r}"))
    return data


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    place: Any = data
    for name in path:
        if isinstance(place, dict):
            if place.get(name) is None:  # absent, or a section left empty
                place[name] = {}
            place = place[name]
        elif isinstance(place, list) and name.isdigit() and int(name) < len(place):
            place = place[int(name)]
        else:
            raise ConfigError(f"The override {key} reaches into something that has no keys.")
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    else:
        raise ConfigError(f"The override {key} reaches into something that has no keys.")


def validate(kind: type[Model], data: Any, *, subject: str) -> Model:
    """A model from plain data.

    Raises:
        ConfigError: a key or a value is wrong or an empty text; the sentence names it.
    """
    refuse_empty(data, subject=subject)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error, kind, subject=subject)) from error


def refuse_empty(data: Any, *, subject: str, place: tuple[str, ...] = ()) -> None:
    """No key has a use for an empty text, which comes from a variable that was not set.

    Flags and variables for other programs (``args``, ``env``) may be empty.

    Raises:
        ConfigError: some text is empty.
    """
    if data == "":
        raise ConfigError(f"In the {subject}, {'.'.join(place)} is empty.")
    if isinstance(data, Mapping | list) and (not place or place[-1] not in _MAY_HOLD_EMPTY):
        items = data.items() if isinstance(data, Mapping) else enumerate(data)
        for key, below in items:
            refuse_empty(below, subject=subject, place=(*place, str(key)))


def describe(error: ValidationError, kind: type[BaseModel], *, subject: str) -> str:
    """The first fault that pydantic found, as one sentence: ``In the recipe, a.b: ...``."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"In the {subject}, there is no key {place}{_meant(kind, first['loc'])}"
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    where = f"In the {subject}, {place}: " if place else f"In the {subject}: "
    # "Input should be ..." continues the sentence; what begins with a name keeps its spelling.
    said = said[:1].lower() + said[1:] if said.startswith(("Input ", "Field ", "Value ")) else said
    return f"{where}{said}."


def _meant(kind: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """``; did you mean X?`` where a key of that level is spelled alike, else a full stop."""
    level: Any = kind
    for part in place[:-1]:
        field = getattr(level, "model_fields", {}).get(str(part))
        level = field.annotation if field is not None else None
    near = difflib.get_close_matches(str(place[-1]), list(getattr(level, "model_fields", {})), 1)
    return f"; did you mean {near[0]}?" if near else "."
