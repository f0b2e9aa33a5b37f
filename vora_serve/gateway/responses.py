"""The routes of responses: creating them as turns of kept conversations, reading and forgetting."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from vora_core.errors import APIError, InvalidRequestError, NotFoundError, UnavailableError
from vora_serve.gateway.context import SCOPE_KEY, RequestContext
from vora_serve.gateway.generation import GenerationResponse
from vora_serve.gateway.memory import Share
from vora_serve.gateway.openapi import error_responses
from vora_serve.gateway.schemas import ParsedRequest
from vora_serve.gateway.schemas.parse import parse_tree, read_object
from vora_serve.gateway.state import GatewayState
from vora_serve.gateway.stored.entry import StoredResponse
from vora_serve.gateway.stored.turn import begin_turn, is_reference

Answer = TypeVar("Answer")

# Some clients send references unless an answer says that nothing is kept.
_OFF = "which is off here; send the whole input, as clients do with 'store: false'"


class ResponsesResponse(GenerationResponse):
    """``POST /v1/responses``."""

    def __init__(self, state: GatewayState) -> None:
        super().__init__("response", state)

    async def _read(self, body: bytes, context: RequestContext, share: Share) -> ParsedRequest:
        tree = read_object(body)
        settings, store = self._state.settings, self._state.responses
        if store is None:
            _refuse_state(tree)
            return parse_tree("response", tree, settings.fields)
        tenant = self._state.tenant(context)
        turn = await begin_turn(
            tree, store, tenant, context.key.models, share, settings.responses.max_turns
        )
        try:
            parsed = parse_tree("response", tree, settings.fields)
        except APIError as error:
            raise turn.in_callers_words(error) from None
        parsed.dropped = [turn.own_place(path) for path in parsed.dropped]
        parsed.turn = turn
        return parsed


def _refuse_state(tree: dict[str, Any]) -> None:
    """Say what is wrong where a caller relies on responses being kept.

    Raises:
        InvalidRequestError: it does.
    """
    if tree.get("previous_response_id") is not None:
        raise InvalidRequestError(
            f"'previous_response_id' needs responses to be kept, {_OFF}.",
            param="previous_response_id",
            code="unsupported_parameter",
        )
    items = tree.get("input")
    for place, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and is_reference(item):
            raise InvalidRequestError(
                f"The reference to an item in 'input[{place}]' needs responses to be kept, {_OFF}.",
                param=f"input[{place}]",
                code="unsupported_parameter",
            )


def add_stored(app: FastAPI, state: GatewayState) -> None:
    """Add the routes of kept responses; without a store, none is ever found."""

    async def kept(response_id: str, request: Request) -> StoredResponse:
        context: RequestContext = request.scope[SCOPE_KEY]
        entry: StoredResponse | None = None
        if state.responses is not None:
            entry = await _reached(state.responses.get(state.tenant(context), response_id))
        models = context.key.models
        if entry is None or (models is not None and entry.response.get("model") not in models):
            raise NotFoundError(
                "There is no such response; it may have expired, or was not kept.",
                param="response_id",
                code="response_not_found",
            )
        return entry

    refusals = error_responses(401, 403, 404, 503)

    @app.get("/v1/responses/{response_id}", summary="A kept response.", responses=refusals)
    async def get_response(response_id: str, request: Request) -> JSONResponse:
        return JSONResponse((await kept(response_id, request)).response)

    @app.post("/v1/responses/{operation}", include_in_schema=False)
    async def no_operation(operation: str) -> JSONResponse:
        # Of OpenAI's, such as compact: clients take a 404 for "not offered", and not a 405.
        raise NotFoundError("This operation on responses is not offered here.", code="not_offered")

    @app.delete("/v1/responses/{response_id}", summary="Forget a response.", responses=refusals)
    async def delete_response(response_id: str, request: Request) -> JSONResponse:
        entry = await kept(response_id, request)
        assert state.responses is not None
        tenant = state.tenant(request.scope[SCOPE_KEY])
        await _reached(state.responses.delete(tenant, entry.id))
        return JSONResponse({"id": entry.id, "object": "response", "deleted": True})

    @app.get(
        "/v1/responses/{response_id}/input_items",
        summary="The input of a kept response's own turn.",
        responses={**refusals, **error_responses(400)},
    )
    async def list_input(
        response_id: str,
        request: Request,
        limit: Annotated[str, Query()] = "20",
        order: Annotated[str, Query()] = "desc",
        after: str | None = None,
    ) -> JSONResponse:
        entry = await kept(response_id, request)
        return JSONResponse(_page(entry.input, _limit(limit), _is_ascending(order), after))


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:4]) <= 100:
        raise InvalidRequestError("'limit' is a number from 1 to 100.", param="limit")
    return int(text[:4])


def _is_ascending(text: str) -> bool:
    if text in ("asc", "desc"):
        return text == "asc"
    raise InvalidRequestError("'order' is 'asc' or 'desc'.", param="order")


def _page(
    items: list[dict[str, Any]], limit: int, ascending: bool, after: str | None
) -> dict[str, Any]:
    ordered = items if ascending else items[::-1]
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise InvalidRequestError("'after' is no item of this response.", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }


async def _reached(asked: Awaitable[Answer]) -> Answer:
    try:
        return await asked
    except OSError:
        raise UnavailableError("Kept responses are out of reach.", retry_after=2) from None
