"""Functions in namespaces, as Codex sends them: one level for the engine, their own for clients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vora_serve.gateway.client_shapes import ASK
from tests.vora_serve.gateway.conftest import LiveGateway
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import events
from tests.vora_serve.gateway.test_fields import parse
from vora_core.errors import InvalidRequestError
from vora_serve.gateway.schemas.namespaces import restore

CLOSE = {"type": "function", "name": "close", "parameters": {"type": "object", "properties": {}}}
AGENTS = {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [CLOSE]}
RUN = {**CLOSE, "name": "run"}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "close", "arguments": "{}"}
FLAT = {**CALL, "name": "agents__close"}
GIVEN = {**CALL, "namespace": "agents"}
SEARCH = {"type": "web_search", "external_web_access": False}


def test_the_engine_sees_functions_alone() -> None:
    history = [ASK, GIVEN, {"type": "function_call_output", "call_id": "c1", "output": "18"}]
    parsed = parse("response", input=history, tools=[RUN, AGENTS, SEARCH])
    assert [tool["name"] for tool in parsed.payload["tools"]] == ["run", "agents__close"]
    assert parsed.payload["input"][1] == FLAT
    assert parsed.namespaces == {"agents__close": ("agents", "close")}
    assert parsed.dropped == ["tools[2]"]


def test_a_function_in_a_namespace_is_forced() -> None:
    choice = {"type": "function", "namespace": "agents", "name": "close"}
    payload = parse("response", input=[ASK], tools=[RUN, AGENTS], tool_choice=choice).payload
    assert payload["tool_choice"] == {"type": "function", "name": "agents__close"}


@pytest.mark.parametrize(
    "broken",
    [
        {"tools": "close"},
        {"name": 7},
        {"tools": [{**CLOSE, "name": None}]},
        {"tools": [{"type": "mcp", "name": "close"}]},
    ],
)
def test_what_is_no_namespace_of_functions_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        parse("response", input=[ASK], tools=[RUN, {**AGENTS, **broken}])
    assert refusal.value.param == "tools[1].type"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_get_their_namespace_back(
    engine: FakeEngine, gateway: LiveGateway, stream: bool
) -> None:
    engine.output = [FLAT, {**FLAT, "name": "run", "call_id": "c2"}]
    body = {"model": engine.model, "input": [ASK], "tools": [RUN, AGENTS], "stream": stream}
    answer = gateway.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    response = events(answer.text)[-1]["response"] if stream else answer.json()
    first, second = response["output"]
    assert (first["namespace"], first["name"]) == ("agents", "close")
    assert (second.get("namespace"), second["name"]) == (None, "run")


def test_events_about_calls_have_it_too() -> None:
    names = {"agents__close": ("agents", "close")}
    for event in ({"item": dict(FLAT)}, {"name": "agents__close", "arguments": "{}"}):
        restore(event, names)
        holder = event.get("item", event)
        assert (holder["namespace"], holder["name"]) == ("agents", "close")
