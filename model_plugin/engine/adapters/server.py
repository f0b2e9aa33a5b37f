"""What vLLM's HTTP server gets for vision adapters: a route, and who uses which adapter.

``/v1/vision_adapters`` lists (GET), loads (POST ``{"name", "folder"}``) and drops (DELETE
``/v1/vision_adapters/NAME``). It lies below ``/v1``, which the engine's API key covers; vLLM's own
routes for LoRA stay off.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from model_plugin.engine.adapters.flags import HostFlags, open_registry
from model_plugin.engine.adapters.registry import LoadedAdapter, set_registry
from model_plugin.engine.adapters.requests import hook_requests
from model_plugin.engine.adapters.served import DRAIN_S, ServedAdapters
from vora_core.errors import APIError, InvalidRequestError, VoRAError

logger = logging.getLogger("vllm.vora.adapters")

PATH = "/v1/vision_adapters"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

#: The adapters that the current HTTP request uses.
_HELD: ContextVar[list[LoadedAdapter] | None] = ContextVar("vora_held", default=None)


def hold(adapter: LoadedAdapter) -> None:
    """Count a use of an adapter until the current HTTP request has been answered."""
    held = _HELD.get()
    if held is not None:
        adapter.in_flight += 1
        held.append(adapter)


class HoldAdapters:
    """A pure ASGI layer around everything: whatever a request holds is let go when it ends.

    Args:
        app: the next layer.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[LoadedAdapter] = []
        token = _HELD.set(held)
        try:
            await self._app(scope, receive, send)
        finally:
            _HELD.reset(token)
            for adapter in held:
                adapter.in_flight -= 1


def prepare_host(model: str, flags: HostFlags) -> None:
    """Make this process's server one with adapters, before vLLM starts it.

    Args:
        model: the LLM, folder or hub id.
        flags: the adapters to start with.

    Raises:
        CheckpointError, ConfigError: LLM and adapters do not belong together.
    """
    from vllm.entrypoints.launchers import app as app_module
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    registry = open_registry(model, flags.limits)
    for name, folder in flags.adapters.items():
        registry.prepare(name, folder)  # what does not fit is refused before anything is loaded
    set_registry(registry)
    hook_requests(hold)
    load_static = OpenAIServingModels.init_static_loras
    served: list[ServedAdapters] = []

    async def load_adapters(self: Any) -> None:
        await load_static(self)
        served.append(ServedAdapters(registry, self.engine_client, self, flags.folder))
        for name, folder in flags.adapters.items():
            await served[0].load(name, folder)

    OpenAIServingModels.init_static_loras = load_adapters
    register = app_module.register_api_routers

    def register_all(args: Any, app: Any, *rest: Any) -> None:
        register(args, app, *rest)
        _add_routes(app, served)
        app.add_middleware(HoldAdapters)

    app_module.register_api_routers = register_all


def _add_routes(app: FastAPI, served: list[ServedAdapters]) -> None:
    async def answer(work: Callable[[ServedAdapters], Awaitable[Any]]) -> JSONResponse:
        try:
            return JSONResponse(await work(served[0]))
        except APIError as error:
            return JSONResponse(error.body(), error.status)
        except VoRAError as error:
            status = 400 if error.exit_code == 2 else error.status
            refused = InvalidRequestError(str(error))
            return JSONResponse(refused.body(), status)

    @app.get(PATH)
    async def list_adapters() -> JSONResponse:
        async def work(adapters: ServedAdapters) -> Any:
            return {"object": "list", "data": adapters.cards(), "room": adapters.room}

        return await answer(work)

    @app.post(PATH)
    async def load_adapter(request: Request) -> JSONResponse:
        async def work(adapters: ServedAdapters) -> Any:
            try:
                given = await request.json()
                name, folder = given["name"], given["folder"]
            except (ValueError, KeyError, TypeError):
                name = folder = None
            if not isinstance(name, str) or not isinstance(folder, str):
                raise InvalidRequestError("Give a JSON object with name and folder.")
            adapter = await adapters.load_folder(name, folder)
            logger.info("Loaded the vision adapter %s (%s).", name, adapter.digest[:12])
            return adapter.card()

        return await answer(work)

    @app.delete(PATH + "/{name}")
    async def drop_adapter(name: str, timeout_s: float = DRAIN_S) -> JSONResponse:
        async def work(adapters: ServedAdapters) -> Any:
            await adapters.drop(name, min(max(timeout_s, 0.0), 3600.0))
            logger.info("Dropped the vision adapter %s.", name)
            return {"name": name, "deleted": True}

        return await answer(work)
