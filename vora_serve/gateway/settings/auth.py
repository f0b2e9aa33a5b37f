"""The settings of who may ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vora_serve.gateway.settings.types import Seconds, Section

Asymmetric = (
    Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    | Literal["ES256", "ES384", "ES512", "EdDSA"]
)


class TokenSettings(Section):
    """JSON Web Tokens of an OpenID provider."""

    issuer: str
    audience: str
    jwks_url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/.*)?$")]
    algorithms: Annotated[list[Asymmetric], Field(min_length=1)] = ["RS256", "ES256"]
    cache_s: Seconds = 300.0
    """How long the provider's keys are kept; a key id that is new is looked up sooner."""
    leeway_s: Annotated[float, Field(ge=0, le=300)] = 30.0
    name_claim: str = "sub"
    group_claim: str | None = None
    """The claim that names the tenant; each name is one where absent."""
    scope_claim: str = "scope"
    default_scopes: list[Literal["generate", "models", "metrics"]] = ["generate", "models"]
    """For tokens without the scope claim."""
    limits_claim: str = "vora"
    """A claim with limits as in a key's entry: models, max_in_flight, requests, budgets, ..."""


class AuthSettings(Section):
    """Who may ask. Without keys or tokens the gateway is open, and then only on loopback."""

    keys_file: Path | None = None
    jwt: TokenSettings | None = None
    allow_anonymous: bool = False
    """Serve without keys on an address that others can reach."""
    reload_interval_s: Seconds = 5.0
    protect_metrics: bool = False
    isolate_caches: bool = True
    """Give each tenant (a key, or a key's group) a prefix cache of its own inside the engines."""
