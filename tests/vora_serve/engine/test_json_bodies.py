"""The engine's JSON parser takes and refuses what the standard library's does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.requests import Request

from vora_serve.engine.json_bodies import parse, parse_bodies_fast

JSON = {"content-type": "application/json"}
TAKEN = [
    b'{"a": [1, 2.5, -0.0, 1e400, null, true], "a": {"b": "\\u00e9\\n"}}',
    b"12345678901234567890123",
    b"0.1234567890123456789",
    b'"' + b"x" * 100_000 + b'"',
    '"é€😀"'.encode(),
    '{"a": 1}'.encode("utf-16"),
    b'\xef\xbb\xbf{"a": 1}',
    b'"\\ud83d\\ude00"',
    b'"\\ud83d"',
    b"[-Infinity, Infinity]",
    b" \t\r\n[]\n",
    b"[" * 150 + b"]" * 150,
    b"[" * 400 + b"]" * 400,
]
REFUSED = [b"", b"{", b"[1,]", b"{'a': 1}", b"[01]", b'"\n"', b"nul", b"[] []", b'"\xff"', b"+1"]


@pytest.mark.parametrize("document", TAKEN, ids=lambda document: document[:20].decode("latin-1"))
def test_it_takes_what_the_library_takes(document: bytes) -> None:
    found, expected = parse(document), json.loads(document)
    assert found == expected
    assert str(found)[:1000] == str(expected)[:1000]  # 1 is not 1.0


def test_it_takes_nan() -> None:
    assert math.isnan(parse(b"NaN"))


@pytest.mark.parametrize("document", REFUSED)
def test_it_refuses_what_the_library_refuses(document: bytes) -> None:
    def refusal(step: Callable[[bytes], Any]) -> tuple[type[Exception], str]:
        try:
            return type(None), str(step(document))  # type: ignore[return-value]
        except ValueError as error:
            return type(error), str(error)

    expected = refusal(json.loads)
    assert issubclass(expected[0], ValueError)
    assert refusal(parse) == expected


class Body(BaseModel):
    a: str


def test_fastapi_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def recording(body: bytes) -> Any:
        seen.append(body)
        return parse(body)

    monkeypatch.setattr(Request, "json", Request.json)  # put back afterwards
    monkeypatch.setattr("vora_serve.engine.json_bodies.parse", recording)
    parse_bodies_fast()
    app = FastAPI()

    @app.post("/")
    async def answer(body: Body) -> str:
        return body.a

    with TestClient(app) as client:
        assert client.post("/", content='{"a": "é"}', headers=JSON).json() == "é"
        bad = client.post("/", content="{", headers=JSON)
    assert seen == ['{"a": "é"}'.encode(), b"{"]
    assert bad.status_code == 422
    assert bad.json()["detail"][0]["type"] == "json_invalid"
