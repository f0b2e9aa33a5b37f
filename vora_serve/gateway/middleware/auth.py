"""Authentication of everything but a few pages named exactly."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from vora_core.errors import PermissionDeniedError
from vora_serve.gateway.admission import KeyRing, TokenVerifier, token_in
from vora_serve.gateway.admission import Scope as KeyScope
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.middleware.context import find_header

PUBLIC_PATHS = frozenset(("/", "/health", "/ready", "/docs", "/openapi.json"))


def _is_metrics(path: str) -> bool:
    return path == "/metrics" or path.startswith("/metrics/engines/")


def _authorization(scope: Scope) -> str | None:
    """``Authorization`` where it holds a bearer token, else what other clients send as such.

    Anthropic's clients send ``x-api-key``, Azure's ``api-key``; a proxy in front of the gateway
    may use ``Authorization`` for itself.
    """
    header = find_header(scope, b"authorization")
    if header is None or not header.lower().startswith(b"bearer "):
        for name in (b"x-api-key", b"api-key"):
            key = find_header(scope, name)
            if key is not None:
                header = b"Bearer " + key
                break
    return header.decode("latin-1") if header is not None else None


class AuthMiddleware:
    """Pure ASGI. Decides by the path that routing uses, never by ``Host`` or a rebuilt URL.

    Args:
        app: The next layer.
        keys: The keys in force.
        tokens: Verifies what has the form of a token.
        protect_metrics: Whether ``/metrics`` asks for a key with that scope.
        public: Further exact paths that ask for no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        tokens: TokenVerifier | None = None,
        protect_metrics: bool = False,
        public: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._public = PUBLIC_PATHS | public
        self._keys = keys
        self._tokens = tokens
        self._protect_metrics = protect_metrics

    def _asks(self, path: str) -> bool:
        if _is_metrics(path):
            return self._protect_metrics
        return path not in self._public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._asks(scope["path"]):
            context: RequestContext = scope[SCOPE_KEY]
            authorization = _authorization(scope)
            token = token_in(authorization) if self._tokens is not None else None
            if self._tokens is not None and token is not None:
                key = await self._tokens.verify(token)
            else:
                key = self._keys.authenticate(authorization)
            needed: KeyScope = "generate"
            if _is_metrics(scope["path"]) or scope["path"] == "/operate/metrics":
                needed = "metrics"
            elif scope["path"].startswith("/v1/models"):
                needed = "models"
            elif scope["path"].startswith("/admin/"):
                needed = "admin"
            if not key.may(needed):
                raise PermissionDeniedError(f"This key has no scope '{needed}'.")
            context.key = key
        await self._app(scope, receive, send)
