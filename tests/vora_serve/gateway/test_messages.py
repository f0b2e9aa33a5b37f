"""Anthropic's Messages API: what the engine is sent, and what the caller gets."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.environments import python_of
from tests.clients.roster import HERE
from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine

ONE_BY_ONE = base64.b64encode(make_image()).decode()
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": ONE_BY_ONE},
}
TOOL = {
    "name": "weather",
    "description": "the weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}


def ask(gateway: LiveGateway, content: Any = "hello", **more: Any) -> httpx.Response:
    """A request; ``None`` leaves a field out."""
    body = {
        "model": "vora-test",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": content}],
        **more,
    }
    body = {name: value for name, value in body.items() if value is not None}
    return gateway.client.post("/v1/messages", json=body)


def sent(gateway: LiveGateway, engine: FakeEngine, **request: Any) -> dict[str, Any]:
    """What the engine was sent for a request that succeeded."""
    answer = ask(gateway, **request)
    assert answer.status_code == 200, answer.text
    return engine.seen[-1]


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """A stream's events; the name is also in the data."""
    found = []
    for block in answer.text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def test_an_answer(gateway: LiveGateway, engine: FakeEngine) -> None:
    answer = ask(gateway, system="be brief", temperature=0.5, top_k=3, stop_sequences=["."])
    assert answer.status_code == 200
    message = answer.json()
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "vora-test",
        "content": [{"type": "text", "text": "a red circle"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 6,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "output_tokens": 3,
        },
    }
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert engine.seen == [
        {
            "model": "vora-test",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello"},
            ],
            "max_tokens": 8,
            "temperature": 0.5,
            "top_k": 3,
            "stop": ["."],
        }
    ]


@pytest.mark.parametrize(
    ("finish", "calls", "expected"),
    [
        ({"finish_reason": "length"}, [], ("max_tokens", None)),
        ({"finish_reason": "length"}, [("weather", '{"ci')], ("max_tokens", None)),
        ({"finish_reason": "stop", "stop_reason": "END"}, [], ("stop_sequence", "END")),
        ({"finish_reason": "stop", "stop_reason": 2}, [], ("end_turn", None)),
        ({"finish_reason": "tool_calls"}, [("weather", "{}")], ("tool_use", None)),
        # vLLM says "stop" for a call that was demanded by name.
        ({"finish_reason": "stop"}, [("weather", "{}")], ("tool_use", None)),
        ({"finish_reason": "content_filter"}, [], ("refusal", None)),
    ],
)
def test_why_it_ended(
    gateway: LiveGateway,
    engine: FakeEngine,
    finish: dict[str, Any],
    calls: list[tuple[str, str]],
    expected: tuple[str, str | None],
) -> None:
    engine.finish, engine.calls = finish, calls
    message = ask(gateway, tools=[TOOL]).json()
    assert (message["stop_reason"], message["stop_sequence"]) == expected
    last = [e for e in events(ask(gateway, tools=[TOOL], stream=True)) if "delta" in e][-1]
    assert last["delta"] == {"stop_reason": expected[0], "stop_sequence": expected[1]}


def test_a_stream(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.calls = [("weather", '{"city": "Köln"}'), ("weather", "{}")]
    engine.finish = {"finish_reason": "tool_calls"}
    answer = ask(gateway, tools=[TOOL], stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer)
    start = found.pop(0)
    assert start["type"] == "message_start"
    assert start["message"]["usage"]["input_tokens"] == 6, "known before the first word"
    assert start["message"]["content"] == []
    found = [event for event in found if event["type"] != "ping"]
    assert [(event["type"], event.get("index")) for event in found] == [
        ("content_block_start", 0),
        *[("content_block_delta", 0)] * 3,
        ("content_block_stop", 0),
        ("content_block_start", 1),
        *[("content_block_delta", 1)] * 2,
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    text = "".join(e["delta"]["text"] for e in found if e.get("index") == 0 and "delta" in e)
    assert text == "a red circle"
    assert found[5]["content_block"] == {
        "type": "tool_use",
        "id": "call_0",
        "name": "weather",
        "input": {},
    }
    pieces = [e["delta"]["partial_json"] for e in found if e.get("index") == 1 and "delta" in e]
    assert json.loads("".join(pieces)) == {"city": "Köln"}
    assert found[-2]["usage"]["output_tokens"] == 3


def test_a_stream_that_breaks_off(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.die_after = 2
    found = events(ask(gateway, stream=True))
    assert found[-1]["type"] == "error"
    assert found[-1]["error"]["type"] == "api_error"
    assert found[-1]["request_id"]
    assert "message_stop" not in [event["type"] for event in found]


def test_heartbeats_are_pings(engine: FakeEngine, start_gateway: Start) -> None:
    engine.first_delay_s = 300  # far longer than the test may take
    gateway = start_gateway(engine.url, streams={"heartbeat_s": 0.05})
    body = {"model": "vora-test", "max_tokens": 8, "stream": True}
    body["messages"] = [{"role": "user", "content": "x"}]
    with gateway.client.stream("POST", "/v1/messages", json=body) as answer:
        lines = [line for _, line in zip(range(5), answer.iter_lines(), strict=False)]
    assert lines[:2] == ["event: ping", 'data: {"type":"ping"}'], "before any word"
    assert "event: ping" in lines[2:], "and again"


def test_images(gateway: LiveGateway, engine: FakeEngine) -> None:
    answer = ask(gateway, [{"type": "text", "text": "look"}, IMAGE])
    assert answer.status_code == 200
    content = engine.seen[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url"]
    assert engine.image_sizes == [(32, 24)]


def test_an_image_that_is_none(gateway: LiveGateway, engine: FakeEngine) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    answer = ask(gateway, [{"type": "image", "source": source}])
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not engine.seen


def test_a_tool_loop(gateway: LiveGateway, engine: FakeEngine) -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "see"}, IMAGE],
        "cache_control": {"type": "ephemeral"},
    }
    failed = {"type": "tool_result", "tool_use_id": "toolu_2", "content": "gone", "is_error": True}
    empty = {"type": "tool_result", "tool_use_id": "toolu_3"}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    history = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "I look."}, USE]},
        {"role": "user", "content": [result, failed, empty, {"type": "text", "text": "and?"}]},
        {"role": "system", "content": "be brief"},
    ]
    answer = ask(gateway, messages=history, tools=[TOOL])
    assert answer.status_code == 200, answer.text
    dropped = answer.headers["x-vora-dropped-fields"]
    assert dropped == "messages[2].content[0].cache_control, messages[1].content[0]"
    seen = engine.seen[0]
    assert seen["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": TOOL["input_schema"],
                "description": "the weather",
            },
        }
    ]
    said, called, first, second, third, rest, system = seen["messages"]
    assert said == {"role": "user", "content": "weather?"}
    assert called["content"] == "I look."
    assert called["tool_calls"][0]["id"] == "toolu_1"
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"city": "Köln"}
    assert first["tool_call_id"] == "toolu_1"
    assert [part["type"] for part in first["content"]] == ["text", "image_url"]
    assert second == {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: gone"}
    assert third == {"role": "tool", "tool_call_id": "toolu_3", "content": ""}
    assert rest == {"role": "user", "content": "and?"}
    assert system == {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            {
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_tool_choice(
    gateway: LiveGateway, engine: FakeEngine, choice: dict[str, Any], expected: dict[str, Any]
) -> None:
    seen = sent(gateway, engine, tools=[TOOL], tool_choice=choice)
    names = ("tool_choice", "parallel_tool_calls")
    assert {name: seen[name] for name in names if name in seen} == expected


def test_arguments_are_always_an_object(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.words = []
    engine.calls = [("weather", "null"), ("weather", '{"city"'), ("weather", '{"city": "Rome"}')]
    content = ask(gateway, tools=[TOOL]).json()["content"]
    assert [block["input"] for block in content] == [{}, {}, {"city": "Rome"}]


def test_the_answer_continues_a_prefill(gateway: LiveGateway, engine: FakeEngine) -> None:
    history = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is"}]
    seen = sent(gateway, engine, messages=history)
    assert seen["continue_final_message"] is True
    assert seen["add_generation_prompt"] is False
    assert "continue_final_message" not in sent(gateway, engine)


def test_documents_are_text(gateway: LiveGateway, engine: FakeEngine) -> None:
    plain = {
        "type": "document",
        "title": "A",
        "source": {"type": "text", "media_type": "text/plain", "data": "one"},
    }
    found = {
        "type": "search_result",
        "source": "s",
        "title": "t",
        "content": [{"type": "text", "text": "two"}],
    }
    seen = sent(gateway, engine, content=[plain, found])
    texts = [part["text"] for part in seen["messages"][0]["content"]]
    assert texts == ["A\n", "one", "t\ns\ntwo"]


def test_structured_output(gateway: LiveGateway, engine: FakeEngine) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    for request in ({"output_config": {"format": wanted}}, {"output_format": wanted}):
        seen = sent(gateway, engine, **request)
        assert seen["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_no_randomness_where_nothing_is_left_to_draw(
    gateway: LiveGateway, engine: FakeEngine
) -> None:
    seen = sent(gateway, engine, top_p=0, top_k=0, stop_sequences=[], tools=[], system=[])
    assert seen["temperature"] == 0
    assert not {"top_p", "top_k", "stop", "tools"} & set(seen)
    assert [message["role"] for message in seen["messages"]] == ["user"]


def test_what_claude_code_sends_beside(gateway: LiveGateway, engine: FakeEngine) -> None:
    answer = ask(
        gateway,
        [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}],
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
        tools=[{**TOOL, "eager_input_streaming": True, "type": "custom"}],
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        context_management={"edits": []},
        output_config={"effort": "high"},
        service_tier="auto",
    )
    assert answer.status_code == 200, answer.text
    assert "thinking" in answer.headers["x-vora-dropped-fields"]
    allowed = {"model", "messages", "max_tokens", "tools"}
    assert set(engine.seen[0]) == allowed


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"max_tokens": None}, "The field 'max_tokens' is required."),
        ({"messages": []}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"mcp_servers": [{}]}, "The field 'mcp_servers' is not supported here."),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "'tool_choice' needs 'tools'"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "'name' is missing"),
        ({"content": [{"type": "tool_use", "id": "x", "name": "y", "input": {}}]}, "assistant"),
        ({"content": [{"type": "server_tool_use", "id": "x"}]}, "messages[0].content[0]"),
        (
            {
                "content": [
                    {
                        "type": "document",
                        "source": {"type": "base64", "media_type": "application/pdf", "data": "x"},
                    }
                ]
            },
            "A file's data URL holds invalid base64.",
        ),
        ({"content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}, "source"),
        ({"content": [{"type": "image", "source": {"type": "url"}}]}, "'url' is missing"),
        (
            {
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "text/html", "data": "x"},
                    }
                ]
            },
            "media_type",
        ),
    ],
)
def test_refusals_are_one_sentence(
    gateway: LiveGateway, engine: FakeEngine, request_: dict[str, Any], words: str
) -> None:
    answer = ask(gateway, **{"content": "x", **request_})
    assert answer.status_code == 400
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["request_id"] == answer.headers["request-id"]
    assert words in body["error"]["message"]
    assert body["error"]["message"].count("\n") == 0
    assert not engine.seen


def test_errors_of_all_layers_have_the_shape(
    engine: FakeEngine, start_gateway: Start, tmp_path: Any
) -> None:
    gateway = start_gateway(engine.url)
    assert ask(gateway, model="other").json()["error"]["type"] == "not_found_error"
    wrong = gateway.client.get("/v1/messages")
    assert (wrong.status_code, wrong.json()["type"]) == (405, "error")
    no_json = gateway.client.post("/v1/messages", content=b"x")
    assert (no_json.status_code, no_json.json()["type"]) == (415, "error")
    engine.status = 500
    broken = ask(gateway)
    assert broken.status_code >= 500
    assert broken.json()["error"]["type"] == "api_error"
    hint = gateway.client.post("/v1/v1/messages", json={})
    assert "/v1/messages?" in hint.json()["error"]["message"]


def test_counting_tokens(gateway: LiveGateway, engine: FakeEngine) -> None:
    body = {
        "model": "vora-test",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE]}],
        "tools": [TOOL],
        "tool_choice": {"type": "auto"},
    }
    answer = gateway.client.post("/v1/messages/count_tokens", json=body)
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 74})
    assert set(engine.seen[0]) == {"model", "messages", "tools"}


@pytest.mark.clients
@pytest.mark.parametrize("part", ["whole", "cut"])
def test_errors_reach_the_python_client(
    gateway: LiveGateway, engine: FakeEngine, tmp_path: Path, part: str
) -> None:
    engine.die_after = 1 if part == "cut" else None
    for name in ("image.png", "image.pdf"):  # the tour's arguments, not used here
        (tmp_path / name).write_bytes(make_image())
    call = [python_of("openai"), HERE / "python" / "anthropic_faults.py"]
    call += [gateway.url, "vora-test", tmp_path / "image.png", "none", part]
    told = subprocess.run(call, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert len(told) == (1 if part == "cut" else 3)
    assert all(json.loads(line)["ok"] for line in told), told
