"""Ten thousand malformed requests: answers below 500, and the gateway works as before."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vora_serve.gateway.conftest import LiveGateway, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.test_chat import data_url
from vora_core.errors import APIError
from vora_serve.gateway.schemas import parse_request
from vora_serve.gateway.settings import FieldSettings

IMAGE = {"type": "image_url", "image_url": {"url": data_url(make_image(4, 4)), "detail": "low"}}
CHAT: dict[str, Any] = {
    "model": "vora-test",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 1,
    "max_completion_tokens": 10,
    "temperature": 0.5,
    "stop": ["x"],
    "logit_bias": {"5": 1},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "completion": {"model": "vora-test", "prompt": "hi", "logprobs": 2, "echo": False, "n": 2},
    "response": {
        "model": "vora-test",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call_output", "call_id": "1", "output": "2"},
        ],
        "text": {"format": {"type": "text"}},
        "stream": False,
    },
}
PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "response": "/v1/responses",
}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -1e308, 1e-320, "", "x",
    "\x00", "\ud800", "𝒳" * 100, "a" * 70_000, [], {}, [[]], [{}], [None], {"": None}, {"a": {}},
    {"url": "http://127.0.0.1/"}, {"type": "image_url"}, ["x"] * 2000, {"role": "user"},
    "<|image_pad|>", "<|im_start|>system", "../../etc/passwd", "{{7*7}}", "%s%n", "' OR 1=1 --",
]  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        below = (*path, key)
        found += places(value, below) if isinstance(value, (dict, list)) else [below]
    return found


def mutate(tree: dict[str, Any], random_: random.Random) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        found = places(tree)
        if not found:
            break
        *path, last = random_.choice(found)
        holder: Any = tree
        for step in path:
            holder = holder[step]
        action = random_.random()
        if action < 0.6:
            holder[last] = copy.deepcopy(random_.choice(ODD))
        elif action < 0.8:
            del holder[last]
        elif isinstance(holder, dict):
            holder[random_.choice(("chat_template", "uuid", "x", "type", "__class__", ""))] = (
                random_.choice(ODD)
            )
        else:
            holder.append(copy.deepcopy(random_.choice(ODD)))
    return tree


def break_bytes(body: bytes, random_: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(random_.randrange(1, 6)):
        at = random_.randrange(len(data))
        data[at : at + random_.randrange(3)] = random_.randbytes(random_.randrange(3))
    return bytes(data[: random_.randrange(1, len(data) + 1)])


def requests(count: int, seed: int) -> list[tuple[str, bytes]]:
    random_ = random.Random(seed)
    bodies = {"chat": CHAT, **OTHERS}
    made = []
    for _ in range(count):
        kind = random_.choice(("chat", "chat", "completion", "response"))
        body = json.dumps(mutate(bodies[kind], random_)).encode()
        if random_.random() < 0.2:
            body = break_bytes(body, random_)
        made.append((kind, body))
    return made


def test_parsing_ten_thousand_bodies() -> None:
    settings = FieldSettings()
    refused: list[APIError] = []
    for kind, body in requests(10_000, seed=1):
        try:
            parsed = parse_request(kind, body, settings)  # type: ignore[arg-type]
            parsed.encode()
        except APIError as error:
            refused.append(error)
    assert len(refused) > 5000
    assert all(error.status == 400 for error in refused)
    assert all(len(error.message) < 600 for error in refused)


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_over_http(gateway: LiveGateway, engine: FakeEngine, count: int) -> None:
    statuses: dict[int, int] = {}
    for kind, body in requests(count, seed=2):
        answer = gateway.client.post(
            PATHS[kind], content=body, headers={"content-type": "application/json"}
        )
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, (kind, body[:2000], answer.text)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert statuses[400] > count // 3
    assert gateway.chat().status_code == 200
    assert gateway.state.queue.in_flight == gateway.state.bodies.used == engine.running == 0


def test_malformed_http(gateway: LiveGateway) -> None:
    """Broken below the level of JSON; the connection may be closed, never answered with a 5xx."""
    import socket

    random_ = random.Random(3)
    host, port = gateway.url.removeprefix("http://").split(":")
    good = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    for _ in range(500):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(break_bytes(good, random_))
            connection.shutdown(socket.SHUT_WR)
            try:
                head = connection.recv(4096)
            except (ConnectionResetError, TimeoutError):
                continue
            assert not head.startswith(b"HTTP/1.1 5"), head
    assert gateway.chat().status_code == 200


def test_schemathesis(gateway: LiveGateway) -> None:
    tool = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    result = subprocess.run(
        [tool, "run", f"{gateway.url}/openapi.json", "--checks", checks, "--max-examples", "30",
         "--phases", "coverage,fuzzing", "--seed", "1", "--no-color"],
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
