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
    """The provider's ``iss`` claim, exactly as it writes it; tokens of others are refused."""
    audience: str
    """The ``aud`` claim that a token must name, so that tokens for other services are refused."""
    jwks_url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/.*)?$")]
    """Where the provider publishes its public keys; fetched when needed, never at each request."""
    algorithms: Annotated[list[Asymmetric], Field(min_length=1)] = ["RS256", "ES256"]
    """Signature algorithms that are taken. Name only those that the provider uses."""
    cache_s: Seconds = 300.0
    """How long the provider's keys are kept; a key id that is new is looked up sooner."""
    leeway_s: Annotated[float, Field(ge=0, le=300)] = 30.0
    """How far the provider's clock and this one may differ when a token's times are checked. More
    lets expired tokens live longer."""
    name_claim: str = "sub"
    """The claim that names the caller in metrics, logs and limits."""
    group_claim: str | None = None
    """The claim that names the tenant; each name is one where absent."""
    scope_claim: str = "scope"
    """The claim with the token's scopes, separated by spaces or as a list."""
    default_scopes: list[Literal["generate", "models", "metrics", "admin"]] = ["generate", "models"]
    """For tokens without the scope claim."""
    limits_claim: str = "vora"
    """A claim with limits as in a key's entry: models, max_in_flight, requests, budgets, ..."""


class AuthSettings(Section):
    """Who may ask. Without keys or tokens the gateway is open, and then only on loopback."""

    keys_file: Path | None = None
    """A YAML file with the hashes of API keys (``vora-serve keys``). Without it and ``jwt``,
    everyone on this machine may ask."""
    jwt: TokenSettings | None = None
    """Accept tokens of an OpenID provider, besides the keys of ``keys_file``."""
    allow_anonymous: bool = False
    """Serve without keys on an address that others can reach."""
    reload_interval_s: Seconds = 5.0
    """How often the key file is looked at for changes. Less applies a revoked key sooner."""
    protect_metrics: bool = False
    """Ask for a key with the scope ``metrics`` at ``/metrics`` and below it."""
    isolate_caches: bool = True
    """Give each tenant (a key, or a key's group) a prefix cache of its own inside the engines."""
