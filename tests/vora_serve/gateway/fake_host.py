"""A fake engine with vision adapters: the host's routes, and knobs to make them fail."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.vora_serve.gateway.fake_engine import FakeEngine


@dataclass
class FakeHost(FakeEngine):
    """Keeps adapters by name; a request for one that it does not have is a 404, as in vLLM."""

    adapters: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """Name to announced image settings."""
    room: int = 3
    refuse: tuple[int, str] | None = None
    """Status and message for the next load."""
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path with query, body."""
    used_after_drop: int = 0
    held: bool = False
    """Requests wait until it is false again."""
    waiting: int = 0

    async def models(self, request: Request) -> Response:
        listed = json.loads(bytes((await super().models(request)).body))
        for name, settings in self.adapters.items():
            card = {**listed["data"][0], "id": name, "parent": self.model}
            if settings is not None:
                card["vora_images"] = settings
            listed["data"].append(card)
        return JSONResponse(listed)

    async def generate(self, request: Request) -> Response:
        model = json.loads(await request.body())["model"]
        if model not in (self.model, *self.adapters):
            self.used_after_drop += 1
            error = {"message": f"The model `{model}` does not exist.", "code": 404}
            return JSONResponse({"error": error}, 404)
        self.waiting += 1
        while self.held:
            await asyncio.sleep(0.01)
        self.waiting -= 1
        return await super().generate(request)

    async def administer(self, request: Request) -> Response:
        body = await request.body()
        given = json.loads(body) if body else None
        self.asked.append((request.method, str(request.url).split("/v1/")[1], given))
        if request.method == "GET":
            cards = [{"name": n, "sha256": "ab", "in_flight": 0} for n in self.adapters]
            left = self.room - len(cards)
            return JSONResponse({"object": "list", "data": cards, "room": left})
        if request.method == "POST":
            if self.refuse is not None:
                status, message = self.refuse
                return JSONResponse({"error": {"message": message}}, status)
            self.adapters[given["name"]] = None
            return JSONResponse({"name": given["name"], "sha256": "ab", "in_flight": 0})
        name = request.path_params["name"]
        del self.adapters[name]
        return JSONResponse({"name": name, "deleted": True})

    def app(self) -> Starlette:
        app = super().app()
        path, methods = "/v1/vision_adapters", ["GET", "POST"]
        app.router.routes += [
            Route(path, self.administer, methods=methods),
            Route(path + "/{name}", self.administer, methods=["DELETE"]),
        ]
        return app
