"""Counting a prompt without running it: ``/tokenize`` and ``/v1/responses/input_tokens``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import openai
import pytest

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import data_url
from vora_core.geometry import ImageSettings

IMAGE = data_url(make_image())
CHAT: dict[str, Any] = {
    "model": "vora-test",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": IMAGE}},
            ],
        }
    ],
}


def test_tokenizing_a_chat_with_an_image(engine: FakeEngine, start_gateway: Start) -> None:
    engine.image_settings = asdict(ImageSettings(image_size=112, resize_edge=112))
    gateway = start_gateway(engine.url)
    body = {**CHAT, "add_generation_prompt": False, "return_token_strs": False}
    answer = gateway.client.post("/tokenize", json=body)
    assert answer.status_code == 200
    assert answer.json() == {"count": 74, "max_model_len": 2048, "tokens": [1] * 74}
    assert answer.headers["x-vora-images"] == "112x112=64"
    (seen,) = engine.seen
    assert set(seen) == {"model", "messages", "add_generation_prompt", "return_token_strs"}
    url = seen["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/x-portable-pixmap"), "prepared as for an answer"


def test_tokenizing_text(gateway: LiveGateway, engine: FakeEngine) -> None:
    body = {"model": "vora-test", "prompt": "hello", "add_special_tokens": False}
    assert gateway.client.post("/tokenize", json=body).json()["count"] == 10
    assert engine.seen == [body]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_refused(
    gateway: LiveGateway, engine: FakeEngine, change: dict[str, Any], param: str
) -> None:
    answer = gateway.client.post("/tokenize", json=CHAT | change)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param
    assert not engine.seen


def test_a_broken_image_is_refused(gateway: LiveGateway) -> None:
    broken = json.loads(json.dumps(CHAT).replace(IMAGE, IMAGE[: len(IMAGE) // 2]))
    assert gateway.client.post("/tokenize", json=broken).status_code == 400


def test_counting_an_input(gateway: LiveGateway, engine: FakeEngine) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
        counted = client.responses.input_tokens.count(
            model="vora-test",
            instructions="Be short.",
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what is it?"},
                        {"type": "input_image", "image_url": IMAGE, "detail": "auto"},
                    ],
                },
                {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "a circle"},
                {"type": "custom_tool_call", "call_id": "2", "name": "say", "input": "x"},
                {"type": "custom_tool_call_output", "call_id": "2", "output": "y"},
                {"role": "assistant", "content": "A circle."},
            ],
            tools=[tool],  # type: ignore[list-item]
        )
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == 74
    (seen,) = engine.seen
    assert set(seen) == {"model", "messages", "tools"}
    assert [message["role"] for message in seen["messages"]] == [
        *("system", "user", "assistant", "tool", "assistant", "tool", "assistant")
    ]
    user, call, custom = (seen["messages"][at] for at in (1, 2, 4))
    assert user["content"][1]["image_url"]["url"].startswith("data:image/png")
    assert call["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert json.loads(custom["tool_calls"][0]["function"]["arguments"]) == {"input": "x"}
    assert seen["tools"] == [
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    ]


def test_counting_text(gateway: LiveGateway, engine: FakeEngine) -> None:
    body = {"model": "vora-test", "input": "hello", "stream": True}
    answer = gateway.client.post("/v1/responses/input_tokens", json=body)
    assert answer.json() == {"object": "response.input_tokens", "input_tokens": 10}
    assert engine.seen[0]["messages"] == [{"role": "user", "content": "hello"}]
