"""JSON Web Tokens of an OpenID provider, as another way to authenticate."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from typing import Any, get_args

import httpx
import jwt
from pydantic import ValidationError

from vora_core.errors import AuthenticationError, ConfigError, UnavailableError
from vora_serve.gateway.admission.keys import ApiKey, Scope
from vora_serve.gateway.admission.limits import parse_limits
from vora_serve.gateway.settings import TokenSettings

logger = logging.getLogger("vora_serve.gateway.tokens")

_SHAPE = re.compile(r"(?i:bearer) +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+) *")
_MAX_TOKEN_CHARS = 8192
_MAX_KEY_SET_BYTES = 2**20
_LEAST_REFRESH_S = 10.0  # tokens with made-up key ids must not become requests to the provider
_LIMITS = frozenset(
    ("models", "weight", "priority", "max_in_flight", "max_queued", "requests", "tokens", "budgets")
)


def token_in(authorization: str | None) -> str | None:
    """The token in an ``Authorization`` header that has the form of one."""
    match = _SHAPE.fullmatch(authorization) if authorization is not None else None
    return match[1] if match is not None else None


def _refusal(message: str) -> AuthenticationError:
    return AuthenticationError(
        message, headers={"www-authenticate": 'Bearer error="invalid_token"'}
    )


class TokenVerifier:
    """Verifies tokens against the provider's published keys.

    Only asymmetric algorithms can be configured, a key verifies by its own algorithm alone, and a
    token's ``jku``, ``jwk`` and ``x5u`` headers are not looked at.

    Args:
        settings: Whose tokens, for whom, and what their claims mean.
        transport: Another way to the key set, for tests.
    """

    def __init__(
        self, settings: TokenSettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._tried = -_LEAST_REFRESH_S
        self._read = -settings.cache_s
        self._refreshing = asyncio.Lock()

    async def verify(self, token: str) -> ApiKey:
        """The caller that a token names, as a key with the scopes and limits in its claims.

        Raises:
            AuthenticationError: it is forged, expired, for somebody else, or malformed.
            UnavailableError: the provider's keys have never been reachable.
        """
        if len(token) > _MAX_TOKEN_CHARS:
            raise _refusal("The token is too long.")
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in settings.algorithms:
                raise _refusal("The token's algorithm is not accepted.")
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._key(header.get("kid")),
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp", "iss", "aud", settings.name_claim]},
            )
        except jwt.ExpiredSignatureError:
            raise _refusal("The token has expired.") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _refusal("The token is not valid.") from None
        return self._as_key(claims)

    async def _key(self, key_id: Any) -> jwt.PyJWK:
        if time.monotonic() - self._read >= self._settings.cache_s or key_id not in self._keys:
            await self._refresh(key_id)
        if key_id in self._keys:
            return self._keys[key_id]
        if not self._keys:
            raise UnavailableError("The token cannot be verified at the moment.", retry_after=10)
        raise _refusal("The token's key is unknown.")

    async def _refresh(self, key_id: Any) -> None:
        async with self._refreshing:
            now = time.monotonic()
            fresh = now - self._read < self._settings.cache_s and key_id in self._keys
            if fresh or now - self._tried < _LEAST_REFRESH_S:
                return
            self._tried = now
            try:
                keys = await self._fetch()
            except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
                # Keys that were valid before stay so: an outage of the provider locks nobody out.
                logger.error("key set not read: %s", type(error).__name__)
                return
            self._keys, self._read = keys, now

    async def _fetch(self) -> dict[str | None, jwt.PyJWK]:
        async with (
            httpx.AsyncClient(timeout=5, transport=self._transport, trust_env=False) as client,
            client.stream("GET", self._settings.jwks_url) as answer,
        ):
            answer.raise_for_status()
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _MAX_KEY_SET_BYTES:
                    raise ValueError("the key set is too large")
        tree = httpx.Response(200, content=body).json()
        if not isinstance(tree, dict) or not isinstance(tree.get("keys"), list):
            raise ValueError("no key set")
        keys: dict[str | None, jwt.PyJWK] = {}
        for entry in tree["keys"]:
            if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
                continue
            try:
                key = jwt.PyJWK(entry)
            except jwt.PyJWTError:
                continue  # of a kind that is not supported
            if key.algorithm_name in self._settings.algorithms:
                keys[entry.get("kid")] = key
        if not keys:
            raise ValueError("no usable key")
        return keys

    def _as_key(self, claims: dict[str, Any]) -> ApiKey:
        settings = self._settings
        group = claims.get(settings.group_claim) if settings.group_claim is not None else None
        if settings.group_claim is not None and not isinstance(group, str):
            raise _refusal(f"The token has no claim '{settings.group_claim}'.")
        scopes = claims.get(settings.scope_claim, settings.default_scopes)
        scopes = scopes.split() if isinstance(scopes, str) else scopes
        limits = claims.get(settings.limits_claim, {})
        try:
            if not isinstance(limits, dict) or not limits.keys() <= _LIMITS:
                raise ValueError("limits")
            known = [scope for scope in scopes if scope in get_args(Scope)]
            key = ApiKey.model_validate(
                {
                    "name": _label("jwt", str(claims[settings.name_claim])),
                    "sha256": "0" * 64,
                    "group": _label("jwt", group) if group is not None else None,
                    "scopes": known,
                    **limits,
                }
            )
            parse_limits([*(key.requests or ()), *(key.tokens or ())])
        except (ValidationError, ValueError, TypeError, ConfigError):
            raise _refusal("The token's claims on scopes or limits are malformed.") from None
        return key


def _label(kind: str, text: str) -> str:
    """A name that is readable, fit for logs and metrics, and different for different texts."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:32]
    return f"{kind}.{plain}.{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"
