"""Routes whose handlers FastAPI documents, but does not call."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectMiddleware:
    """Awaits an endpoint's response without routing and dependency injection.

    For endpoints that declare no parameters and return a response that reads the request itself.
    Routing to them and solving their empty dependencies takes more than a tenth of a text request's
    CPU time.

    Args:
        app: The next layer.
        routes: By path, for POST; may be filled after the application is made.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, APIRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST"
        route = self._routes.get(scope["path"]) if asked else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # for metrics and logs
        response = await route.endpoint()
        await response(scope, receive, send)
