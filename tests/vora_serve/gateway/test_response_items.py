"""Inputs of responses as agents send and replay them, and answers that were cut off."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vora_serve.gateway.client_shapes import (
    ASK,
    IMAGE,
    URL,
)
from tests.vora_serve.gateway.conftest import LiveGateway
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import events
from tests.vora_serve.gateway.test_fields import parse
from vora_core.errors import InvalidRequestError

HI = {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}
SAID = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [HI]}  # fmt: skip
SAYS = {"type": "message", "role": "assistant", "content": "Hi"}
ASKS = {"type": "message", **ASK}
DID = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}
GAVE = {"type": "function_call_output", "call_id": "c1", "output": "18"}
SHOWN = {"type": "input_image", "image_url": URL, "detail": "auto"}

ITEMS: list[tuple[str, list[Any], list[Any], list[str]]] = [
    ("the Agents SDK", [ASK, {**SAID, "phase": None}, {**DID, "status": "completed"}, GAVE],
     [ASKS, SAYS, DID, GAVE], []),
    ("the AI SDK", [ASK, {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}],
     [ASKS, SAYS], []),
    ("the AI SDK, an id", [ASK, {"role": "assistant", "id": "msg_1",
                                 "content": [{"type": "output_text", "text": "Hi"}]}],
     [ASKS, SAYS], []),
    ("Codex", [{"type": "message", "role": "developer",
                "content": [{"type": "input_text", "text": "x"}]},
               {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "gAAA"},
               {**SAID, "id": None, "end_turn": True}],
     [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "x"}]},
      SAYS], ["input[1]", "input[1].end_turn"]),
    ("several texts", [{**SAID, "content": [{"type": "output_text", "text": "a"},
                                            {"type": "refusal", "refusal": "b"},
                                            {"type": "text", "text": "c"}]}],
     [{**SAYS, "content": "abc"}], []),
    ("nothing said", [ASK, {**SAID, "content": []}, {**SAID, "content": None}], [ASKS], []),
    ("a call without arguments", [{**DID, "arguments": "", "status": None}], [DID], []),
    ("a call by its id", [{"type": "function_call", "id": "c1", "name": "f", "arguments": {}}],
     [{**DID, "id": "c1"}], []),
    ("no output", [{**GAVE, "output": None}, {**GAVE, "output": []}],
     [{**GAVE, "output": ""}, {**GAVE, "output": ""}], []),
    ("an output as data", [{**GAVE, "output": {"t": 18}}], [{**GAVE, "output": '{"t": 18}'}], []),
    ("an output in parts", [{**GAVE, "output": [{"type": "input_text", "text": "x"},
                                                {"type": "input_image", "image_url": URL}]}],
     [{**GAVE, "output": [{"type": "input_text", "text": "x"}, SHOWN]}], []),
    ("parts of chats", [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}],
     [{"type": "message", "role": "user",
       "content": [{"type": "input_text", "text": "x"}, SHOWN]}], []),
    ("no types", [ASK, {"call_id": "c1", "name": "f", "arguments": "{}"},
                  {"call_id": "c1", "output": "18"}],
     [ASKS, {k: v for k, v in DID.items() if k != "id"}, GAVE], []),
    ("plain text", ["Weather?"], [ASK], []),
    ("a search elsewhere", [ASK, {"type": "web_search_call", "id": "ws", "status": "completed"}],
     [ASKS], ["input[1]"]),
    ("custom tools", [{"type": "custom_tool_call", "call_id": "c", "name": "p", "input": "x"},
                      {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}],
     [{"type": "custom_tool_call", "call_id": "c", "name": "p", "input": "x"},
      {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}], []),
    ("to be continued", [ASK, {**SAID, "status": "incomplete"}],
     [ASKS, {**SAID, "status": "incomplete",
             "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}], []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("items", "sent", "dropped"), [c[1:] for c in ITEMS], ids=[c[0] for c in ITEMS]
)
def test_histories_of_responses(items: list[Any], sent: list[Any], dropped: list[str]) -> None:
    parsed = parse("response", input=items)
    assert parsed.payload["input"] == sent
    assert parsed.dropped == dropped


def test_what_agents_send_beside_the_input(gateway: LiveGateway) -> None:
    body = {
        "model": "vora-test", "input": "x", "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "medium", "summary": "auto"}, "store": False, "tools": [],
        "text": {"verbosity": "medium"}, "truncation": "auto", "prompt_cache_key": "k",
        "stream_options": {"include_obfuscation": False}, "max_tool_calls": 5, "tool_choice": None,
        "previous_response_id": None, "conversation": None, "prompt": None, "background": False,
        "parallel_tool_calls": True, "metadata": {}, "client_metadata": {"a": "b"}, "user": 5,
    }  # fmt: skip
    answer = gateway.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert set(answer.headers["x-vora-dropped-fields"].split(", ")) == {
        "include[0]", "reasoning", "store", "text.verbosity", "truncation", "prompt_cache_key",
        "stream_options", "max_tool_calls", "metadata", "client_metadata", "user",
    }  # fmt: skip


def test_a_log_probability_is_still_included() -> None:
    include = ["file_search_call.results", "message.output_text.logprobs"]
    parsed = parse("response", include=include)
    assert (parsed.payload["include"], parsed.dropped) == (include[1:], ["include[0]"])


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "input[0].content[0].file_id"),
        ({"input": [{**GAVE, "output": [{"type": "input_image", "file_id": "f"}]}]},
         "input[0].output[0].file_id"),
        ({"input": [{"type": "local_shell_call", "id": "x"}]}, "input[0].type"),
        ({"input": []}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"tools": [{"type": "custom", "name": "p"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "custom", "name": "p", "format": {"type": "grammar"}}]},
         "tools[0].format.type"),
        ({"tools": [{"type": "function", "name": 5}]}, "tools[0].name"),
        ({"truncation": "middle"}, "truncation"),
    ],
)  # fmt: skip
def test_refused_in_responses(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse("response", **more)
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_off(gateway: LiveGateway, engine: FakeEngine, stream: bool) -> None:
    engine.finish = {"finish_reason": "length"}
    body = {"model": "vora-test", "input": "x", "stream": stream}
    answer = gateway.client.post("/v1/responses", json=body)
    if stream:
        lines = [line for line in answer.text.split("\n") if line.startswith("event: ")]
        assert lines[-1] == "event: response.incomplete"
        last = events(answer.text)[-1]
        assert last["type"] == "response.incomplete"
        response = last["response"]
    else:
        response = answer.json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][-1]["status"] == "incomplete"
    assert response["completed_at"] is None
