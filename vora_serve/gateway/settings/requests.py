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
    max_tokens: PositiveInt = 131_072
    max_stop: PositiveInt = 16
    max_top_logprobs: PositiveInt = 20
    max_messages: PositiveInt = 1024
    max_text_chars: PositiveInt = 4_000_000
    max_tools: PositiveInt = 128
    max_schema_chars: PositiveInt = 100_000
    max_prompts: PositiveInt = 64
    max_token_id: PositiveInt = 2**31 - 1


class AdmissionSettings(Section):
    """Hard caps; a request beyond them waits in a bounded queue or is refused."""

    max_in_flight: PositiveInt = 256
    max_in_flight_per_key: PositiveInt | None = None
    max_queued: Annotated[int, Field(ge=0)] = 1024
    max_queued_per_key: Annotated[int, Field(ge=0)] | None = None
    queue_timeout_s: Seconds = 30.0
    request_timeout_s: Seconds = 900.0
    rate_limit_storage: str = "memory://"
    """A storage URI of the ``limits`` library; Redis where gateways share their limits."""
    requests: list[str] = []
    """Rate limits per key, such as ``600/minute``."""
    tokens: list[str] = []
    """Token rate limits per key, such as ``200000/minute``."""
    budgets: dict[Literal["day", "month"], PositiveInt] = {}
    """Tokens per tenant in a calendar day and month (UTC), such as ``{day: 1000000}``."""
