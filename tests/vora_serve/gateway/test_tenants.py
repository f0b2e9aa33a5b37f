"""Tenants of one engine: caches apart, fair shares, and no way from one to another's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.real_engine import serving
from vora_serve.gateway.admission import FairQueue, hash_key, new_key
from vora_serve.gateway.images.data_url import encode_data_url

SAID = {"model": "vora-test", "messages": [{"role": "user", "content": "x"}]}
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


def write_keys(path: Path, **entries: dict[str, Any]) -> dict[str, str]:
    """A key file with these entries by name; the keys themselves."""
    keys = {name: new_key() for name in entries}
    tree = [
        {"name": name, "sha256": hash_key(keys[name]), **more} for name, more in entries.items()
    ]
    path.write_text(yaml.safe_dump({"keys": tree}))
    return keys


def ask(gateway: LiveGateway, key: str, path: str = CHAT, **more: Any) -> httpx.Response:
    bodies: dict[str, dict[str, Any]] = {
        CHAT: SAID,
        TEXT: {"model": "vora-test", "prompt": "x"},
        RESPONSES: {"model": "vora-test", "input": "x"},
    }
    headers = {"authorization": f"Bearer {key}"}
    return gateway.client.post(path, json={**bodies[path], **more}, headers=headers)


def test_every_tenant_has_a_cache_salt_of_its_own(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    keys = write_keys(path, a={}, b={}, ops={}, one={"group": "ops"}, two={"group": "ops"})
    gateway = start_gateway(engine.url, auth={"keys_file": str(path)})
    salts: dict[str, str] = {}
    for name, key in keys.items():
        for route in (CHAT, TEXT, RESPONSES):
            assert ask(gateway, key, route).status_code == 200
        seen = {payload["cache_salt"] for payload in engine.seen[-3:]}
        (salts[name],) = seen
    assert salts["one"] == salts["two"]
    assert len(set(salts.values())) == 4, "a key called like a group is not in it"
    assert not any(name in salt for name, salt in salts.items() if len(name) > 1)
    again = start_gateway(engine.url, auth={"keys_file": str(path)})
    ask(again, keys["a"])
    assert engine.seen[-1]["cache_salt"] == salts["a"], "gateways agree"


def test_no_caller_gets_at_anothers_cache(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    keys = write_keys(path, a={}, b={})
    gateway = start_gateway(engine.url, auth={"keys_file": str(path)})
    ask(gateway, keys["a"])
    victim = engine.seen[-1]["cache_salt"]
    ask(gateway, keys["b"], cache_salt=victim)
    assert engine.seen[-1]["cache_salt"] != victim
    own = engine.seen[-1]["cache_salt"]
    ask(gateway, keys["b"], cache_salt="mine")
    assert engine.seen[-1]["cache_salt"] not in (own, victim, "mine")


def test_salts_only_where_there_are_tenants(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    start_gateway(engine.url).chat()
    assert "cache_salt" not in engine.seen[-1]
    path = tmp_path / "keys.yaml"
    keys = write_keys(path, a={})
    auth = {"keys_file": str(path), "isolate_caches": False}
    ask(start_gateway(engine.url, auth=auth), keys["a"])
    assert "cache_salt" not in engine.seen[-1]


# -------------------------------------------------------------- fair shares


def overload(places: int, tenants: dict[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    """Places that tenants hold on average while all of them always have more waiting.

    ``tenants`` gives keys, weight and how many steps a request takes.
    """

    async def scenario() -> dict[str, float]:
        queue = FairQueue(places, 10_000, 60)
        held = dict.fromkeys(tenants, 0)
        sums = dict.fromkeys(tenants, 0)
        over = asyncio.Event()
        step = asyncio.Condition()

        async def client(tenant: str, key: str, weight: float, steps: int) -> None:
            while not over.is_set():
                async with queue.slot(key, tenant=tenant, weight=weight):
                    held[tenant] += 1
                    for _ in range(steps):
                        async with step:
                            await step.wait()
                    held[tenant] -= 1

        tasks = [
            asyncio.create_task(
                client(name, f"{name}-{index}", tenant.get("weight", 1.0), tenant.get("steps", 1))
            )
            for name, tenant in tenants.items()
            for index in range(tenant["keys"])
        ]
        for _ in range(rounds):
            for _ in range(10):
                await asyncio.sleep(0)
            for name in tenants:
                sums[name] += held[name]
            async with step:
                step.notify_all()
        over.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.in_flight == queue.queued == 0
        return {name: total / rounds for name, total in sums.items()}

    return asyncio.run(asyncio.wait_for(scenario(), 60))


def test_keys_do_not_multiply_a_tenants_share() -> None:
    held = overload(8, {"many": {"keys": 40}, "few": {"keys": 8}}, 60)
    assert held["few"] == pytest.approx(4, abs=0.5), held


def test_long_requests_do_not_crowd_out_short_ones() -> None:
    held = overload(8, {"long": {"keys": 20, "steps": 10}, "short": {"keys": 20}}, 200)
    assert held["short"] == pytest.approx(4, abs=0.6), held


def test_shares_follow_weights() -> None:
    held = overload(12, {"heavy": {"keys": 30, "weight": 3.0}, "light": {"keys": 30}}, 60)
    assert held["heavy"] == pytest.approx(9, abs=0.7), held
    alone = overload(12, {"light": {"keys": 30}}, 20)
    assert alone["light"] == pytest.approx(12, abs=1), "nothing is kept for who does not ask"


def test_a_key_at_its_cap_holds_up_no_other_of_its_group() -> None:
    async def scenario() -> None:
        queue = FairQueue(2, 10, 5)
        log: list[str] = []

        async def hold(key: str, cap: int | None) -> None:
            async with queue.slot(key, tenant="g", cap=cap):
                log.append(key)

        async with queue.slot("capped", tenant="g", cap=1):
            async with queue.slot("other", tenant="g"):
                tasks = [asyncio.create_task(hold("capped", 1))]
                await asyncio.sleep(0)
                tasks.append(asyncio.create_task(hold("free", None)))
                await asyncio.sleep(0)
            await asyncio.wait_for(tasks[1], 5)
            assert log == ["free"]
        await asyncio.gather(*tasks)
        assert log == ["free", "capped"]

    asyncio.run(asyncio.wait_for(scenario(), 10))


# ------------------------------------------------------------- a real engine


@pytest.mark.engine
def test_cached_tokens_across_tenants(start_gateway: Start, tmp_path: Path) -> None:
    """The same image and question: cached within a tenant, not across; the control leaks."""
    path = tmp_path / "keys.yaml"
    keys = write_keys(path, a={}, b={}, one={"group": "g"}, two={"group": "g"})
    url = encode_data_url(make_image(56, 56), "image/png")

    def cached(gateway: LiveGateway, key: str, text: str) -> int:
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": text * 40},
        ]
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        headers = {"authorization": f"Bearer {key}"}
        answer = gateway.client.post(CHAT, json={**body, "max_tokens": 2}, headers=headers)
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] or 0)

    with serving(tmp_path) as served:
        upstream = f"unix:{served.engine_socket()}"
        isolated = start_gateway(upstream, auth={"keys_file": str(path)})
        assert cached(isolated, keys["a"], "what is it? ") == 0
        assert cached(isolated, keys["b"], "what is it? ") == 0
        assert cached(isolated, keys["a"], "what is it? ") > 0
        assert cached(isolated, keys["b"], "what is it? ") > 0
        assert cached(isolated, keys["one"], "what is it? ") == 0
        assert cached(isolated, keys["two"], "what is it? ") > 0
        auth = {"keys_file": str(path), "isolate_caches": False}
        control = start_gateway(upstream, auth=auth)
        assert cached(control, keys["a"], "and what now? ") == 0
        assert cached(control, keys["b"], "and what now? ") > 0, "one sees another's"
