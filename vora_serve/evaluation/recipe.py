"""What one evaluation asks: the server, and suites, from a YAML file or from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vora_serve.demo.suite import SUITE_SEED
from vora_serve.errors import ConfigurationError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteRecipe(_Strict):
    """One suite.

    Attributes:
        kind: ``demo`` (the demo's world; needs no file), ``vqa``, ``choice`` or ``pope``.
        data: the questions' file.
        images: folder of pictures; the file's own when absent.
        name: in the result; the file's when absent.
        prompt: instead of the kind's own.
        limit: questions; of the demo, of each group.
        max_tokens: longest reply.
        seed: of the demo's held-out pictures.
        blank: ask the demo's questions about blank pictures too.
    """

    kind: Literal["demo", "vqa", "choice", "pope"]
    data: Path | None = None
    images: Path | None = None
    name: str | None = None
    prompt: str | None = None
    limit: int | None = Field(default=None, gt=0)
    max_tokens: int = Field(default=16, gt=0)
    seed: int = Field(default=SUITE_SEED, ge=0)
    blank: bool = True

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if (self.data is None) != (self.kind == "demo"):
            raise ValueError(
                "the suite demo takes no data file"
                if self.kind == "demo"
                else f"the suite {self.kind} needs a data file"
            )
        return self

    @property
    def label(self) -> str:
        """Its name in the result."""
        return self.name or (self.data.stem if self.data is not None else self.kind)


class EvaluationRecipe(_Strict):
    """An evaluation.

    Attributes:
        base_url: of an OpenAI-compatible server.
        model: its name; the server's first when absent.
        concurrency: questions at once.
        timeout: seconds that one answer may take.
        suites: what is asked.
    """

    base_url: str
    model: str | None = None
    concurrency: int = Field(default=8, gt=0)
    timeout: float = Field(default=120.0, gt=0)
    suites: tuple[SuiteRecipe, ...] = Field(min_length=1)


def parse_evaluation(data: Any) -> EvaluationRecipe:
    """A recipe from plain data.

    Raises:
        ConfigurationError: a key or value is wrong; the sentence names it.
    """
    try:
        return EvaluationRecipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the recipe"
        said = first["msg"].removeprefix("Value error, ")
        said = "there is no such key" if first["type"] == "extra_forbidden" else said
        raise ConfigurationError(f"In the evaluation, {place}: {said}.") from error


def read_evaluation(file: Path) -> Any:
    """Plain data of a YAML file.

    Raises:
        ConfigurationError: it cannot be read, or is no mapping.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{file} cannot be read as YAML: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{file} holds no mapping.")
    return data


def override(data: dict[str, Any], changes: list[str]) -> None:
    """Set ``key=value`` in plain data; dots nest, numbers count into lists.

    Raises:
        ConfigurationError: a change is not written so, or reaches into what is no section.
    """
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigurationError(f"A change is written key=value, not {change!r}.")
        *path, last = key.split(".")
        place: Any = data
        try:
            for name in path:
                place = place[int(name)] if isinstance(place, list) else place[name]
            place[int(last) if isinstance(place, list) else last] = yaml.safe_load(value)
        except (KeyError, IndexError, TypeError, ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"The change {change!r} cannot be made.") from error
