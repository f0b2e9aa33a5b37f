"""Responses kept for later turns: off by default, tenant by tenant, bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.redis_server import RedisServer, redis_server
from tests.vora_serve.gateway.test_chat import data_url, events
from tests.vora_serve.gateway.test_tenants import write_keys
from vora_core.errors import ConfigError
from vora_serve.gateway import load_settings
from vora_serve.gateway.settings import ResponseSettings
from vora_serve.gateway.stored import MemoryStore, ResponseStore, StoredResponse, open_store

URL = data_url(make_image(4, 4))


@pytest.fixture
def keeping(engine: FakeEngine, start_gateway: Start) -> LiveGateway:
    return start_gateway(engine.url, responses={"store": True})


def ask(gateway: LiveGateway, given: Any = "hi", headers: Any = None, **more: Any) -> Any:
    body = {"model": "vora-test", "input": given, **more}
    return gateway.client.post("/v1/responses", json=body, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, Any, Any]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": text}


# ---------------------------------------------------------------------------------- turns


def test_off_by_default(gateway: LiveGateway) -> None:
    first = ask(gateway).json()
    assert first["store"] is False
    answer = ask(gateway, previous_response_id=first["id"])
    assert refusal(answer) == (400, "previous_response_id", "unsupported_parameter")
    assert "send the whole input" in answer.json()["error"]["message"]
    for item in ({"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}):
        refused = refusal(ask(gateway, ["hi", item]))
        assert refused == (400, "input[1]", "unsupported_parameter")
    path = f"/v1/responses/{first['id']}"
    for asked in (gateway.client.get(path), gateway.client.delete(path)):
        assert refusal(asked) == (404, "response_id", "response_not_found")


def test_operations_that_are_not_offered(gateway: LiveGateway) -> None:
    for path in ("compact", "resp_1", "resp_1/cancel"):
        answer = gateway.client.post(f"/v1/responses/{path}", json={"model": "vora-test"})
        assert answer.status_code == 404
    assert gateway.client.put("/v1/responses/resp_1").status_code == 405


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation(keeping: LiveGateway, engine: FakeEngine, stream: bool) -> None:
    def turn(number: int, **more: Any) -> Any:
        engine.response_id = f"resp_{number}"
        engine.words = [f"answer {number}"]
        answer = ask(keeping, f"question {number}", stream=stream, **more)
        assert answer.status_code == 200, answer.text
        return events(answer.text)[-1]["response"] if stream else answer.json()

    first = turn(1, instructions="be brief")
    assert (first["store"], first["previous_response_id"]) == (True, None)
    second = turn(2, previous_response_id="resp_1")
    assert (second["id"], second["previous_response_id"]) == ("resp_2", "resp_1")
    turn(3, previous_response_id="resp_2")
    sent = engine.seen[-1]
    assert sent["input"] == [
        {"type": "message", "role": "user", "content": "question 1"},
        said("answer 1"),
        {"type": "message", "role": "user", "content": "question 2"},
        said("answer 2"),
        {"type": "message", "role": "user", "content": "question 3"},
    ]
    assert "instructions" not in sent, "they hold for their own turn alone"
    assert sent["store"] is False
    assert "previous_response_id" not in sent
    turn(4, previous_response_id="resp_1")
    assert len(engine.seen[-1]["input"]) == 3, "a conversation may branch"


def test_images_and_calls_are_kept(keeping: LiveGateway, engine: FakeEngine) -> None:
    shown = {"role": "user", "content": [{"type": "input_image", "image_url": URL}]}
    engine.output = [{"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look",
                      "arguments": "{}", "status": "completed"}]  # fmt: skip
    first = ask(keeping, [shown]).json()
    engine.output = None
    result = {"type": "function_call_output", "call_id": "c1", "output": "a circle"}
    assert ask(keeping, [result], previous_response_id=first["id"]).status_code == 200
    kinds = [item["type"] for item in engine.seen[-1]["input"]]
    assert kinds == ["message", "function_call", "function_call_output"]
    assert engine.image_sizes == [(4, 4), (4, 4)], "the image is seen again in the second turn"


def test_references_to_items(keeping: LiveGateway, engine: FakeEngine) -> None:
    engine.words = ["red"]
    first = ask(keeping, ["what colour?"]).json()
    listed = keeping.client.get(f"/v1/responses/{first['id']}/input_items").json()["data"]
    given = [
        {"type": "item_reference", "id": listed[0]["id"]},
        {"id": first["output"][0]["id"]},
        {"role": "user", "content": "sure?"},
    ]
    assert ask(keeping, given).status_code == 200
    assert engine.seen[-1]["input"] == [
        {"type": "message", "role": "user", "content": "what colour?"},
        said("red"),
        {"type": "message", "role": "user", "content": "sure?"},
    ]
    missing = ask(keeping, ["x", {"type": "item_reference", "id": "msg_nowhere"}])
    assert refusal(missing) == (404, "input[1]", "item_not_found")
    for odd in (None, 5, [], {}):
        assert ask(keeping, [{"type": "item_reference", "id": odd}]).status_code == 404


def test_what_is_not_to_be_kept(keeping: LiveGateway, engine: FakeEngine) -> None:
    first = ask(keeping, store=False).json()
    assert first["store"] is False
    assert keeping.client.get(f"/v1/responses/{first['id']}").status_code == 404
    engine.status = 500
    ask(keeping)
    engine.status = 200
    assert keeping.client.get(f"/v1/responses/{first['id']}").status_code == 404
    kept = ask(keeping).json()
    assert ask(keeping, store=False, previous_response_id=kept["id"]).status_code == 200


def test_refusals(keeping: LiveGateway, engine: FakeEngine) -> None:
    first = ask(keeping, ["a", "b"]).json()["id"]
    missing = ask(keeping, previous_response_id="resp_nowhere")
    assert refusal(missing) == (400, "previous_response_id", "previous_response_not_found")
    assert refusal(ask(keeping, previous_response_id=5))[:2] == (400, "previous_response_id")
    assert refusal(ask(keeping, store="yes"))[:2] == (400, "store")
    wrong = ask(keeping, ["x", {"role": "robot", "content": "x"}], previous_response_id=first)
    assert refusal(wrong)[1] == "input[1].role", "places are counted as the caller counts them"
    named = ask(keeping, [{"role": "user", "content": "x", "a": 1}], previous_response_id=first)
    assert named.headers["x-vora-dropped-fields"] == "input[0].a"
    assert refusal(keeping.client.post("/v1/responses", json={"model": "vora-test"}))[:2] == (
        400,
        "input",
    )


def test_a_conversation_has_an_end(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, responses={"store": True, "max_turns": 2})
    previous = None
    for number in range(2):
        engine.response_id = f"resp_{number}"
        previous = ask(gateway, previous_response_id=previous).json()["id"]
    engine.response_id = "resp_2"
    third = ask(gateway, previous_response_id=previous).json()["id"]
    assert refusal(ask(gateway, previous_response_id=third))[:2] == (400, "previous_response_id")


def test_kept_turns_count_into_memory(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(
        engine.url, responses={"store": True}, server={"max_body_memory_bytes": 20_000}
    )
    first = ask(gateway, "x" * 5_000).json()["id"]
    assert ask(gateway, "x" * 5_000, previous_response_id=first).status_code == 413
    assert ask(gateway).status_code == 200
    assert gateway.state.bodies.used == 0


def test_reading_and_forgetting(keeping: LiveGateway, engine: FakeEngine) -> None:
    first = ask(keeping, ["a", "b", "c"]).json()
    path = f"/v1/responses/{first['id']}"
    assert keeping.client.get(path).json() == first
    assert keeping.client.head(path).status_code == 200
    page = keeping.client.get(f"{path}/input_items", params={"limit": 2}).json()
    assert [item["content"] for item in page["data"]] == ["c", "b"]
    assert (page["object"], page["has_more"]) == ("list", True)
    after = {"after": page["last_id"], "order": "desc"}
    rest = keeping.client.get(f"{path}/input_items", params=after).json()
    assert [item["content"] for item in rest["data"]] == ["a"]
    assert rest["has_more"] is False
    for wrong in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"after": "nowhere"}):
        answer = keeping.client.get(f"{path}/input_items", params=wrong)
        assert refusal(answer)[:2] == (400, next(iter(wrong)))
    gone = {"id": first["id"], "object": "response", "deleted": True}
    assert keeping.client.delete(path).json() == gone
    for answer in (keeping.client.get(path), keeping.client.delete(path)):
        assert answer.status_code == 404
    assert ask(keeping, previous_response_id=first["id"]).status_code == 400
    item = {"type": "item_reference", "id": first["output"][0]["id"]}
    assert ask(keeping, [item]).status_code == 404


def test_the_openai_client(keeping: LiveGateway, engine: FakeEngine) -> None:
    client = openai.OpenAI(base_url=f"{keeping.url}/v1", api_key="none", max_retries=0)
    first = client.responses.create(model="vora-test", input="hi", store=True)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    [item] = client.responses.input_items.list(first.id)
    assert item.role == "user"
    engine.response_id = "resp_2"
    again = client.responses.create(model="vora-test", input="hm", previous_response_id=first.id)
    assert again.previous_response_id == first.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


# ---------------------------------------------------------------------------------- tenants


def test_tenants_see_nothing_of_each_other(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    keys = write_keys(
        file,
        alice={},
        ann={"group": "acme"},
        bob={"group": "acme"},
        carl={"group": "acme", "models": ["other"]},
    )
    gateway = start_gateway(engine.url, responses={"store": True}, auth={"keys_file": str(file)})
    bearer = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
    first = ask(gateway, headers=bearer["ann"]).json()
    path, item = f"/v1/responses/{first['id']}", first["output"][0]["id"]
    for name, found in (("ann", True), ("bob", True), ("alice", False), ("carl", False)):
        headers = bearer[name]
        status = 200 if found else 404
        assert gateway.client.get(path, headers=headers).status_code == status
        listed = gateway.client.get(f"{path}/input_items", headers=headers)
        assert listed.status_code == status
        if not found:
            assert gateway.client.delete(path, headers=headers).status_code == 404
            assert first["id"] not in gateway.client.get(path, headers=headers).text
        if name != "carl":
            engine.response_id = f"resp_{name}"
            turn = ask(gateway, headers=headers, previous_response_id=first["id"])
            assert turn.status_code == (200 if found else 400)
            reference = [{"type": "item_reference", "id": item}, "x"]
            assert ask(gateway, reference, headers=headers).status_code == status
    assert gateway.client.get(path).status_code == 401


# ---------------------------------------------------------------------------------- stores


def entry(name: str, size: int = 0, previous: str | None = None) -> StoredResponse:
    output = [{"type": "message", "id": f"msg_{name}", "role": "assistant", "content": "x" * size}]
    asked = [{"type": "message", "id": f"in_{name}", "role": "user", "content": "x"}]
    return StoredResponse({"id": name, "output": output}, asked, previous)


def settings(**more: Any) -> ResponseSettings:
    return ResponseSettings(store=True, **more)


def test_memory_forgets_the_least_recently_used_of_a_tenant() -> None:
    async def scenario() -> None:
        store = MemoryStore(settings(max_bytes_per_tenant=10_000))
        await store.put("other", entry("z", 3_000))
        for name in "abc":
            await store.put("one", entry(name, 1_000))
        assert await store.get("one", "a") is not None
        await store.put("one", entry("d", 5_500))
        kept = [name for name in "abcd" if await store.get("one", name) is not None]
        assert kept == ["a", "d"]
        assert await store.holder("one", "msg_b") is None
        assert await store.holder("one", "msg_a") == "a"
        assert await store.holder("other", "msg_a") is None
        assert await store.get("other", "z") is not None, "a tenant pushes out its own alone"
        assert not await store.put("one", entry("e", 20_000))
        await store.put("one", entry("d", 10))
        assert await store.delete("one", "a")
        assert await store.delete("one", "d")
        assert await store.delete("other", "z")
        assert store.size == 0

    asyncio.run(scenario())


def test_who_holds_the_most_gives_way() -> None:
    async def scenario() -> None:
        store = MemoryStore(settings(max_bytes=30_000))
        for number in range(5):
            await store.put("greedy", entry(f"g{number}", 3_000))
        for number in range(40):
            await store.put(f"tenant {number}", entry("a", 200))
            assert store.size <= 30_000
        assert await store.get("greedy", "g4") is None
        assert await store.get("tenant 39", "a") is not None

    asyncio.run(scenario())


def test_memory_forgets_in_time() -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        store = MemoryStore(settings(ttl_s=10), clock=lambda: now)
        await store.put("one", entry("a"))
        await store.put("one", entry("b"))
        now = 6
        assert await store.get("one", "a") is not None
        now = 11
        assert await store.get("one", "b") is None
        assert await store.get("one", "a") is not None, "use keeps it"
        now = 22
        assert await store.holder("one", "msg_a") is None
        assert store.size == 0

    asyncio.run(scenario())


def test_storages() -> None:
    assert open_store(ResponseSettings()) is None
    assert isinstance(open_store(settings()), MemoryStore)
    for wrong in ("file:///tmp/x", "redis://[", "redis://host:port"):
        with pytest.raises(ConfigError, match=r"responses\.storage"):
            open_store(settings(storage=wrong))
    tree: dict[str, Any] = {"responses": {"store": True}, "server": {"workers": 2}}
    with pytest.raises(ConfigError, match="needs Redis"):
        load_settings(flags={"upstreams": ["http://x"], **tree})


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


def test_redis_is_shared_bounded_and_expires(redis: RedisServer) -> None:
    url = redis.url

    async def scenario() -> None:
        more = settings(storage=url, max_bytes_per_tenant=10_000, ttl_s=60)
        one, two = open_store(more), open_store(more)
        assert one is not None
        assert two is not None
        await one.put("other", entry("z", 3_000))
        for name in "abc":
            await one.put("one", entry(name, 2_000))
        assert await two.get("one", "a") == entry("a", 2_000)
        await two.put("one", entry("d", 6_500))
        assert [name for name in "abcd" if await one.get("one", name) is not None] == ["a", "d"]
        assert await one.holder("one", "msg_b") is None
        assert await one.holder("one", "msg_a") == "a"
        assert await one.holder("other", "msg_a") is None
        assert await one.get("other", "z") is not None
        assert not await one.put("one", entry("e", 20_000))
        assert await one.delete("one", "a")
        assert not await two.delete("one", "a")
        assert await two.holder("one", "msg_a") is None
        await expiry(url)
        redis.stop()
        for asked in (one.get("one", "d"), one.put("one", entry("f")), one.holder("one", "x")):
            with pytest.raises(OSError, match="Redis"):
                await asked
        await one.close()
        await two.close()

    async def expiry(url: str) -> None:
        short: ResponseStore | None = open_store(settings(storage=url, ttl_s=0.2))
        assert short is not None
        await short.put("brief", entry("a"))
        assert await short.get("brief", "a") is not None
        while await short.holder("brief", "msg_a") is not None:
            await asyncio.sleep(0.05)
        assert await short.get("brief", "a") is None
        await short.close()

    asyncio.run(scenario())


def test_a_store_out_of_reach(engine: FakeEngine, start_gateway: Start, redis: RedisServer) -> None:
    url = redis.url
    gateway = start_gateway(engine.url, responses={"store": True, "storage": url})
    first = ask(gateway).json()["id"]
    assert ask(gateway, previous_response_id=first).status_code == 200
    redis.stop()
    assert ask(gateway, previous_response_id=first).status_code == 503
    assert gateway.client.get(f"/v1/responses/{first}").status_code == 503
    assert ask(gateway).status_code == 200, "answers are given all the same"
