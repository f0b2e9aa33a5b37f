"""``POST /v1/completions``: raw prompts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vora_serve.gateway.schemas.base import CompletionSampling, Name, TokenId

TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(CompletionSampling):
    """A raw prompt to be continued by the model."""

    model: Name
    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    echo: bool | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """0 only with ``echo``, for the prompt's own log-probabilities."""
    logprobs: Annotated[int, Field(ge=0)] | None = None
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
