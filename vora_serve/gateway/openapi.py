"""The pieces of ``/openapi.json`` that FastAPI cannot know, as bodies are parsed by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, RootModel

from vora_serve.gateway.messages.schemas import CountTokensRequest, MessagesRequest
from vora_serve.gateway.schemas import SCHEMAS
from vora_serve.gateway.schemas.counting import TokenizeChat, TokenizePrompt
from vora_serve.gateway.schemas.responses import ResponsesRequest

_BODIES: dict[str, type[BaseModel]] = {
    **{str(kind): schema for kind, schema in SCHEMAS.items()},
    "messages": MessagesRequest,
    "messages_count_tokens": CountTokensRequest,
    "tokenize": RootModel[TokenizeChat | TokenizePrompt],
    "responses_input_tokens": ResponsesRequest,
}


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error's shape."""

    error: ErrorObject


class MessagesErrorObject(BaseModel):
    """What went wrong, as Anthropic's API has it."""

    type: str
    message: str


class MessagesErrorBody(BaseModel):
    """Every error's shape under ``/v1/messages``."""

    type: str = "error"
    error: MessagesErrorObject
    request_id: str


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "vora-serve"
    max_model_len: int | None = None
    vora: dict[str, Any] | None = None
    """How images become tokens, where the checkpoint's files are within reach."""


class ModelList(BaseModel):
    """The served models."""

    object: str = "list"
    data: list[ModelCard] = Field(default_factory=list)


_DESCRIPTIONS = {
    400: "The request is at fault.",
    401: "No valid API key.",
    403: "The key may not do this.",
    404: "No such model or page.",
    405: "Wrong method.",
    408: "The request was sent too slowly.",
    409: "The name is taken or in use, or there is no room.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "A limit is reached; see Retry-After.",
    500: "The gateway failed.",
    502: "The engine broke off.",
    503: "No engine can take work; see Retry-After.",
    504: "The deadline passed.",
}


def error_responses(
    *statuses: int, model: type[BaseModel] = ErrorBody
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` for these statuses."""
    return {status: {"model": model, "description": _DESCRIPTIONS[status]} for status in statuses}


# Fields that are read before the schemas see a request, and are not forwarded as they are.
_READ_BEFORE: dict[str, dict[str, Any]] = {
    "chat": {
        "functions": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/chat_FunctionDefinition"},
            "description": "The older form of `tools`; the answer then has `function_call`.",
        },
        "function_call": {
            "anyOf": [{"enum": ["none", "auto"]}, {"type": "object"}],
            "description": "The older form of `tool_choice`.",
        },
    },
    "response": {
        "previous_response_id": {
            "type": "string",
            "description": "The kept response that this one follows; needs `responses.store`.",
        },
        "store": {
            "type": "boolean",
            "description": "Whether to keep the response; only where `responses.store` is on.",
        },
    },
}


def request_body(kind: str) -> dict[str, Any]:
    """FastAPI's ``openapi_extra`` with the request's schema, its definitions put in place."""
    schema = _BODIES[kind].model_json_schema(ref_template=f"#/components/schemas/{kind}_{{model}}")
    schema.pop("$defs", None)
    if kind in _READ_BEFORE:
        schema["properties"] |= _READ_BEFORE[kind]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def definitions() -> dict[str, Any]:
    """The schemas that the request bodies refer to."""
    result: dict[str, Any] = {}
    for kind, model in _BODIES.items():
        schema = model.model_json_schema(ref_template=f"#/components/schemas/{kind}_{{model}}")
        for name, definition in schema.get("$defs", {}).items():
            result[f"{kind}_{name}"] = definition
    return result
