"""Tools, the choice among them and forced calls, in every form that clients send."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vora_serve.gateway.client_shapes import (
    OTHER,
    SCHEMA,
    STRICT,
    TOOL,
)
from tests.vora_serve.gateway.conftest import LiveGateway
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import events
from tests.vora_serve.gateway.test_fields import parse
from vora_core.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("choice", "sent", "tools"),
    [
        ("auto", "auto", 2),
        ("none", "none", 2),
        (None, None, 2),
        ({"type": "auto"}, "auto", 2),
        ({"type": "none"}, "none", 2),
        ("required", "required", 2),
        ("any", "required", 2),
        ({"type": "any"}, "required", 2),
        ({"type": "required"}, "required", 2),
        ("weather", "weather", 2),
        ({"type": "function", "function": {"name": "weather"}}, "weather", 2),
        ({"function": {"name": "weather"}}, "weather", 2),
        ({"type": "function", "name": "weather"}, "weather", 2),
        ({"type": "tool", "name": "weather"}, "weather", 2),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
            {"type": "function", "function": {"name": "weather"}}]}}, "required", 1),
        ({"type": "allowed_tools", "mode": "auto", "tools": [
            {"type": "function", "name": "weather"}]}, "auto", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["chat", "response"])
def test_every_form_of_tool_choice(kind: str, choice: Any, sent: Any, tools: int) -> None:
    flat = [{"type": "function", **tool["function"]} for tool in (TOOL, OTHER)]
    offered = [TOOL, OTHER] if kind == "chat" else flat
    payload = parse(kind, tools=offered, tool_choice=choice).payload
    if sent == "weather":
        named = {"function": {"name": sent}} if kind == "chat" else {"name": sent}
        sent = {"type": "function", **named}
    assert payload.get("tool_choice") == sent
    assert len(payload["tools"]) == tools
    for tool in payload["tools"]:
        holder = tool["function"] if kind == "chat" else tool
        bound = sent == "required" or isinstance(sent, dict)
        assert holder.get("strict", False) is bound, "a forced call follows its schema"
        assert "type" in holder["parameters"] if bound else True


@pytest.mark.parametrize(
    ("parameters", "sent"),
    [
        (None, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        (SCHEMA, SCHEMA),
    ],
)
@pytest.mark.parametrize("strict", [None, False, True])
def test_forced_arguments_are_objects(parameters: Any, sent: Any, strict: Any) -> None:
    function = {"name": "f", "parameters": parameters, "strict": strict}
    payload = parse(tools=[{"type": "function", "function": function}], tool_choice="required")
    function = payload.payload["tools"][0]["function"]
    assert function == {"name": "f", "parameters": sent, "strict": True}


def test_tools_of_the_other_api() -> None:
    flat = {"type": "function", "name": "weather", "parameters": SCHEMA}
    assert parse(tools=[flat]).payload["tools"] == [TOOL]
    assert parse("response", tools=[TOOL]).payload["tools"] == [flat]
    assert parse(tools=[{"function": TOOL["function"]}]).payload["tools"] == [TOOL]


def test_hosted_tools_beside_functions() -> None:
    """Codex offers a web search with its functions; alone it is what the caller wants."""
    hosted = {"type": "web_search", "external_web_access": False}
    flat = {"type": "function", "name": "weather", "parameters": SCHEMA}
    parsed = parse("response", tools=[hosted, flat])
    assert (parsed.payload["tools"], parsed.dropped) == ([flat], ["tools[0]"])
    for tools in ([hosted], [flat, {"type": "mcp", "server_url": "x"}]):
        with pytest.raises(InvalidRequestError) as caught:
            parse("response", tools=tools)
        assert caught.value.param == f"tools[{len(tools) - 1}].type"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": []}},
         "tool_choice.tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": [TOOL]}},
         "tool_choice.mode"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": [OTHER]}},
         "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"functions": [STRICT], "tools": [TOOL]}, "functions"),
        ({"functions": {"name": "x"}}, "functions"),
        ({"functions": [{"name": "a b"}]}, "functions[0].name"),
        ({"functions": [STRICT], "function_call": {"name": "x"}}, "tool_choice"),
        ({"functions": [STRICT], "function_call": 5}, "function_call"),
        ({"function_call": {"name": "x"}}, "function_call"),
    ],
)  # fmt: skip
def test_refused_choices(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**more)
    assert caught.value.param == param


def test_legacy_functions(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.calls = [("weather", '{"city": "Rome"}'), ("other", "{}")]
    engine.finish = {"finish_reason": "tool_calls"}
    function = {"name": "weather", "parameters": SCHEMA}
    more = {"functions": [function], "function_call": {"name": "weather"}}
    [choice] = gateway.chat(**more).json()["choices"]
    assert choice["message"]["function_call"] == {
        "name": "weather",
        "arguments": '{"city": "Rome"}',
    }
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    assert engine.seen[-1]["tools"] == [{"type": "function", "function": STRICT}]
    assert engine.seen[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert engine.seen[-1]["parallel_tool_calls"] is False
    chunks = events(gateway.chat(stream=True, **more).text)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert not any("tool_calls" in delta for delta in deltas)
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert calls[0]["name"] == "weather"
    assert "".join(call["arguments"] for call in calls) == '{"city": "Rome"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    newer = gateway.chat(tools=[TOOL]).json()["choices"][0]
    assert newer["message"]["tool_calls"][0]["function"]["name"] == "weather"
