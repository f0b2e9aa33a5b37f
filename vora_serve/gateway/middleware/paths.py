"""What clients expect of any route: HEAD beside GET, and a hint where a path is almost right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from vora_core.errors import APIError, NotFoundError


class HeadMiddleware:
    """Answers HEAD as GET; the server leaves the body out, since its own scope still says HEAD.

    Args:
        app: The next layer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")


class HintMiddleware:
    """Names the right path in a 404 where the client's base URL has a part too many or too few.

    Args:
        app: The next layer.
        paths: The API's paths, each starting with ``/v1``.
    """

    def __init__(self, app: ASGIApp, paths: Sequence[str]) -> None:
        self._app = app
        # /v1/completions is also the end of /v1/chat/completions: the longest goes first.
        self._paths = sorted(paths, key=len, reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except (HTTPException, NotFoundError) as error:
            hint = self._hint(scope["path"]) if _is_unknown_path(error) else None
            if hint is None:
                raise
            raise NotFoundError(
                f"There is no such page; did you mean {hint}? "
                "A client's base URL ends with /v1, once.",
                code="not_found",
            ) from None

    def _hint(self, path: str) -> str | None:
        plain = re.sub("/+", "/", path).rstrip("/")
        for known in self._paths:
            if plain.endswith(known.removeprefix("/v1")) and path != known:
                return known
        return None


def _is_unknown_path(error: Exception) -> bool:
    if isinstance(error, HTTPException):
        return error.status_code == 404
    return isinstance(error, APIError) and error.code == "not_found"
