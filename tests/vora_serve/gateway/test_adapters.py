"""Vision adapters behind the gateway: routed by name, administered by some keys only."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import FIXTURES
from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine, running
from tests.vora_serve.gateway.fake_host import FakeHost
from tests.vora_serve.gateway.test_tenants import write_keys
from vora_core.geometry import ImageSettings
from vora_serve.gateway.images.data_url import encode_data_url

ADMIN = "/admin/adapters"
LOAD = {"name": "docs", "folder": "documents"}


@pytest.fixture
def hosts() -> Iterator[list[FakeHost]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(FakeHost())) for _ in range(2)]


class Site:
    """A gateway with keys in front of two hosts."""

    def __init__(self, gateway: LiveGateway, keys: dict[str, str], audit: Path) -> None:
        self.gateway, self.keys, self.audit = gateway, keys, audit

    def call(self, method: str, path: str, key: str | None = "ops", **more: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {self.keys[key]}"}
        return self.gateway.client.request(method, path, headers=headers, **more)

    def chat(self, model: str, key: str = "user", **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], **more}
        return self.call("POST", "/v1/chat/completions", key, json=body)

    def acts(self) -> list[dict[str, Any]]:
        if not self.audit.exists():
            return []
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture
def site(hosts: list[FakeHost], start_gateway: Start, tmp_path: Path) -> Site:
    file, audit = tmp_path / "keys.yaml", tmp_path / "audit.jsonl"
    keys = write_keys(
        file,
        ops={"scopes": ["admin"]},
        user={},
        narrow={"models": ["vora-test"]},
        all={"scopes": ["generate", "models", "metrics"]},
    )
    gateway = start_gateway(
        *(host.url for host in hosts),
        auth={"keys_file": str(file)},
        logging={"access": False, "audit_file": str(audit)},
        routing={"health_interval_s": 0.3, "unhealthy_after": 1},
    )
    return Site(gateway, keys, audit)


def test_load_use_drop(site: Site, hosts: list[FakeHost]) -> None:
    assert site.chat("docs").status_code == 404
    loaded = site.call("POST", ADMIN, json=LOAD)
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["engines"] == 2
    assert all("docs" in host.adapters for host in hosts)
    assert site.chat("docs").status_code == 200, "at once, not at the next probe"
    [listed] = site.call("GET", ADMIN).json()["data"]
    assert listed["name"] == "docs"
    assert listed["engines"] == [0, 1]
    names = {card["id"] for card in site.call("GET", "/v1/models", "user").json()["data"]}
    assert names == {"vora-test", "docs"}
    dropped = site.call("DELETE", f"{ADMIN}/docs")
    assert dropped.json() == {"name": "docs", "deleted": True, "engines": 2}
    assert not any(host.adapters for host in hosts)
    assert site.chat("docs").status_code == 404
    acts = [(act["act"], act["name"], act["key"]) for act in site.acts()]
    assert acts == [("adapter.loaded", "docs", "ops"), ("adapter.dropped", "docs", "ops")]
    assert not any(key in site.audit.read_text() for key in site.keys.values())


def test_only_keys_with_the_scope(site: Site, hosts: list[FakeHost]) -> None:
    for method, path in (("GET", ADMIN), ("POST", ADMIN), ("DELETE", f"{ADMIN}/docs")):
        for key in (None, "user", "narrow", "all"):
            refused = site.call(method, path, key, json=LOAD if method == "POST" else None)
            assert refused.status_code == (401 if key is None else 403), (method, key)
    assert not any(host.asked for host in hosts)


def test_without_keys_nobody_administers(hosts: list[FakeHost], start_gateway: Start) -> None:
    gateway = start_gateway(hosts[0].url)
    refused = gateway.client.post(ADMIN, json=LOAD)
    assert refused.status_code == 403
    assert "scope 'admin'" in refused.json()["error"]["message"]
    assert not hosts[0].asked


ELSEWHERE: list[Any] = [
    {"name": "docs", "folder": "../secret"},
    {"name": "docs", "folder": "/etc"},
    {"name": "docs", "folder": "a/b"},
    {"name": "docs", "folder": ".."},
    {"name": "docs", "folder": ""},
    {"name": "docs", "folder": "x\x00y"},
    {"name": "docs", "folder": "x\n"},
    {"name": "docs", "folder": "a" * 65},
    {"name": "../docs", "folder": "a"},
    {"name": "docs", "folder": "a", "lora_path": "/etc"},
    {"name": "docs"},
    {"name": 1, "folder": "a"},
    ["docs", "a"],
    "docs",
]


def test_no_way_to_another_path(site: Site, hosts: list[FakeHost]) -> None:
    for body in ELSEWHERE:
        refused = site.call("POST", ADMIN, json=body)
        assert refused.status_code == 400, body
    assert site.call("POST", ADMIN).status_code == 415
    assert site.call("POST", ADMIN, json={**LOAD, "x": "y" * 5000}).status_code == 413
    assert not any(method == "POST" for host in hosts for method, _, _ in host.asked)


OWN_ROUTES = [
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/vision_adapters",
    "/v1/vision_adapters/docs",
    "/admin/../v1/vision_adapters",
    "/admin/adapters/../../v1/vision_adapters",
    "/admin/adapters/..%2f..%2fv1%2fvision_adapters",
]


def test_engines_own_routes_are_out_of_reach(site: Site, hosts: list[FakeHost]) -> None:
    for path in OWN_ROUTES:
        for key in ("ops", "all"):
            for method in ("GET", "POST", "DELETE"):
                answer = site.call(method, path, key, json={"lora_name": "x", "lora_path": "/etc"})
                assert answer.status_code in (403, 404, 405), (path, key, method)
    assert not any(host.asked for host in hosts)


def test_names_to_drop_are_names(site: Site, hosts: list[FakeHost]) -> None:
    site.call("POST", ADMIN, json=LOAD)
    for name in ("..", "docs%2f..", "x" * 65, "docs%0d%0ax: y", "docs%0a", "%00", "*"):
        answer = site.call("DELETE", f"{ADMIN}/{name}")
        assert answer.status_code in (403, 404, 405), name
    assert all("docs" in host.adapters for host in hosts)


def test_all_engines_or_none(site: Site, hosts: list[FakeHost]) -> None:
    hosts[1].refuse = (409, "There is no room: 3 adapters are loaded (--max-adapters).")
    refused = site.call("POST", ADMIN, json=LOAD)
    assert refused.status_code == 409
    assert "There is no room" in refused.json()["error"]["message"]
    assert not any(host.adapters for host in hosts)
    hosts[1].refuse = (400, "The adapter /srv/adapters/a was trained on another LLM.")
    refused = site.call("POST", ADMIN, json=LOAD)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "The adapter a file was trained on another LLM."
    assert site.acts() == []


def test_names_are_not_taken_twice(site: Site) -> None:
    site.call("POST", ADMIN, json=LOAD)
    for name in ("docs", "vora-test"):
        refused = site.call("POST", ADMIN, json={**LOAD, "name": name})
        assert refused.status_code == 409


def test_engines_of_one_model_are_left_alone(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.yaml", ops={"scopes": ["admin"]})
    gateway = start_gateway(engine.url, auth={"keys_file": str(tmp_path / "keys.yaml")})
    for method in ("GET", "POST"):
        answer = Site(gateway, keys, tmp_path).call(method, ADMIN, json=LOAD)
        assert answer.status_code == 404
        assert "No engine here takes vision adapters" in answer.json()["error"]["message"]


def test_allow_lists_hold_for_adapters(site: Site, hosts: list[FakeHost]) -> None:
    site.call("POST", ADMIN, json=LOAD)
    assert site.chat("vora-test", "narrow").status_code == 200
    refused = site.chat("docs", "narrow")
    assert refused.status_code == 404
    listed = site.call("GET", "/v1/models", "narrow").json()["data"]
    assert [card["id"] for card in listed] == ["vora-test"]
    assert site.call("GET", "/v1/models/docs", "narrow").status_code == 404
    assert not any(payload["model"] == "docs" for host in hosts for payload in host.seen)


def test_names_route_to_engines_that_have_them(site: Site, hosts: list[FakeHost]) -> None:
    hosts[1].adapters["charts"] = None
    deadline = time.monotonic() + 20
    while site.chat("charts").status_code == 404:
        assert time.monotonic() < deadline
    before = len(hosts[0].seen)
    for _ in range(6):
        assert site.chat("charts").status_code == 200
    assert len(hosts[0].seen) == before


def test_images_take_the_adapters_geometry(start_gateway: Start) -> None:
    small = ImageSettings(resolution="fixed", image_size=56, resize_edge=56, patch_size=7)
    wide = ImageSettings(resolution="native", max_pixels=200 * 14 * 14)
    adapters = {"small": asdict(small), "wide": asdict(wide)}
    with running(FakeHost(adapters=adapters, looks=False)) as host:
        gateway = start_gateway(host.url)
        url = encode_data_url(make_image(300, 200), "image/png")
        for name, settings in (("small", small), ("wide", wide)):
            content = [{"type": "image_url", "image_url": {"url": url}}]
            body = {"model": name, "messages": [{"role": "user", "content": content}]}
            answer = gateway.client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            [part] = host.seen[-1]["messages"][0]["content"]
            pixels = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
            size = b"%d %d" % settings.resized(300, 200)
            assert size in pixels[:200]


def test_cards_say_how_each_adapter_sees(start_gateway: Start) -> None:
    """What the playground computes patches, tokens and memory from."""
    small = ImageSettings(resolution="fixed", image_size=56, resize_edge=56, patch_size=7)
    checkpoint = FIXTURES / "merged"
    with running(FakeHost(adapters={"small": asdict(small)})) as host:
        gateway = start_gateway(
            host.url, playground={"checkpoints": {"vora-test": str(checkpoint)}}
        )
        cards = {c["id"]: c["vora"] for c in gateway.client.get("/v1/models").json()["data"]}
    assert cards["small"]["image"] == small.geometry()
    assert cards["small"]["kv_bytes_per_token"] == cards["vora-test"]["kv_bytes_per_token"] > 0
    assert cards["vora-test"]["image"] != small.geometry()


def test_metrics_by_adapter(site: Site) -> None:
    site.call("POST", ADMIN, json=LOAD)
    for _ in range(3):
        site.chat("docs")
    site.chat("nobody")
    text = site.gateway.client.get("/metrics").text
    assert 'vora_gateway_model_requests_total{model="docs"} 3.0' in text
    assert 'vora_gateway_model_tokens_total{kind="completion",model="docs"} 9.0' in text
    assert "nobody" not in text, "labels are bounded by what is served"


def test_a_name_in_use_is_not_torn_away(site: Site, hosts: list[FakeHost]) -> None:
    """Under load: what was admitted is answered, and what comes later is told at once."""
    site.call("POST", ADMIN, json=LOAD)
    for host in hosts:
        host.delay_s = 0.05
    codes: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            codes.append(site.chat("docs").status_code)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(client)
        for _ in range(3):
            seen = codes.count(200)
            while codes.count(200) < seen + 12:
                time.sleep(0.01)
            assert site.call("DELETE", f"{ADMIN}/docs").status_code == 200
            assert site.call("POST", ADMIN, json=LOAD).status_code == 200
        stop.set()
    assert set(codes) <= {200, 404}
    assert sum(host.used_after_drop for host in hosts) == 0, "a 404 is the gateway's own"


def test_an_adapter_that_stays_in_use_stays(site: Site, hosts: list[FakeHost]) -> None:
    site.call("POST", ADMIN, json=LOAD)
    for host in hosts:
        host.held = True
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(site.chat, "docs")
        while not any(host.waiting for host in hosts):
            time.sleep(0.01)
        refused = site.call("DELETE", f"{ADMIN}/docs?timeout_s=0")
        assert refused.status_code == 409
        assert "still used by 1 requests" in refused.json()["error"]["message"]
        for host in hosts:
            host.held = False
        assert asked.result().status_code == 200
    assert all("docs" in host.adapters for host in hosts)
    assert site.chat("docs").status_code == 200
    assert site.call("DELETE", f"{ADMIN}/docs?timeout_s=-1").status_code == 400


def test_an_engine_that_comes_back_gets_its_adapters(site: Site, hosts: list[FakeHost]) -> None:
    site.call("POST", ADMIN, json=LOAD)
    hosts[0].healthy = False
    deadline = time.monotonic() + 30
    while site.gateway.state.balancer.upstreams[0].healthy:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hosts[0].adapters.clear()  # as after a restart
    hosts[0].healthy = True
    while "docs" not in hosts[0].adapters:
        assert time.monotonic() < deadline
        time.sleep(0.05)
