"""What is wrong with a request, in one sentence that names the field and the place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.vora_serve.gateway.client_shapes import (
    ASK,
)
from tests.vora_serve.gateway.conftest import LiveGateway
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_fields import parse
from vora_core.errors import InvalidRequestError
from vora_serve.gateway.schemas import parse_request
from vora_serve.gateway.settings import FieldSettings


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is not valid JSON: EOF while parsing a value at line 1, column 0."),
        (b'{"a": 1,}', "The body is not valid JSON: trailing comma at line 1, column 9."),
        (b'{"a":\n "b\xff"}', "The body is not valid JSON: "
                              "invalid unicode code point at line 2, column 4."),
        (b"[" * 300, "The body is not valid JSON: recursion limit exceeded at line 1, column 202."),
        (b'{"a": NaN}', "The body is not valid JSON: expected value at line 1, column 7."),
    ],
)  # fmt: skip
def test_json_errors_name_the_place(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_request("chat", body, FieldSettings())
    assert (caught.value.message, caught.value.code) == (message, "invalid_json")


def test_a_byte_order_mark_is_no_error() -> None:
    body = json.dumps({"model": "m", "messages": [ASK]}).encode()
    assert parse_request("chat", b"\xef\xbb\xbf" + body, FieldSettings()).model == "m"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"temperature": "hot"}, "Invalid value for 'temperature': it should be a number."),
        ({"stop": 5}, "Invalid value for 'stop': it should be a string or a list."),
        ({"messages": [{"role": "user", "content": 5}]},
         "Invalid value for 'messages[0].content': it should be a string or a list."),
        ({"messages": [{"role": "user", "content": [5]}]},
         "Invalid value for 'messages[0].content[0]': it should be an object."),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]},
         "Invalid value for 'messages[0].content[0].type': "
         "it should be one of 'text', 'image_url', 'file'."),
        ({"messages": [{"role": "robot"}]},
         "Invalid value for 'messages[0].role': it should be one of "
         "'system', 'developer', 'user', 'assistant', 'tool'."),
        ({"messages": [{}]}, "The field 'messages[0].role' is required."),
        ({"messages": []}, "Invalid value for 'messages': list should have at least 1 item."),
        ({"n": 1.5}, "Invalid value for 'n': it should be an integer."),
        ({"logit_bias": 5}, "Invalid value for 'logit_bias': it should be an object."),
    ],
)  # fmt: skip
def test_one_sentence(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**more)
    assert caught.value.message == message


def test_a_dump_of_the_engine_reaches_nobody(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.status = 400
    engine.error_message = "2 validation errors: {'type': 'string_type', 'loc': 'body.input'}"
    error = gateway.chat().json()["error"]
    assert error["message"] == "The engine could not read the request."
