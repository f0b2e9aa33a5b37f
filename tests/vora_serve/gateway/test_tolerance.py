"""Requests as real clients send them, and values that OpenAI answers: answered here too."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.vora_serve.gateway.client_shapes import (
    ASK,
    CALL,
    CALLED,
    IMAGE,
    RESULT,
    SCHEMA,
    TOOL,
    URL,
)
from tests.vora_serve.gateway.conftest import LiveGateway
from tests.vora_serve.gateway.test_fields import parse
from tests.vora_serve.gateway.test_response_items import DID, GAVE, SAID, SHOWN
from vora_core.errors import APIError, InvalidRequestError
from vora_serve.gateway.schemas.fields import MAX_NAMED

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
