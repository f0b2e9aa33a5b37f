"""The allowlist of fields and the bounds that the configuration sets."""

from __future__ import annotations

from typing import Any, get_type_hints

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
from openai.types.completion_create_params import CompletionCreateParamsBase as Completion
from openai.types.responses.response_create_params import ResponseCreateParamsBase as Responses
from pydantic_core import to_json

from tests.vora_serve.gateway.conftest import LiveGateway, Start
from tests.vora_serve.gateway.fake_engine import FakeEngine
from vora_core.errors import InvalidRequestError
from vora_serve.gateway.schemas import SCHEMAS, parse_request
from vora_serve.gateway.schemas.fields import TOP_ACTIONS
from vora_serve.gateway.settings import FieldSettings

# Brought into the form of `tools` and `tool_choice` before the schema sees them.
REWRITTEN = {"chat": {"function_call", "functions"}}


def parse(kind: str = "chat", settings: FieldSettings | None = None, **more: Any) -> Any:
    bases = {
        "chat": {"messages": [{"role": "user", "content": "x"}]},
        "completion": {"prompt": "x"},
        "response": {"input": "x"},
    }
    body = {"model": "m", **bases[kind], **more}
    return parse_request(kind, to_json(body), settings or FieldSettings())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "params"), [("chat", Chat), ("completion", Completion), ("response", Responses)]
)
def test_every_field_of_the_openai_client_is_decided_upon(kind: Any, params: type) -> None:
    names = set(get_type_hints(params))
    undecided = names - set(SCHEMAS[kind].model_fields) - set(TOP_ACTIONS)
    assert undecided == REWRITTEN.get(kind, set())


@pytest.mark.parametrize(
    "name",
    ["chat_template", "mm_processor_kwargs", "uuid", "prompt_embeds", "image_embeds", "priority",
     "request_id", "kv_transfer_params", "use_beam_search", "truncate_prompt_tokens", "guided_json",
     "documents", "web_search_options", "previous_response_id", "conversation", "mirostat"],
)  # fmt: skip
def test_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        parse(**{name: 1})
    assert caught.value.param == name
    assert parse(**{name: None}).dropped == [], "a null says nothing"


def test_dropped_and_named() -> None:
    parsed = parse(media_io_kwargs={}, store=True, metadata={"a": "b"})
    assert parsed.dropped == ["media_io_kwargs", "store", "metadata"]
    assert set(parsed.payload) == {"model", "messages"}


def test_the_configuration_decides() -> None:
    with pytest.raises(InvalidRequestError, match="unheard_of"):
        parse(settings=FieldSettings(unknown="refuse"), unheard_of=1)
    settings = FieldSettings(actions={"media_io_kwargs": "refuse", "chat_template": "drop"})
    assert parse(settings=settings, chat_template="x", new=1).dropped == ["chat_template", "new"]
    with pytest.raises(InvalidRequestError):
        parse(settings=settings, media_io_kwargs={})


def test_inside_messages() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x"}, "uuid": "u"}
    with pytest.raises(InvalidRequestError) as caught:
        parse(messages=[{"role": "user", "content": [part]}])
    assert caught.value.param == "messages[0].content[0].uuid"
    message = {"role": "assistant", "content": "x", "reasoning_content": "y", "audio": None}
    assert parse(messages=[message]).dropped == ["messages[0].reasoning_content"]


@pytest.mark.parametrize(
    ("kind", "more", "param"),
    [
        ("chat", {"n": 17}, "n"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": 10**12}, "n"),
        ("chat", {"max_tokens": 10**9}, "max_tokens"),
        ("chat", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("chat", {"top_logprobs": 5}, "top_logprobs"),
        ("chat", {"top_logprobs": 99, "logprobs": True}, "top_logprobs"),
        ("chat", {"stop": ["a"] * 17}, "stop"),
        ("chat", {"temperature": -1}, "temperature"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"top_p": -0.1}, "top_p"),
        ("chat", {"logit_bias": {"x": 1}}, None),
        ("chat", {"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": "x"}] * 1025}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": "x" * 4_000_001}]}, "messages"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
         "messages[0].content[0].type"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools[0].function.name"),
        ("chat", {"tool_choice": "required"}, "tool_choice"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format"),
        ("chat", {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ("chat", {"structured_outputs": {"regex": "a" * 3000}}, "structured_outputs.regex"),
        ("completion", {"prompt": [2**31]}, None),
        ("completion", {"prompt": [-1]}, None),
        ("completion", {"prompt": ["x"] * 65}, "prompt"),
        ("completion", {"suffix": "x"}, "suffix"),
        ("response", {"background": True}, "background"),
        ("response", {"previous_response_id": "x"}, "previous_response_id"),
        ("response", {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)  # fmt: skip
def test_bounds(kind: str, more: dict[str, Any], param: str | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(kind, **more)
    if param is not None:
        assert caught.value.param == param
    assert len(caught.value.message) < 400


def test_a_schema_of_any_size(gateway: LiveGateway) -> None:
    schema: dict[str, Any] = {}
    for _ in range(150):
        schema = {"type": "object", "properties": {"a": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    assert gateway.chat(response_format=form).status_code == 400
    form["json_schema"] = {"name": "a", "schema": {"enum": ["x" * 200_000]}}
    assert gateway.chat(response_format=form).status_code == 400


def test_what_is_forwarded(gateway: LiveGateway, engine: FakeEngine) -> None:
    more: dict[str, Any] = {
        "n": 2, "stop": ["a"], "seed": 1, "logprobs": True, "top_logprobs": 2,
        "response_format": {"type": "json_schema",
                            "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "function": {"name": "f", "strict": True,
                                                   "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "max_completion_tokens": 5, "logit_bias": {"1": 2.5}, "user": "me", "top_k": 3,
        "min_p": 0.1, "repetition_penalty": 1.2, "structured_outputs": {"json": {"a": 1}},
    }  # fmt: skip
    assert gateway.chat(**more).status_code == 200
    sent = engine.seen[-1]
    assert {name: sent[name] for name in more} == more


def test_stream_usage_is_always_counted(gateway: LiveGateway, engine: FakeEngine) -> None:
    gateway.chat(stream=True)
    assert engine.seen[-1]["stream_options"]["include_usage"] is True
    metrics = gateway.client.get("/metrics").text
    assert 'vora_gateway_tokens_total{key="anonymous",kind="completion"} 3.0' in metrics


def test_the_responses_api(gateway: LiveGateway, engine: FakeEngine) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    answer = client.responses.create(model="vora-test", input="hi")
    assert answer.output_text == "a red circle"
    assert engine.seen[-1]["store"] is False
    kinds = [e.type for e in client.responses.create(model="vora-test", input="hi", stream=True)]
    assert kinds[-1] == "response.completed"


def test_completions(start_gateway: Start, engine: FakeEngine) -> None:
    gateway = start_gateway(engine.url)
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model="vora-test", prompt=[1, 2, 3])
    assert answer.choices[0].text == "a red circle"
    assert engine.seen[-1]["prompt"] == [1, 2, 3]
    stream = client.completions.create(model="vora-test", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "a red circle"
