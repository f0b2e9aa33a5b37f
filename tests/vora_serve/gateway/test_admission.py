"""Caps, the fair queue, keys, scopes and rate limits."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.vora_serve.gateway.conftest import LiveGateway, Start
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.redis_server import RedisServer, redis_server
from tests.vora_serve.gateway.test_streams import until
from vora_core.errors import ConfigError, DeadlineError, RateLimitError
from vora_serve.gateway.admission import FairQueue, hash_key, new_key, read_keys
from vora_serve.gateway.listen import check_exposure, is_loopback
from vora_serve.gateway.settings import load_settings


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


async def hold(queue: FairQueue, caller: str, log: list[str], **more: Any) -> None:
    async with queue.slot(caller, **more):
        log.append(caller)
        await asyncio.sleep(0)


def test_callers_take_turns() -> None:
    async def scenario() -> None:
        queue, log = FairQueue(1, 100, 5), list[str]()
        stack = ExitStack()
        slot = queue.slot("first")
        await slot.__aenter__()
        tasks = [asyncio.create_task(hold(queue, "greedy", log)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(hold(queue, "modest", log)) for _ in range(2)]
        await asyncio.sleep(0)
        assert queue.queued == 7
        await slot.__aexit__(None, None, None)
        await asyncio.gather(*tasks)
        stack.close()
        assert log == ["greedy", "modest", "greedy", "modest", "greedy", "greedy", "greedy"]
        assert queue.queued == queue.in_flight == 0

    run(scenario())


def test_priorities_and_caps() -> None:
    async def scenario() -> None:
        queue, log = FairQueue(2, 100, 5), list[str]()
        first, second = queue.slot("a", cap=1), queue.slot("b")
        await first.__aenter__()
        await second.__aenter__()
        tasks = [
            asyncio.create_task(hold(queue, "a", log, cap=1)),
            asyncio.create_task(hold(queue, "low", log)),
            asyncio.create_task(hold(queue, "high", log, priority=5)),
        ]
        await asyncio.sleep(0)
        await second.__aexit__(None, None, None)  # 'a' is at its cap: it is passed over
        await asyncio.gather(*tasks[1:])
        assert log == ["high", "low"]
        await first.__aexit__(None, None, None)
        await tasks[0]
        assert log == ["high", "low", "a"]

    run(scenario())


def test_a_full_queue_and_its_deadline() -> None:
    async def scenario() -> None:
        queue, log = FairQueue(1, 2, 0.05), list[str]()
        slot = queue.slot("x")
        await slot.__aenter__()
        waiting = [asyncio.create_task(hold(queue, "y", log)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RateLimitError, match="queue is full"):
            await hold(queue, "z", log)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, DeadlineError) for result in results)
        assert queue.queued == 0
        await slot.__aexit__(None, None, None)
        await hold(queue, "z", log)
        assert log == ["z"]

    run(scenario())


def test_cancelling_at_any_moment_loses_no_place() -> None:
    async def scenario() -> None:
        queue, log = FairQueue(3, 1000, 5), list[str]()
        for round_ in range(200):
            tasks = [asyncio.create_task(hold(queue, f"{i % 4}", log)) for i in range(8)]
            for _ in range(round_ % 5):
                await asyncio.sleep(0)
            for task in tasks[round_ % 3 :: 3]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert queue.in_flight == queue.queued == 0

    run(scenario())


def test_more_than_the_caps(engine: FakeEngine, start_gateway: Start) -> None:
    """Twenty times the queue: the cap holds at the engine, the rest is refused at once."""
    gateway = start_gateway(engine.url, admission={"max_in_flight": 4, "max_queued": 4})
    engine.first_delay_s = 0.2
    most = [0]
    answers: list[httpx.Response] = []

    def ask() -> None:
        url = f"{gateway.url}/v1/chat/completions"
        body = {"model": "vora-test", "messages": [{"role": "user", "content": "x"}]}
        answers.append(httpx.post(url, json=body, timeout=30))
        most[0] = max(most[0], engine.running)

    threads = [threading.Thread(target=ask) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    assert most[0] <= 4
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    until(lambda: engine.running == 0)


# ---------------------------------------------------------------------- keys


class Keys:
    """A key file and the keys behind its hashes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}
        self.entries: list[dict[str, Any]] = []

    def add(self, name: str, **more: Any) -> str:
        self.secrets[name] = new_key()
        self.entries.append({"name": name, "sha256": hash_key(self.secrets[name]), **more})
        self.path.write_text(yaml.safe_dump({"keys": self.entries}))
        return self.secrets[name]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.yaml")


def ask(gateway: LiveGateway, key: str | None, path: str = "/v1/models") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key is not None else {}
    if path == "/v1/models":
        return gateway.client.get(path, headers=headers)
    body = {"model": "vora-test", "messages": [{"role": "user", "content": "x"}]}
    return gateway.client.post(path, json=body, headers=headers)


CHAT = "/v1/chat/completions"


def test_keys(engine: FakeEngine, start_gateway: Start, keys: Keys) -> None:
    good = keys.add("good")
    old = keys.add("old", expires=(datetime.now(UTC) - timedelta(days=1)).isoformat())
    reader = keys.add("reader", scopes=["models"])
    other = keys.add("other", models=["another"])
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys.path)})
    assert ask(gateway, good).status_code == 200
    assert ask(gateway, good, CHAT).status_code == 200
    assert ask(gateway, None).status_code == 401
    assert ask(gateway, "wrong").status_code == 401
    assert ask(gateway, hash_key(good)).status_code == 401, "a hash is no key"
    assert ask(gateway, old).status_code == 401
    assert ask(gateway, reader).status_code == 200
    assert ask(gateway, reader, CHAT).status_code == 403
    assert ask(gateway, other, CHAT).status_code == 404
    assert ask(gateway, other).json()["data"] == []
    assert gateway.client.get("/health").status_code == 200
    assert good not in gateway.client.get("/metrics").text
    assert 'key="good"' in gateway.client.get("/metrics").text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/",
        "//v1/models",
        "/v1//models",
        "/v1/%6dodels",
        "/health/../v1/models",
        "/health%2f..%2fv1/models",
        "/v1/models?x=/health",
        "/v1/models;/health",
        "/V1/models",
        "/metrics/../v1/models",
        "/v1/chat/completions/health",
    ],
)
def test_no_path_gets_around_the_keys(
    engine: FakeEngine, start_gateway: Start, keys: Keys, path: str
) -> None:
    import socket

    keys.add("good")
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys.path)})
    host, port = gateway.url.removeprefix("http://").split(":")
    for name in ("x", "x/health", "x/health?", "localhost/health#", "/health"):
        with socket.create_connection((host, int(port))) as connection:
            request = f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
            connection.sendall(request.encode())
            answer = connection.recv(65536)
            assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")), answer[:100]


def test_keys_reload(engine: FakeEngine, start_gateway: Start, keys: Keys) -> None:
    first = keys.add("first")
    gateway = start_gateway(
        engine.url, auth={"keys_file": str(keys.path), "reload_interval_s": 0.05}
    )
    second = keys.add("second")
    until(lambda: ask(gateway, second).status_code == 200)
    keys.path.write_text("keys: [{nonsense")
    assert gateway.state.keys.reload() in (True, False)
    assert ask(gateway, first).status_code == 200, "a broken file changes nothing"
    keys.entries = []
    third = keys.add("third")
    until(lambda: ask(gateway, third).status_code == 200)
    assert ask(gateway, first).status_code == 401


@pytest.mark.parametrize(
    "content",
    [
        "nonsense",
        "keys: [{name: a}]",
        "keys: [{name: a, sha256: short}]",
        "keys: [{name: 'a b', sha256: " + "0" * 64 + "}]",
        "keys: [{name: a, sha256: " + "0" * 64 + ", admin: true}]",
        "keys: [{name: a, sha256: " + "0" * 64 + "}, {name: a, sha256: " + "1" * 64 + "}]",
    ],
)
def test_broken_key_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        read_keys(path)


def test_request_rate(engine: FakeEngine, start_gateway: Start, keys: Keys) -> None:
    limited = keys.add("limited", requests=["3/hour"])
    free = keys.add("free")
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys.path)})
    statuses = [ask(gateway, limited, CHAT).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    answer = ask(gateway, limited, CHAT)
    assert answer.json()["error"]["code"] == "requests_rate_limit_exceeded"
    assert 0 < int(answer.headers["retry-after"]) <= 3600
    assert ask(gateway, free, CHAT).status_code == 200


def test_token_rate(engine: FakeEngine, start_gateway: Start, keys: Keys) -> None:
    """Each request uses 13 tokens; a key that has used its 20 starts nothing new."""
    limited = keys.add("limited", tokens=["20/hour"])
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys.path)})
    statuses = [ask(gateway, limited, CHAT).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


def test_serving_others_needs_keys_or_a_word() -> None:
    with pytest.raises(ConfigError, match="without API keys"):
        check_exposure(load_settings(flags={"server": {"host": "0.0.0.0"}}))
    check_exposure(load_settings(flags={"server": {"host": "::1"}}))
    told = {"server": {"host": "0.0.0.0"}, "auth": {"allow_anonymous": True}}
    check_exposure(load_settings(flags=told))
    assert not is_loopback("example.org")


def test_wrong_limits() -> None:
    from vora_serve.gateway import create_app

    for admission in ({"requests": ["lots"]}, {"rate_limit_storage": "nothing://"}):
        with pytest.raises(ConfigError):
            create_app(load_settings(flags={"admission": admission}))


def test_limits_shared_through_redis(tmp_path: Path) -> None:
    """Two gateways count together; a store that goes away refuses nobody."""
    from vora_serve.gateway.admission import RateLimits
    from vora_serve.gateway.settings import AdmissionSettings

    async def scenario(redis: RedisServer) -> None:
        settings = AdmissionSettings(rate_limit_storage=redis.url, requests=["2/hour"])
        one, two = RateLimits(settings), RateLimits(settings)
        await one.take_request("a", None)
        await two.take_request("a", None)
        for limits in (one, two):
            with pytest.raises(RateLimitError):
                await limits.take_request("a", None)
        await one.take_request("b", None)
        redis.stop()
        await one.take_request("a", None)
        for limits in (one, two):
            await limits.close()

    with redis_server(tmp_path) as redis:
        run(scenario(redis))
