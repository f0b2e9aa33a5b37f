"""The settings of what a request may ask for, and of how many are taken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vora_serve.gateway.settings.types import PositiveInt, Seconds, Section

FieldAction = Literal["drop", "refuse"]


class FieldSettings(Section):
    """What happens to request fields outside the allowlist."""

    unknown: FieldAction = "drop"
    """For fields in no table: ``drop`` names them in ``x-vora-dropped-fields``."""
    actions: dict[str, FieldAction] = {}
    """Per field, over the built-in table in ``vora_serve.gateway.schemas.fields``."""
    max_n: PositiveInt = 16
    """The largest ``n``: answers to one request. Each is generated in full."""
    max_tokens: PositiveInt = 131_072
    """The largest ``max_tokens`` and its like; the engine's context bounds it too."""
    max_stop: PositiveInt = 16
    """Stop sequences in a request."""
    max_top_logprobs: PositiveInt = 20
    """The largest ``top_logprobs``: alternatives to each token of an answer."""
    max_messages: PositiveInt = 1024
    """Messages in a conversation."""
    max_text_chars: PositiveInt = 4_000_000
    """Characters of all text of a request together."""
    max_tools: PositiveInt = 128
    """Tools in a request."""
    max_schema_chars: PositiveInt = 100_000
    """Characters of a JSON schema or grammar, which the engine compiles. More lets one request take
    more time to compile."""
    max_prompts: PositiveInt = 64
    """Prompts in one request to ``/v1/completions``."""
    max_token_id: PositiveInt = 2**31 - 1
    """The largest token id in prompts given as ids and in ``logit_bias``."""


class AdmissionSettings(Section):
    """Hard caps; a request beyond them waits in a bounded queue or is refused."""

    max_in_flight: PositiveInt = 256
    """Requests of all callers that a worker has at engines at one time; further ones wait. More
    lengthens the engines' queues."""
    max_in_flight_per_key: PositiveInt | None = None
    """Requests of one key at engines at one time; unlimited where absent. Less keeps one caller
    from taking all places."""
    max_queued: Annotated[int, Field(ge=0)] = 1024
    """Requests that wait in a worker for a place; further ones get 429 at once. 0: nobody waits."""
    max_queued_per_key: Annotated[int, Field(ge=0)] | None = None
    """Requests of one key that wait; unlimited within ``max_queued`` where absent."""
    queue_timeout_s: Seconds = 30.0
    """A request that waited so long for a place gets 504. Less fails sooner under overload."""
    request_timeout_s: Seconds = 900.0
    """A request that is not answered in full by then is ended with 504. Raise it for long answers
    on slow engines."""
    rate_limit_storage: str = "memory://"
    """A storage URI of the ``limits`` library; Redis where gateways share their limits."""
    requests: list[str] = []
    """Rate limits per key, such as ``600/minute``."""
    tokens: list[str] = []
    """Token rate limits per key, such as ``200000/minute``."""
    budgets: dict[Literal["day", "month"], PositiveInt] = {}
    """Tokens per tenant in a calendar day and month (UTC), such as ``{day: 1000000}``."""
