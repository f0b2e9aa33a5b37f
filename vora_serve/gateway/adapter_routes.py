"""``/admin/adapters``: the routes of :mod:`vora_serve.gateway.adapters`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import from_json

from vora_core.errors import InvalidRequestError
from vora_serve.gateway.adapters import AdapterRequest
from vora_serve.gateway.body import check_media_type, read_body
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.openapi import error_responses
from vora_serve.gateway.state import GatewayState

_PATH = "/admin/adapters"
_MOST_BYTES = 4096
_DRAIN_S, _MOST_DRAIN_S = 60, 600
_REFUSALS = error_responses(400, 401, 403, 404, 409, 503)
_LOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": AdapterRequest.model_json_schema()}},
    }
}


def add_adapters(app: FastAPI, state: GatewayState) -> None:
    """Serve the administration of vision adapters; every route asks for the scope ``admin``."""

    @app.get(_PATH, summary="The engines' vision adapters.", responses=_REFUSALS)
    async def list_adapters() -> JSONResponse:
        return JSONResponse(await state.adapters.listed())

    @app.post(
        _PATH,
        summary="Load a vision adapter on every engine.",
        responses=_REFUSALS,
        openapi_extra=_LOAD,
    )
    async def load_adapter(request: Request) -> JSONResponse:
        check_media_type(request.scope)
        with state.bodies.share() as share:
            body = await read_body(
                request.scope,
                request.receive,
                share,
                _MOST_BYTES,
                state.settings.server.body_timeout_s,
            )
        return JSONResponse(await state.adapters.load(_parse(body), _key(request)))

    @app.delete(
        _PATH + "/{name}",
        summary="Drop a vision adapter from every engine, once its requests are done.",
        responses=_REFUSALS,
    )
    async def drop_adapter(
        name: str, request: Request, timeout_s: str | None = None
    ) -> JSONResponse:
        seconds = _seconds(timeout_s)
        return JSONResponse(await state.adapters.drop(name, _key(request), seconds))


def _key(request: Request) -> str:
    context: RequestContext = request.scope[SCOPE_KEY]
    return context.key.name


def _parse(body: bytes) -> AdapterRequest:
    try:
        given: Any = from_json(body)
        return AdapterRequest.model_validate(given)
    except ValidationError as error:
        field = next((str(part) for part in error.errors()[0]["loc"]), None)
        raise InvalidRequestError(
            "Give an object with name and folder, each of up to 64 letters, digits, '.', '_' and "
            "'-'.",
            param=field,
        ) from None
    except ValueError:
        raise InvalidRequestError("The body is not valid JSON.") from None


def _seconds(given: str | None) -> float:
    if given is None:
        return _DRAIN_S
    if not given.isdecimal() or len(given) > 4 or int(given) > _MOST_DRAIN_S:
        raise InvalidRequestError(
            f"'timeout_s' must be a number of seconds up to {_MOST_DRAIN_S}.", param="timeout_s"
        )
    return float(given)
