"""Chat completions through a live gateway."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest

from tests.vora_serve.gateway.conftest import LiveGateway, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def events(text: str) -> list[Any]:
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_whole_answer(gateway: LiveGateway) -> None:
    answer = gateway.chat()
    assert answer.status_code == 200
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "a red circle"
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "image_tokens": 0}
    assert "service_tier" not in body, "what has no value is left out, as OpenAI does"
    assert set(body["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert set(body["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert answer.headers["x-request-id"].startswith("req-")
    assert float(answer.headers["x-vora-overhead-ms"]) >= 0


def test_stream(gateway: LiveGateway) -> None:
    answer = gateway.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    got = events(answer.text)
    assert got[-1] == "[DONE]"
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in got[:-1])
    assert text == "a red circle"
    assert all(not event.get("usage") for event in got[:-1]), "the caller asked for no usage"


def test_stream_usage(gateway: LiveGateway) -> None:
    answer = gateway.show(
        data_url(make_image()), stream=True, stream_options={"include_usage": True}
    )
    last = events(answer.text)[-2]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "image_tokens": 64}


def test_images_keep_their_order(gateway: LiveGateway, engine: FakeEngine) -> None:
    urls = [data_url(make_image(width)) for width in (20, 30, 40, 20)]
    assert gateway.show(*urls).status_code == 200
    assert [size[0] for size in engine.image_sizes] == [20, 30, 40, 20]


def test_openai_client(gateway: LiveGateway) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model="vora-test",
        stream=True,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what?"},
                    {"type": "image_url", "image_url": {"url": data_url(make_image())}},
                ],
            }
        ],
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "a red circle"
    assert [model.id for model in client.models.list()] == ["vora-test"]
    assert client.models.retrieve("vora-test").id == "vora-test"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="vora-test", messages=[])


def test_model_cards_hide_paths(gateway: LiveGateway) -> None:
    assert "secret" not in gateway.client.get("/v1/models").text
    assert gateway.client.get("/v1/models/nothing").status_code == 404


def test_request_ids(gateway: LiveGateway, engine: FakeEngine) -> None:
    body = {"model": "vora-test", "messages": [{"role": "user", "content": "x"}]}
    for _ in range(2):
        answer = gateway.client.post(
            "/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"}
        )
        assert answer.headers["x-request-id"] == "mine-1"
    inner = [headers["x-request-id"] for headers in engine.headers]
    assert len(set(inner)) == 2, "two requests must never share an id inside the engine"
    assert "mine-1" not in inner
    answer = gateway.client.get("/health", headers={"x-request-id": "bad id"})
    assert answer.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"model": "vora-test"}', 400),
        (b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b"[" * 100_000, 400),
        (b'{"model": "vora-test", "messages": [{"role": "user", "content": NaN}]}', 400),
    ],
)
def test_malformed_bodies(gateway: LiveGateway, body: bytes, status: int) -> None:
    answer = gateway.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_other_pages(gateway: LiveGateway) -> None:
    assert gateway.client.get("/health").status_code == 200
    assert gateway.client.get("/ready").status_code == 200
    assert "vora_gateway_requests_total" in gateway.client.get("/metrics").text
    assert gateway.client.get("/docs").status_code == 200
    assert "/v1/chat/completions" in gateway.client.get("/openapi.json").json()["paths"]
    missing = gateway.client.get("/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"
    wrong = gateway.client.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
