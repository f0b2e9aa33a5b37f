"""Errors in the shape of the Messages API."""

from __future__ import annotations

from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# What a stream's error event says for the status of an answer that has not begun.
_TYPES_BY_OPENAI_TYPE = {
    "timeout_error": "timeout_error",
    "service_unavailable_error": "overloaded_error",
    "rate_limit_error": "rate_limit_error",
    "invalid_request_error": "invalid_request_error",
}


def speaks_messages(path: str) -> bool:
    """Whether a path belongs to the Messages API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def error_body(status: int, message: str, request_id: str) -> dict[str, Any]:
    """An answer's body."""
    error = {"type": _TYPES.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def event_body(error: dict[str, Any], request_id: str) -> dict[str, Any]:
    """The data of an ``error`` event, from an error in OpenAI's shape."""
    kind = _TYPES_BY_OPENAI_TYPE.get(error.get("type") or "", "api_error")
    body = {"type": kind, "message": error.get("message")}
    return {"type": "error", "error": body, "request_id": request_id}
