"""The settings of the page at ``/``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vora_serve.gateway.settings.types import Seconds, Section


class PlaygroundSettings(Section):
    """The page at ``/``."""

    enabled: bool = True
    """Off: nothing at ``/`` and under ``/playground/``."""
    operate: bool = True
    """The operator's page at ``/operate``, for those without Grafana. Its numbers ask for a key
    with the scope ``metrics`` wherever the gateway has keys."""
    checkpoints: dict[str, str] = {}
    """By model: a folder with its config.json and preprocessor_config.json, for engines whose
    files this process does not see; gives the page the sizes and tokens of images."""
    price_per_million_input_tokens: Annotated[float, Field(ge=0)] | None = None
    """What a million prompt tokens cost, shown below answers; absent: no prices are shown."""
    price_per_million_output_tokens: Annotated[float, Field(ge=0)] | None = None
    """What a million tokens of answers cost, shown likewise."""
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"
    """In which the prices are; they are shown, nothing is charged."""
    explain: Literal["auto", "always", "never"] = "auto"
    """Whether the supervised engine's model is looked into (*How it sees*): a second process loads
    it when somebody first looks, and ends after ``explain_idle_s``. ``auto`` does so where the
    weights are on this machine and at most 1 GiB; for others the page names the command that
    starts the process. It loads the weights in float32 on the CPU."""
    explain_idle_s: Seconds = 600.0
    """That process ends, and frees its memory, after so many seconds without a question."""
    explain_url: Annotated[str, Field(pattern=r"^(https?://[^/]+|unix:/.+)$")] | None = None
    """Where ``vora-serve explain --listen`` runs, ``http://host:port`` or ``unix:/path``; instead
    of a process of this server's own. The only way with engines elsewhere."""
