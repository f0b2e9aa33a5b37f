"""Requests as real clients send them, and values that OpenAI answers: answered here too."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.vora_serve.gateway.conftest import LiveGateway, picture
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import data_url, events
from tests.vora_serve.gateway.test_fields import parse
from vora_serve.errors import APIError, InvalidRequestError
from vora_serve.gateway.schemas import parse_request
from vora_serve.gateway.schemas.fields import MAX_NAMED
from vora_serve.gateway.settings import FieldSettings

URL = data_url(picture(4, 4))
ASK = {"role": "user", "content": "Weather?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "18"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "other"}}
STRICT = {"name": "weather", "parameters": SCHEMA, "strict": True}
IMAGE = {"type": "image_url", "image_url": {"url": URL}}

# Client, its messages, and what is named as dropped.
CHATS: list[tuple[str, list[Any], list[str]]] = [
    ("instructor asks again", [ASK, CALLED, {**RESULT, "name": "weather"}], ["messages[2].name"]),
    ("CodeCompanion", [{**ASK, "id": 1, "opts": {"visible": False}, "cycle": 2}],
     ["messages[0].id", "messages[0].opts", "messages[0].cycle"]),
    ("a stream's pieces put together",
     [ASK,
      {"role": "assistant", "content": "", "refusal": None, "function_call": None, "audio": None,
       "annotations": [], "reasoning_content": "hm",
       "tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]},
      RESULT],
     ["messages[1].annotations", "messages[1].reasoning_content",
      "messages[1].tool_calls[0].index"]),
    ("LiteLLM", [ASK, {**CALLED, "provider_specific_fields": {"a": 1}, "thinking_blocks": [],
                       "images": []}, {**RESULT, "name": "weather"}],
     ["messages[1].provider_specific_fields", "messages[1].thinking_blocks", "messages[1].images",
      "messages[2].name"]),
    ("Gemini's signatures", [ASK, {**CALLED, "tool_calls": [{**CALL, "extra_content": {"g": {}}}]},
                             RESULT], ["messages[1].tool_calls[0].extra_content"]),
    ("Open WebUI", [{**ASK, "timestamp": 1, "files": [], "models": ["m"]}],
     ["messages[0].timestamp", "messages[0].files", "messages[0].models"]),
    ("LangChain's blocks",
     [{"role": "user", "content": [{"type": "text", "text": "x", "id": "a"}, IMAGE]},
      {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"},
                                        {"type": "text", "text": "y", "index": 0}]}, ASK],
     ["messages[1].content[0]", "messages[0].content[0].id", "messages[1].content[0].index"]),
    ("LangChain's calls among the parts",
     [ASK, {**CALLED, "content": [{"type": "tool_use", "id": "c1", "name": "weather"}]}, RESULT],
     ["messages[1].content[0]"]),
    ("LlamaIndex", [ASK, {**CALLED, "content": ""}, {**RESULT, "additional_kwargs": {}}],
     ["messages[2].additional_kwargs"]),
    ("the AI SDK", [{"role": "user", "content": [{"type": "text", "text": "x",
                                                  "providerOptions": {"a": {}}}]}],
     ["messages[0].content[0].providerOptions"]),
    ("Cline", [{"role": "system", "content": [{"type": "text", "text": "x",
                                               "cache_control": {"type": "ephemeral"}}]}, ASK],
     ["messages[0].content[0].cache_control"]),
    ("a tool without a result", [ASK, CALLED, {**RESULT, "content": None}], []),
    ("a tool without parts", [ASK, CALLED, {**RESULT, "content": []}], []),
    ("no calls", [ASK, {"role": "assistant", "content": "x", "tool_calls": []}, ASK], []),
    ("no name", [{**ASK, "name": None}, {**ASK, "name": ""}], []),
    ("parsed arguments, no ids",
     [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "weather",
                                                              "arguments": {"city": "Rome"}}}]},
      {"role": "tool", "content": "18"}], []),
    ("text parts as plain text", [{"role": "user", "content": ["x", "y"]}], []),
    ("OpenRouter", [{"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y", "reasoning": "hm",
                     "reasoning_details": [{"type": "reasoning.text"}]}, ASK],
     ["messages[1].reasoning", "messages[1].reasoning_details"]),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "dropped"), [c[1:] for c in CHATS], ids=[c[0] for c in CHATS])
def test_histories_of_chats(messages: list[Any], dropped: list[str]) -> None:
    parsed = parse(messages=messages)
    assert parsed.dropped == dropped
    assert len(parsed.payload["messages"]) == len(messages)


def test_what_histories_become() -> None:
    sent = parse(
        messages=[
            ASK,
            {"role": "assistant", "function_call": {"name": "weather", "arguments": "{}"}},
            {"role": "function", "name": "weather", "content": "18"},
            {"role": "assistant", "content": [], "tool_calls": [
                {"function": {"name": "a", "arguments": {"x": "é"}}},
                {"id": "own", "type": None, "function": {"name": "b"}},
            ]},
            {"role": "tool", "content": "first"},
            {"role": "tool", "content": None},
            {"role": "assistant", "content": [{"type": "reasoning", "text": "hm"}]},
            ASK,
        ]
    ).payload["messages"]  # fmt: skip
    assert sent == [
        ASK,
        {"role": "assistant", "tool_calls": [{**CALL, "id": "call_1_0"}]},
        {"role": "tool", "tool_call_id": "call_1_0", "content": "18"},
        {"role": "assistant", "tool_calls": [
            {"id": "call_3_0", "type": "function",
             "function": {"name": "a", "arguments": '{"x": "é"}'}},
            {"id": "own", "type": "function", "function": {"name": "b", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_3_0", "content": "first"},
        {"role": "tool", "tool_call_id": "own", "content": ""},
        {"role": "assistant", "content": ""},
        ASK,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "detail"),
    [
        ({"type": "image_url", "image_url": URL}, None),
        ({"type": "image_url", "image_url": {"url": URL, "format": "image/png"}}, None),
        ({**IMAGE, "detail": "low"}, "low"),
        ({**IMAGE, "image_url": {"url": URL, "detail": "high"}, "detail": "low"}, "high"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": None}, "detail": ""}, None),
        ({"type": "input_image", "image_url": URL, "detail": "low"}, "low"),
        ({"image_url": {"url": URL}}, None),
        ({"type": "image", "image": URL}, None),
        ({"type": "image", "data": URL.split(",")[1], "mimeType": "image/png"}, None),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                      "data": URL.split(",")[1]}}, None),
        ({"type": "image", "source": {"type": "url", "url": URL}}, None),
    ],
)  # fmt: skip
def test_images_of_chats(part: Any, detail: str | None) -> None:
    for message in ({"role": "user"}, {"role": "tool", "tool_call_id": "c1"}):
        parsed = parse(messages=[ASK, CALLED, {**message, "content": [part]}])
        [image] = parsed.images
        assert (image.url, image.detail) == (URL, detail or "auto")


@pytest.mark.parametrize(
    ("more", "sent"),
    [
        ({"top_p": 0}, {"temperature": 0}),
        ({"top_p": 0.0, "temperature": 1}, {"temperature": 0}),
        ({"n": 2, "temperature": 0}, {"n": 2, "temperature": 1, "top_k": 1}),
        ({"n": 3, "top_p": 0, "min_p": 0.1}, {"n": 3, "temperature": 1, "top_k": 1}),
        ({"n": 2, "temperature": 0.5, "top_p": 0.9}, {"n": 2, "temperature": 0.5, "top_p": 0.9}),
        ({"n": 1, "temperature": 0}, {"n": 1, "temperature": 0}),
        ({"max_tokens": -1}, {}),
        ({"max_tokens": 100.0, "n": 1.0, "seed": 5.0}, {"max_tokens": 100, "n": 1, "seed": 5}),
        ({"stop": []}, {}),
        ({"stop": ""}, {}),
        ({"stop": None, "tools": None, "response_format": None, "user": None}, {}),
        ({"tools": [], "tool_choice": "auto", "functions": [], "logit_bias": {}}, {}),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({"stream_options": {}}, {}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}},
         {"response_format": {"type": "json_schema",
                              "json_schema": {"name": "response", "schema": SCHEMA}}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
         {"response_format": {"type": "json_schema",
                              "json_schema": {"name": "response", "schema": SCHEMA}}}),
    ],
)  # fmt: skip
def test_corner_values(more: dict[str, Any], sent: dict[str, Any]) -> None:
    parsed = parse(**more)
    payload = {k: v for k, v in parsed.payload.items() if k not in ("model", "messages")}
    assert payload == sent


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"user": 5}, "user"),
        ({"user": "x" * 2000}, "user"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"extra_body": {"a": 1}}, "extra_body"),
        ({"options": {"num_ctx": 4096}, "keep_alive": -1}, "options, keep_alive"),
        ({"chat_id": "a", "session_id": "b", "background_tasks": {}},
         "chat_id, session_id, background_tasks"),
        ({"priority": 0, "use_beam_search": False, "documents": []},
         "priority, use_beam_search, documents"),
        ({"reasoning_effort": "low", "verbosity": "low", "service_tier": "auto", "store": False,
          "metadata": 5, "safety_identifier": "a", "prompt_cache_key": "b"},
         "reasoning_effort, verbosity, service_tier, store, metadata, safety_identifier, "
         "prompt_cache_key"),
        ({"enable_thinking": False, "thinking": {"type": "disabled"}}, "enable_thinking, thinking"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_dropped_and_named(
    gateway: LiveGateway, more: dict[str, Any], named: str
) -> None:
    answer = gateway.chat(**more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-vora-dropped-fields"] == named


def test_the_header_is_bounded() -> None:
    many = parse(**{f"field_{number}": 1 for number in range(1000)})
    assert len(many.dropped) == MAX_NAMED
    messages = [{**ASK, "id": 1} for _ in range(1000)]
    assert len(parse(messages=messages).dropped) == MAX_NAMED


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({**ASK, "images": ["aGk="]}, "images"),
        ({**ASK, "audio": {"id": "a"}}, "audio"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": URL}}]},
         "content[0].image_url"),
        ({"role": "user", "content": [{**IMAGE, "uuid": "u"}]}, "content[0].uuid"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]},
         "content[0].type"),
        ({"role": "assistant", "content": [{"type": "tool_use", "name": "weather"}]},
         "content[0].type"),
        ({"role": "user", "content": []}, "content"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "user"}, "content"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
    ],
)  # fmt: skip
def test_what_is_part_of_the_question_is_refused(message: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(messages=[message])
    assert caught.value.param == f"messages[0].{param}"


# ---------------------------------------------------------------------------------- tools


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


# ---------------------------------------------------------------------------------- responses

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


# ---------------------------------------------------------------------------------- messages


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


ODD: list[Any] = [None, 0, -1, 1.5, True, "", "x", [], ["x"], [[]], [None], {}, {"x": 1}, {"a": []}]
NESTED: dict[str, list[tuple[Any, ...]]] = {
    "chat": [
        ("messages", 0, "role"), ("messages", 0, "content"), ("messages", 0, "name"),
        ("messages", 1, "content"), ("messages", 1, "tool_calls"), ("messages", 1, "function_call"),
        ("messages", 1, "tool_calls", 0), ("messages", 1, "tool_calls", 0, "id"),
        ("messages", 1, "tool_calls", 0, "type"), ("messages", 1, "tool_calls", 0, "function"),
        ("messages", 1, "tool_calls", 0, "function", "name"),
        ("messages", 1, "tool_calls", 0, "function", "arguments"),
        ("messages", 2, "tool_call_id"), ("messages", 2, "content"),
        ("messages", 3, "content", 0), ("messages", 3, "content", 0, "type"),
        ("messages", 3, "content", 1, "type"), ("messages", 3, "content", 1, "image_url"),
        ("messages", 3, "content", 1, "image_url", "url"), ("messages", 3, "content", 1, "detail"),
        ("messages", 3, "content", 2), ("messages", 3, "content", 2, "source"),
        ("messages", 3, "content", 2, "source", "type"), ("messages", 3, "content", 2, "image"),
        ("tools", 0), ("tools", 0, "type"), ("tools", 0, "function"),
        ("tools", 0, "function", "name"), ("tools", 0, "function", "parameters"),
        ("tool_choice",), ("tool_choice", "type"), ("tool_choice", "function"),
        ("tool_choice", "function", "name"), ("functions",), ("function_call",), ("n",), ("top_p",),
        ("temperature",), ("user",), ("stream_options",), ("response_format",),
        ("response_format", "type"), ("response_format", "json_schema"),
        ("response_format", "schema"),
    ],
    "response": [
        ("input",), ("input", 0), ("input", 0, "type"), ("input", 0, "role"),
        ("input", 0, "content"), ("input", 0, "content", 0), ("input", 0, "content", 0, "type"),
        ("input", 0, "content", 0, "text"), ("input", 0, "status"), ("input", 0, "id"),
        ("input", 1, "type"), ("input", 1, "call_id"), ("input", 1, "arguments"),
        ("input", 1, "id"), ("input", 2, "output"), ("input", 2, "output", 0),
        ("input", 2, "output", 0, "type"), ("input", 2, "output", 0, "image_url"),
        ("input", 2, "output", 0, "file_id"), ("tools", 0), ("tools", 0, "type"),
        ("tools", 0, "name"), ("tool_choice",), ("tool_choice", "type"), ("tool_choice", "name"),
        ("tool_choice", "tools"), ("tool_choice", "mode"), ("include",), ("include", 0), ("text",),
        ("text", "format"), ("text", "format", "type"), ("truncation",),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["chat", "response"])
def test_odd_types_anywhere(kind: str) -> None:
    """A value of whatever type, wherever tolerance looks, is no error of the server."""
    flat = {"type": "function", "name": "weather", "parameters": SCHEMA}
    named = {"type": "function", "function": {"name": "weather"}}
    bases: dict[str, dict[str, Any]] = {
        "chat": {
            "messages": [ASK, CALLED, RESULT, {"role": "user", "content": [
                {"type": "text", "text": "x"}, {**IMAGE, "detail": "low"},
                {"type": "image", "source": {"type": "url", "url": URL}}]}],
            "tools": [TOOL], "tool_choice": named,
            "response_format": {"type": "json_schema",
                                "json_schema": {"name": "a", "schema": SCHEMA}},
        },
        "response": {
            "input": [SAID, DID, {**GAVE, "output": [SHOWN]}, ASK], "tools": [flat],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [flat]},
            "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
            "include": ["reasoning.encrypted_content"],
        },
    }  # fmt: skip
    refused: list[APIError] = []
    for path, odd in itertools.product(NESTED[kind], ODD):
        body = json.loads(json.dumps(bases[kind]))
        holder = body
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = odd
        for more in (body, {k: v for k, v in body.items() if k != "tool_choice"}):
            try:
                parse(kind, **more).encode()
            except APIError as error:
                refused.append(error)
    assert len(refused) > 100
    assert all(error.status == 400 for error in refused)
    assert all(error.param is not None for error in refused)
    assert all(len(error.message) < 400 for error in refused)
