"""Request bodies through pydantic's JSON parser: an eighth of the time for an image's pixels."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request


def parse_bodies_fast() -> None:
    """Replace the parser of all requests in this process. Safe to repeat."""

    async def read(request: Any) -> Any:
        if not hasattr(request, "_json"):
            request._json = parse(await request.body())
        return request._json

    Request.json = read  # type: ignore[assignment, method-assign]


def parse(body: bytes) -> Any:
    """A JSON document, as ``json.loads`` reads it.

    Raises:
        json.JSONDecodeError: it is none.
        UnicodeDecodeError: it is no text.
    """
    try:
        return from_json(body)
    except ValueError:  # or something that only the library's takes: UTF-16, half a surrogate pair
        return json.loads(body)
