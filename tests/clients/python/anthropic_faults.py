"""anthropic for Python and an engine that fails on purpose: errors, counts, a stream cut off."""

from __future__ import annotations

import sys
from typing import Any

import anthropic
from tour import BASE, KEY, MODEL, run

client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)
ONE: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "x"}],
}


def without_id(kind: type[anthropic.APIStatusError]) -> str:
    """An error without its request's id is a fault."""
    raise AssertionError(f"a {kind.__name__} without a request id")


def fails(kind: type[anthropic.APIStatusError], **more: Any) -> str:
    """The request id of an error of this kind."""
    try:
        client.messages.create(**{**ONE, **more})
    except kind as error:
        return error.request_id or without_id(kind)
    raise AssertionError(f"no {kind.__name__}")


def missing() -> str:
    return fails(anthropic.NotFoundError, model="other")


def refused() -> str:
    return fails(anthropic.BadRequestError, extra_body={"mcp_servers": [{}]})


def counted() -> str:
    found = client.messages.count_tokens(model=MODEL, messages=ONE["messages"])
    assert found.input_tokens == 10
    return str(found.input_tokens)


def cut() -> str:
    try:
        with client.messages.stream(**ONE) as stream:
            list(stream)
    except anthropic.APIStatusError as error:
        return type(error).__name__
    raise AssertionError("the stream ended without an error")


if __name__ == "__main__":
    run(**({"cut": cut} if sys.argv[5] == "cut" else {
        "missing": missing, "refused": refused, "counted": counted,
    }))  # fmt: skip
