"""HTTP as clients send it: upgrades, HEAD, compression, browsers, keys and paths of all kinds."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
import zstandard

from tests.vora_serve.gateway.conftest import LiveGateway, Start
from tests.vora_serve.gateway.fake_engine import FakeEngine
from vora_serve.gateway.admission import hash_key, new_key

CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {"model": "vora-test", "messages": [{"role": "user", "content": "Hello"}]}
).encode()
ORIGIN = "http://localhost:5174"


def exchange(gateway: LiveGateway, *pieces: bytes) -> bytes:
    """What comes back on one connection until the gateway closes it."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def post(connection: bytes, *headers: bytes, body: bytes = BODY) -> bytes:
    lines = [b"POST %b HTTP/1.1" % CHAT.encode(), b"Host: x", b"Connection: " + connection]
    lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


OFFER = (b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0", b"h2c, foo/2"])
def test_an_offer_to_upgrade_is_ignored(gateway: LiveGateway, upgrade: bytes) -> None:
    offer = (b"Upgrade: " + upgrade, OFFER[1])
    answer = exchange(gateway, post(b"Upgrade, HTTP2-Settings, close", *offer))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
    assert b" red circle" in answer


def test_an_offer_in_every_split(gateway: LiveGateway, engine: FakeEngine) -> None:
    request = post(b"close, upgrade", *OFFER)
    cuts = [1, 30, request.index(b"\r\n\r\n") + 2, request.index(b"\r\n\r\n") + 4, len(request) - 1]
    for cut in cuts:
        answer = exchange(gateway, request[:cut], request[cut:])
        assert answer.startswith(b"HTTP/1.1 200"), (cut, answer[:300])
    assert len(engine.seen) == len(cuts)
    assert all(seen["messages"][0]["content"] == "Hello" for seen in engine.seen)


def test_an_offer_with_a_chunked_body_and_a_request_behind_it(gateway: LiveGateway) -> None:
    head = post(b"upgrade", *OFFER, b"Transfer-Encoding: chunked", body=b"").replace(
        b"Content-Length: 0\r\n", b""
    )
    chunked = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    answer = exchange(gateway, chunked + post(b"upgrade, close", *OFFER))
    assert answer.count(b"HTTP/1.1 200") == 2, answer[:600]


def test_an_offer_hides_no_smuggled_length(gateway: LiveGateway) -> None:
    twice = post(b"upgrade, close", *OFFER, b"Transfer-Encoding: chunked")
    assert exchange(gateway, twice).startswith(b"HTTP/1.1 400")


def test_connect_is_refused(gateway: LiveGateway) -> None:
    answer = exchange(gateway, b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\nConnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer[:100]


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/v1/models/vora-test"])
def test_head_is_get_without_its_body(gateway: LiveGateway, path: str) -> None:
    get, head = gateway.client.get(path), gateway.client.head(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == str(len(get.content))


def test_head_where_nothing_can_be_got(gateway: LiveGateway) -> None:
    assert gateway.client.head(CHAT).status_code == 405
    assert gateway.client.head("/v1/models/absent").status_code == 404
    assert gateway.client.get("/health").status_code == 200, "the connection is still in step"


def send(gateway: LiveGateway, body: bytes, coding: str) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": coding}
    return gateway.client.post(CHAT, content=body, headers=headers)


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_compressed_bodies(gateway: LiveGateway, engine: FakeEngine, coding: str) -> None:
    answer = send(gateway, CODINGS[coding](BODY), coding)
    assert answer.status_code == 200, answer.text
    assert engine.seen[-1]["messages"][0]["content"] == "Hello"
    assert gateway.state.bodies.used == 0


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_bombs(engine: FakeEngine, start_gateway: Start, coding: str) -> None:
    gateway = start_gateway(engine.url, server={"max_body_bytes": 2**20})
    bomb = CODINGS[coding](BODY[:-1] + b" " * (256 * 2**20))
    bomb = bomb if len(bomb) < 2**20 else bomb[: 2**20]
    answer = send(gateway, bomb, coding)
    assert answer.status_code == 413, answer.text
    assert "1048576" in answer.json()["error"]["message"]
    assert gateway.state.bodies.used == 0
    fits = CODINGS[coding](BODY + b" " * (2**20 - len(BODY)))
    assert send(gateway, fits, coding).status_code == 200
    assert send(gateway, CODINGS[coding](BODY + b" " * 2**20), coding).status_code == 413


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_memory_of_all_compressed_bodies(
    engine: FakeEngine, start_gateway: Start, coding: str
) -> None:
    gateway = start_gateway(engine.url, server={"max_body_memory_bytes": 2**20})
    assert send(gateway, CODINGS[coding](BODY + b" " * (4 * 2**20)), coding).status_code == 413
    gateway.state.bodies.acquire(2**19)
    answer = send(gateway, CODINGS[coding](BODY + b" " * (3 * 2**18)), coding)
    gateway.state.bodies.release(2**19)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "memory_full"
    assert gateway.state.bodies.used == 0


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_broken_compressed_bodies(gateway: LiveGateway, coding: str) -> None:
    whole = CODINGS[coding](BODY)
    broken = [BODY, b"", whole[: len(whole) // 2], whole + b"tail", whole[:5]]
    for body in broken:
        answer = send(gateway, body, coding)
        assert answer.status_code == 400, (body, answer.text)
        message = answer.json()["error"]["message"]
        assert message.endswith(".")
        assert len(message) < 100
    assert gateway.state.bodies.used == 0


def test_a_zstd_window_beyond_the_bound(gateway: LiveGateway) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(BODY) + compressor.flush()
    assert send(gateway, body, "zstd").status_code == 400


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "aws-chunked"])
def test_other_codings_are_named(gateway: LiveGateway, coding: str) -> None:
    answer = send(gateway, gzip.compress(BODY), coding)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip, zstd, deflate"


# ------------------------------------------------------------------ browsers


@pytest.fixture
def with_keys(engine: FakeEngine, start_gateway: Start, tmp_path: Path) -> tuple[LiveGateway, str]:
    key, path = new_key(), tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": [{"name": "one", "sha256": hash_key(key)}]}))
    gateway = start_gateway(
        engine.url, auth={"keys_file": str(path)}, server={"cors_origins": [ORIGIN]}
    )
    return gateway, key


def test_browsers_read_answers_and_errors(with_keys: tuple[LiveGateway, str]) -> None:
    gateway, key = with_keys
    asked = "authorization,content-type,x-stainless-os,anthropic-version,openai-beta,x-api-key"
    for method in ("POST", "GET", "DELETE"):
        preflight = gateway.client.options(
            CHAT,
            headers={
                "origin": ORIGIN,
                "access-control-request-method": method,
                "access-control-request-headers": asked,
            },
        )
        assert preflight.status_code == 200, preflight.text
        allowed = preflight.headers["access-control-allow-headers"].lower().replace(" ", "")
        assert set(asked.split(",")) <= set(allowed.split(","))
    cases: list[tuple[str, dict[str, str], bytes, int]] = [
        (CHAT, {"authorization": f"Bearer {key}"}, BODY, 200),
        (CHAT, {}, BODY, 401),
        (CHAT, {"authorization": f"Bearer {key}"}, b"{", 400),
        ("/v1/absent", {"authorization": f"Bearer {key}"}, BODY, 404),
        ("/health", {}, BODY, 405),
    ]
    for path, headers, body, status in cases:
        headers = {"content-type": "application/json", "origin": ORIGIN, **headers}
        answer = gateway.client.post(path, content=body, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN, path
        exposed = answer.headers["access-control-expose-headers"]
        assert "x-request-id" in exposed
        assert "retry-after" in exposed
    other = {"origin": "https://evil.example", "authorization": f"Bearer {key}"}
    answer = gateway.client.get("/v1/models", headers=other)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "KEY"}, 200),
        ({"api-key": "KEY"}, 200),
        ({"authorization": "Basic dTpw", "x-api-key": "KEY"}, 200),
        ({"authorization": "Bearer KEY", "x-api-key": "wrong"}, 200),
        ({"authorization": "Bearer wrong", "x-api-key": "KEY"}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "KEY KEY"}, 401),
    ],
)
def test_keys_in_other_headers(
    with_keys: tuple[LiveGateway, str], headers: dict[str, str], status: int
) -> None:
    gateway, key = with_keys
    sent = {name: value.replace("KEY", key) for name, value in headers.items()}
    assert gateway.client.get("/v1/models", headers=sent).status_code == status


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/chat/completions", CHAT),
        ("/chat/completions", CHAT),
        ("//v1/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v1/chat/completions/chat/completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/deployments/vora-test/chat/completions", CHAT),
        ("/v1/v1/completions", "/v1/completions"),
        ("/v1/v1/responses", "/v1/responses"),
        ("/v1/v1/models", "/v1/models"),
        ("/models", "/v1/models"),
    ],
)
def test_almost_right_paths(gateway: LiveGateway, path: str, meant: str) -> None:
    answer = gateway.client.request(
        "GET" if meant == "/v1/models" else "POST", gateway.url + path, json=json.loads(BODY)
    )
    assert answer.status_code == 404
    assert f"did you mean {meant}?" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/nothing", "/v2"])
def test_other_paths_get_no_hint(gateway: LiveGateway, path: str) -> None:
    answer: Any = gateway.client.post(path, json={}).json()
    assert "did you mean" not in answer["error"]["message"]
