"""The FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from vora_core.errors import NotFoundError, UnavailableError
from vora_serve.gateway.adapter_routes import add_adapters
from vora_serve.gateway.batches.routes import add_batches
from vora_serve.gateway.context import SCOPE_KEY
from vora_serve.gateway.counting import InputTokensResponse, TokenizeResponse
from vora_serve.gateway.descriptions import describe
from vora_serve.gateway.generation import GenerationResponse
from vora_serve.gateway.http1 import HTTPClientError
from vora_serve.gateway.images import Resolver
from vora_serve.gateway.messages.route import CountTokensResponse, MessagesResponse
from vora_serve.gateway.metrics import CONTENT_TYPE
from vora_serve.gateway.middleware import (
    AuthMiddleware,
    ContextMiddleware,
    DirectMiddleware,
    HeadMiddleware,
    HintMiddleware,
    as_api_error,
)
from vora_serve.gateway.openapi import (
    ErrorBody,
    MessagesErrorBody,
    ModelCard,
    ModelList,
    definitions,
    error_responses,
    request_body,
)
from vora_serve.gateway.playground import add_playground, describe_model, public_paths
from vora_serve.gateway.responses import ResponsesResponse, add_stored
from vora_serve.gateway.schemas import Kind
from vora_serve.gateway.settings import Settings
from vora_serve.gateway.state import GatewayState

DESCRIPTION = "An OpenAI-compatible gateway in front of VoRA models served by vLLM."

GENERATION: list[tuple[str, Kind, str]] = [
    ("/v1/chat/completions", "chat", "Continue a chat, with images."),
    ("/v1/completions", "completion", "Continue a raw prompt."),
    ("/v1/responses", "response", "Answer an input."),
]

#: Other APIs' routes: what answers, in words, and the shape of errors.
TRANSLATED: list[tuple[str, Callable[[GatewayState], Response], str, type[BaseModel]]] = [
    (
        *("/v1/messages", MessagesResponse),
        *("Continue a conversation, as Anthropic's API has it.", MessagesErrorBody),
    ),
    (
        *("/v1/messages/count_tokens", CountTokensResponse),
        *("Count a prompt's tokens, as above.", MessagesErrorBody),
    ),
    ("/tokenize", TokenizeResponse, "Tokenize a prompt or a chat, as vLLM has it.", ErrorBody),
    (
        *("/v1/responses/input_tokens", InputTokensResponse),
        *("Count an input's tokens, as OpenAI has it.", ErrorBody),
    ),
]


def create_app(settings: Settings, resolver: Resolver | None = None) -> FastAPI:
    """The gateway's ASGI application.

    Args:
        settings: The settings tree; engines are ``settings.upstreams``.
        resolver: Name resolution for images; the operating system's where absent.

    Raises:
        ConfigError: a key file, a rate limit or an upstream's URL is wrong.
    """
    state = GatewayState(settings, resolver)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await state.start()
        if batches is not None:
            state.documents.stored = batches.read
            batches.start()
        try:
            yield
        finally:
            if batches is not None:
                await batches.stop()
            await state.stop()

    direct: dict[str, APIRoute] = {}
    middleware = [
        Middleware(
            ContextMiddleware,
            metrics=state.metrics,
            tracer=state.tracer,
            trusted_proxies=settings.server.trusted_proxies,
        ),
        Middleware(
            AuthMiddleware,
            keys=state.keys,
            tokens=state.tokens,
            protect_metrics=settings.auth.protect_metrics,
            public=public_paths(settings),
        ),
        Middleware(DirectMiddleware, routes=direct),
        Middleware(HeadMiddleware),
        Middleware(
            HintMiddleware,
            paths=[
                *(path for path, _, _ in GENERATION),
                *(path for path, _, _, _ in TRANSLATED),
                "/v1/models",
                "/v1/files",
                "/v1/batches",
            ],
        ),
    ]
    if settings.server.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # clients add their own: x-stainless-os, anthropic-version, ...
            expose_headers=[
                "x-request-id",
                "request-id",
                "x-vora-dropped-fields",
                "x-vora-images",
                "x-vora-overhead-ms",
                "retry-after",
            ],
        )
        middleware.insert(0, cors)  # errors too must be readable, and preflights carry no key
    docs = settings.server.docs
    app = FastAPI(
        title="vora-serve",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        middleware=middleware,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere; ours needs no network
        openapi_url="/openapi.json" if docs else None,
        redoc_url=None,
        redirect_slashes=False,
        # The gateway's own do; where a release of FastAPI has these, they would come twice.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # Starlette's own handler would answer before the outermost layer sees the error.
    app.add_exception_handler(HTTPException, _raise_on)
    app.state.gateway = state
    _add_generation(app, state)
    _add_translated(app, state)
    add_stored(app, state)
    _add_models(app, state)
    _add_operations(app, state)
    add_adapters(app, state)
    batches = app.state.batches = add_batches(app, state)
    add_playground(app, state)
    read_by_response = {path for path, *_ in (*GENERATION, *TRANSLATED)}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.path in read_by_response:
            direct[route.path] = route
    _complete_openapi(app, keys_needed=not state.keys.open)
    return app


async def _raise_on(_: Request, error: Exception) -> Response:
    raise as_api_error(error)


_REFUSALS = (400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504)
_ANSWER = {
    "description": "The answer, or a stream of events.",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {"schema": {"type": "string"}},
    },
}


def _add_generation(app: FastAPI, state: GatewayState) -> None:
    for path, kind, summary in GENERATION:

        def handler(kind: Kind = kind) -> Any:
            async def generate() -> Response:
                if kind == "response":
                    return ResponsesResponse(state)
                return GenerationResponse(kind, state)

            return generate

        app.router.add_api_route(
            path,
            handler(),
            methods=["POST"],
            summary=summary,
            operation_id=f"create_{kind}",
            response_class=JSONResponse,
            responses={200: _ANSWER, **error_responses(*_REFUSALS)},
            openapi_extra=request_body(kind),
        )


def _add_translated(app: FastAPI, state: GatewayState) -> None:
    for path, answering, summary, error in TRANSLATED:

        def handler(answering: Callable[[GatewayState], Response] = answering) -> Any:
            async def generate() -> Response:
                return answering(state)

            return generate

        name = path.removeprefix("/v1/").strip("/").replace("/", "_")
        app.router.add_api_route(
            path,
            handler(),
            methods=["POST"],
            summary=summary,
            operation_id=f"create_{name}",
            response_class=JSONResponse,
            responses={200: _ANSWER, **error_responses(*_REFUSALS, model=error)},
            openapi_extra=request_body(name),
        )


def _card(name: str, card: dict[str, Any], described: dict[str, Any] | None) -> dict[str, Any]:
    """A model's card, without the path that the engine names as its root."""
    length = card.get("max_model_len")
    created = card.get("created")
    return {
        "id": name,
        "object": "model",
        "created": created if isinstance(created, int) else 0,
        "owned_by": "vora-serve",
        "max_model_len": length if isinstance(length, int) else None,
        "vora": described,
    }


def _add_models(app: FastAPI, state: GatewayState) -> None:
    def visible(request: Request) -> dict[str, dict[str, Any]]:
        allowed = request.scope[SCOPE_KEY].key.models
        cards, checkpoints = state.balancer.models(), state.settings.playground.checkpoints

        def described(name: str) -> dict[str, Any] | None:
            settings = state.balancer.image_settings(name)
            return describe_model(name, cards, checkpoints, settings)

        return {
            name: _card(name, card, described(name))
            for name, card in cards.items()
            if allowed is None or name in allowed
        }

    @app.get(
        "/v1/models",
        summary="The served models.",
        response_model=ModelList,
        responses=error_responses(401, 403),
    )
    async def list_models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(visible(request).values())})

    @app.get(
        "/v1/models/{model:path}",
        summary="One served model.",
        response_model=ModelCard,
        responses=error_responses(401, 403, 404),
    )
    async def get_model(model: str, request: Request) -> JSONResponse:
        card = visible(request).get(model)
        if card is None:
            raise NotFoundError(
                "The model does not exist here.", param="model", code="model_not_found"
            )
        return JSONResponse(card)


def _add_operations(app: FastAPI, state: GatewayState) -> None:
    @app.get("/health", summary="Whether the process is alive.")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", summary="Whether an engine can take work.", responses=error_responses(503))
    async def ready() -> JSONResponse:
        if state.draining:
            raise UnavailableError("The gateway is shutting down.", code="draining")
        if not state.ready:
            raise UnavailableError("No engine can take work at the moment.", retry_after=2)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Prometheus metrics.", response_class=Response)
    def metrics() -> Response:  # in a thread: rendering must not hold up streams
        return Response(state.render_metrics(), media_type=CONTENT_TYPE)

    @app.get(
        "/metrics/engines/{index}",
        summary="An engine's own metrics.",
        response_class=Response,
        responses=error_responses(404, 503),
    )
    async def engine_metrics(index: str) -> Response:
        upstreams = state.balancer.upstreams
        if not index.isdecimal() or len(index) > 4 or int(index) >= len(upstreams):
            raise NotFoundError("There is no such engine.", code="not_found")
        try:
            status, body = await upstreams[int(index)].get(b"/metrics", 16 * 2**20)
        except (HTTPClientError, TimeoutError):
            status, body = 0, b""
        if status != 200:
            raise UnavailableError("The engine could not be reached.", retry_after=2)
        return Response(body, media_type=CONTENT_TYPE)


def _complete_openapi(app: FastAPI, keys_needed: bool) -> None:
    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions())
            describe(schema)
            if keys_needed:
                scheme = {"key": {"type": "http", "scheme": "bearer"}}
                schema["components"]["securitySchemes"] = scheme
                schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = build  # type: ignore[method-assign]
