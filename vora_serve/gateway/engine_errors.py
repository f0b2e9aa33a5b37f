"""Errors for callers when the engine refuses, fails or falls silent."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

from vora_core.errors import (
    APIError,
    ContextLengthError,
    DeadlineError,
    ImageRequestError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
    UpstreamError,
)
from vora_serve.gateway.http1 import ConnectError, HTTPClientError, ReadTimeoutError

_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+[\w.@+-]*")
_REPR = re.compile(r"<[\w.]+(?: object)?[^<>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|unix:\S+")
_CONTEXT = re.compile(
    r"maximum context length|max(?:imum)? model length|longer than the maximum|max_model_len"
    r"|context length|decoder prompt .* is longer",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"\bimages?\b|placeholder", re.IGNORECASE)


_DUMP = re.compile(r"\d+ validation errors?\b")


def sanitise(message: str) -> str:
    """A message without paths, addresses or objects' reprs, of one paragraph and bounded length."""
    if _DUMP.match(message):  # its schema's view of each alternative, with what was sent
        return "The engine could not read the request."
    message = message.split("\nTraceback", 1)[0]
    message = _REPR.sub("an object", message)
    message = _PATH.sub("a file", message)
    message = _ADDRESS.sub("an address", message)
    message = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return message[:1000] or "The engine gave no reason."


def _message(body: bytes) -> tuple[str, str | None]:
    try:
        tree: Any = from_json(body)
    except ValueError:
        return "", None
    error = tree.get("error", tree) if isinstance(tree, dict) else {}
    if not isinstance(error, dict):
        return str(error), None
    message = error.get("message") or tree.get("message") or tree.get("detail") or ""
    param = error.get("param")
    return str(message), param if isinstance(param, str) else None


def message_of(body: bytes) -> str:
    """What an engine's error says, fit for callers."""
    return sanitise(_message(body)[0])


def from_engine_error(status: int, body: bytes) -> APIError:
    """The error behind an engine's answer that is not 2xx."""
    raw, param = _message(body)
    message = sanitise(raw)
    if status == 429:
        return RateLimitError("The engine is busy.", code="engine_busy", retry_after=2)
    if status == 503:
        return UnavailableError("The engine cannot take work at the moment.", retry_after=2)
    if status == 404:
        return NotFoundError(message, param=param, code="not_found")
    if status in (400, 405, 413, 415, 422, 501):
        if _CONTEXT.search(raw):
            return ContextLengthError(message, param=param or "messages")
        if _IMAGE.search(raw):
            return ImageRequestError(message, param=param)
        return InvalidRequestError(message, param=param, code="invalid_value")
    return UpstreamError("The engine failed to answer the request.")


def from_stream_error(error: Any) -> APIError:
    """The error behind an error object inside an engine's stream."""
    if not isinstance(error, dict):
        return UpstreamError("The engine failed during the answer.")
    code = error.get("code")
    status = code if isinstance(code, int) else 500
    if 400 <= status < 500:
        return InvalidRequestError(sanitise(str(error.get("message", ""))), code="invalid_value")
    return UpstreamError("The engine failed during the answer.")


def from_transport_error(error: HTTPClientError) -> APIError:
    """The error behind a connection that could not be opened, broke or fell silent."""
    if isinstance(error, ConnectError):
        return UnavailableError("The engine could not be reached.", retry_after=2)
    if isinstance(error, ReadTimeoutError):
        return DeadlineError("The engine did not answer in time.", code="engine_timeout")
    return UpstreamError("The engine broke off before the answer was complete.")
