"""``/v1/files`` and ``/v1/batches``."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from vora_core.errors import InvalidRequestError, NotFoundError
from vora_serve.gateway.batches.service import BatchRequest, BatchService
from vora_serve.gateway.body import check_media_type, read_body
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.openapi import error_responses
from vora_serve.gateway.state import GatewayState

_REFUSALS = error_responses(400, 401, 403, 404)
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {
                            "type": "string",
                            "enum": ["batch", "user_data", "assistants", "vision"],
                        },
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}
_CREATE = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": BatchRequest.model_json_schema()}},
    }
}


def _tenant(request: Request) -> str:
    context: RequestContext = request.scope[SCOPE_KEY]
    return context.key.tenant


def _number(value: str | None, default: int, most: int) -> int:
    if value is None:
        return default
    if not value.isdecimal() or len(value) > 6 or not 1 <= int(value) <= most:
        raise InvalidRequestError(f"'limit' must be a number from 1 to {most}.", param="limit")
    return int(value)


def add_batches(app: FastAPI, state: GatewayState) -> BatchService | None:
    """Serve files and batches; where they are off, say so.

    Raises:
        ConfigError: the folder cannot be used.
    """
    if state.settings.batches.folder is None:
        _add_hints(app)
        return None
    service = BatchService(state, state.settings.batches)
    _add_files(app, service)
    _add_batches(app, state, service)
    return service


def _add_hints(app: FastAPI) -> None:
    async def off() -> Response:
        raise NotFoundError(
            "Files and batches are off here; the setting batches.folder turns them on.",
            code="batches_off",
        )

    for path in ("/v1/files", "/v1/files/{rest:path}", "/v1/batches", "/v1/batches/{rest:path}"):
        app.add_api_route(path, off, methods=["GET", "POST", "DELETE"], include_in_schema=False)


def _add_files(app: FastAPI, service: BatchService) -> None:
    @app.post(
        "/v1/files",
        summary="Upload a file.",
        responses=error_responses(400, 401, 403, 408, 413, 415),
        openapi_extra=_UPLOAD,
    )
    async def upload_file(request: Request) -> JSONResponse:
        try:
            file = await service.upload(_tenant(request), request.scope, request.receive)
        except ClientDisconnect:
            raise InvalidRequestError("The client left before the file's end.") from None
        return JSONResponse(file)

    @app.get("/v1/files", summary="The caller's files.", responses=_REFUSALS)
    async def list_files(
        request: Request,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: str | None = None,
    ) -> JSONResponse:
        most = _number(limit, 10_000, 10_000)
        return JSONResponse(await service.list_files(_tenant(request), purpose, order, after, most))

    @app.get("/v1/files/{file_id}", summary="One file.", responses=_REFUSALS)
    async def get_file(file_id: str, request: Request) -> JSONResponse:
        return JSONResponse((await service.get_file(_tenant(request), file_id)).shown())

    @app.get(
        "/v1/files/{file_id}/content",
        summary="A file's content.",
        response_class=Response,
        responses=_REFUSALS,
    )
    async def get_content(file_id: str, request: Request) -> Response:
        file = await service.get_file(_tenant(request), file_id)
        # Never a type that a browser would show: whoever uploaded it is not trusted.
        return FileResponse(
            service.store.path(file.id),
            media_type="application/octet-stream",
            headers={"content-disposition": "attachment"},
        )

    @app.delete("/v1/files/{file_id}", summary="Delete a file.", responses=_REFUSALS)
    async def delete_file(file_id: str, request: Request) -> JSONResponse:
        return JSONResponse(await service.delete_file(_tenant(request), file_id))


def _add_batches(app: FastAPI, state: GatewayState, service: BatchService) -> None:
    @app.post(
        "/v1/batches",
        summary="Start a batch of a file's requests.",
        responses=error_responses(400, 401, 403, 404, 408, 413, 415),
        openapi_extra=_CREATE,
    )
    async def create_batch(request: Request) -> JSONResponse:
        limits = state.settings.server
        check_media_type(request.scope)
        with state.bodies.share() as share:
            body = await read_body(
                request.scope, request.receive, share, limits.max_body_bytes, limits.body_timeout_s
            )
            context: RequestContext = request.scope[SCOPE_KEY]
            batch, context.dropped_fields = await service.create(
                context.key, _tenant(request), body
            )
        return JSONResponse(batch)

    @app.get("/v1/batches", summary="The caller's batches.", responses=_REFUSALS)
    async def list_batches(
        request: Request,
        after: str | None = None,
        limit: str | None = None,
    ) -> JSONResponse:
        most = _number(limit, 20, 100)
        return JSONResponse(await service.list_batches(_tenant(request), after, most))

    @app.get("/v1/batches/{batch_id}", summary="One batch.", responses=_REFUSALS)
    async def get_batch(batch_id: str, request: Request) -> JSONResponse:
        return JSONResponse(await service.get(_tenant(request), batch_id))

    @app.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch.", responses=_REFUSALS)
    async def cancel_batch(batch_id: str, request: Request) -> JSONResponse:
        return JSONResponse(await service.cancel(_tenant(request), batch_id))
