"""What one evaluation asks: the server, and suites, from a YAML file or from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vora_core import typed_yaml
from vora_serve.world.suite import SUITE_SEED


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteRecipe(_Strict):
    """One suite.

    Attributes:
        kind: ``demo`` (the demo's world; needs no file), ``world`` (the wide world; ``data`` is the
            folder of its emoji), ``vqa``, ``choice``, ``circular``,
            ``pope``, ``mme``, ``open``, or ``text`` (does the model answer text as its LLM does?).
        data: the questions' file.
        images: folder of images; the file's own when absent.
        name: in the result; the file's when absent.
        prompt: instead of the kind's own.
        limit: questions; of the demo and the wide world, of each group.
        max_tokens: longest reply.
        seed: of held-out images that are drawn.
        blank: ask questions about drawn images again, about blank ones.
    """

    kind: Literal["demo", "world", "vqa", "choice", "circular", "pope", "mme", "open", "text"]
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
        if self.kind != "world" and (self.data is None) != (self.kind == "demo"):
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
        ConfigError: a key or value is wrong; the sentence names it.
    """
    return typed_yaml.validate(EvaluationRecipe, data, subject="evaluation")
