"""What engines are sent: images put into the finished JSON, as if it were written in one piece."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vora_serve.gateway.images.data_url import encode_data_url
from vora_serve.gateway.schemas import ParsedRequest, parse_request
from vora_serve.gateway.schemas.counting import parse_input_tokens
from vora_serve.gateway.settings import FieldSettings

ODD = 'a "quoted" \\ back\\slash, é, \u2028, \U0001f600, \x1f, 0123456789abcdef00000000, data:,'
URLS = [encode_data_url(bytes([number]) * 5000, "image/png") for number in range(12)]


def chat(count: int) -> ParsedRequest:
    parts: list[Any] = [{"type": "text", "text": ODD}]
    for number in range(count):
        url = f"https://example.org/{number}.png"
        parts += [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": ODD}]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}], "user": ODD}
    return parse_request("chat", json.dumps(body).encode(), FieldSettings())


def response() -> tuple[ParsedRequest, ParsedRequest]:
    """As a response, and as the chat that counts its tokens."""
    parts = [
        {"type": "input_text", "text": ODD},
        {"type": "input_image", "image_url": "https://example.org/1.png", "detail": "auto"},
    ]
    body = json.dumps({"model": "m", "input": [{"role": "user", "content": parts}]}).encode()
    settings = FieldSettings()
    return parse_request("response", body, settings), parse_input_tokens(body, settings)


@pytest.mark.parametrize("count", [0, 1, 2, 12])
def test_images_come_where_the_request_has_them(count: int) -> None:
    parsed = chat(count)
    parsed.place_images(URLS[:count])
    sent = json.loads(parsed.encode())
    assert sent == parsed.payload  # which holds the images again, for another try
    parts = sent["messages"][0]["content"]
    assert [part["image_url"]["url"] for part in parts[1::2]] == URLS[:count]
    assert {part["text"] for part in parts[::2]} == {ODD}
    assert parsed.encode() == parsed.encode()


def test_every_api_gets_its_images() -> None:
    for parsed in response():
        parsed.place_images(URLS[:1])
        sent = parsed.encode()
        assert json.loads(sent) == (parsed.written or dict)(parsed.payload)
        assert sent.count(URLS[0].encode()) == 1


def test_an_image_that_is_written_twice() -> None:
    parsed = chat(1)
    parsed.place_images(URLS[:1])
    parsed.written = lambda payload: {"a": payload, "b": payload}
    assert json.loads(parsed.encode()) == {"a": parsed.payload, "b": parsed.payload}


def test_a_body_before_its_images_are_prepared() -> None:
    parsed = chat(2)
    assert json.loads(parsed.encode()) == parsed.payload
    parsed.place_images(URLS[:2])
    parsed.forget()
    assert parsed.encode() == b"{}"
