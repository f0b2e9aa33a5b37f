"""JSON Web Tokens: who gets in, who does not, keys that rotate; and budgets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.vora_serve.gateway.conftest import LiveGateway, Start
from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer
from tests.vora_serve.gateway.test_tenants import ask, write_keys
from vora_core.errors import ConfigError
from vora_serve.gateway.admission import tokens as tokens_module
from vora_serve.gateway.admission.budgets import _end
from vora_serve.gateway.listen import check_exposure
from vora_serve.gateway.settings import load_settings

ISSUER, AUDIENCE = "https://login.example", "vora"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())


class Provider:
    """An OpenID provider's key set, over a real socket."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [jwk(RSA, "one"), jwk(EC, "curve")]
        self.asked = 0
        self.status = 200
        self.url = ""

    async def jwks(self, _: Request) -> Response:
        self.asked += 1
        return JSONResponse({"keys": self.keys}, self.status)


def jwk(key: Any, key_id: str) -> dict[str, Any]:

    public = key.public_key()
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else None
    text = (kind or jwt.algorithms.ECAlgorithm).to_jwk(public)
    return {**json.loads(text), "kid": key_id, "use": "sig"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    server = ThreadServer(Starlette(routes=[Route("/jwks", provider.jwks)]))
    provider.url = f"http://127.0.0.1:{server.start()}/jwks"
    yield provider
    server.stop()


@pytest.fixture
def secured(engine: FakeEngine, start_gateway: Start, provider: Provider) -> LiveGateway:
    return start_gateway(engine.url, auth={"jwt": token_settings(provider)})


def token_settings(provider: Provider, **more: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": provider.url, **more}


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now}
    return {name: value for name, value in {**base, **more}.items() if value is not None}


def signed(
    key: Any = RSA, key_id: str | None = "one", algorithm: str = "RS256", **more: Any
) -> str:
    headers = {"kid": key_id} if key_id is not None else {}
    return jwt.encode(claims(**more), key, algorithm, headers)


def models(gateway: LiveGateway, token: str) -> httpx.Response:
    return gateway.client.get("/v1/models", headers={"authorization": f"Bearer {token}"})


def test_valid_tokens(secured: LiveGateway, engine: FakeEngine) -> None:
    assert models(secured, signed()).status_code == 200
    assert models(secured, signed(EC, "curve", "ES256")).status_code == 200
    assert models(secured, signed(aud=["other", AUDIENCE])).status_code == 200
    assert secured.client.get("/v1/models").status_code == 401
    assert ask(secured, signed()).status_code == 200
    salt = engine.seen[-1]["cache_salt"]
    ask(secured, signed(sub="bob"))
    assert engine.seen[-1]["cache_salt"] != salt


def _unsecured(header: dict[str, Any], body: dict[str, Any], secret: bytes | None = None) -> str:
    def part(tree: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(tree).encode()).rstrip(b"=")

    text = part(header) + b"." + part(body)
    mac = hmac.digest(secret, text, hashlib.sha256) if secret is not None else b"\0"
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def forged() -> dict[str, str]:
    public = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    whole = signed()
    now = int(time.time())
    return {
        "another's signature": signed(OTHER),
        "its own key in the header": jwt.encode(
            claims(), OTHER, "RS256", {"kid": "one", "jwk": jwk(OTHER, "one")}
        ),
        "no algorithm": _unsecured({"alg": "none", "kid": "one"}, claims()),
        "NONE": _unsecured({"alg": "nOnE", "kid": "one"}, claims()),
        "the public key as a secret": _unsecured({"alg": "HS256", "kid": "one"}, claims(), public),
        "RS256 by name, HMAC by deed": _unsecured({"alg": "RS256", "kid": "one"}, claims(), public),
        "another algorithm": signed(algorithm="RS512"),
        "another key's algorithm": signed(EC, "one", "ES256"),
        "expired": signed(exp=now - 3600),
        "not yet": signed(nbf=now + 3600),
        "no end": signed(exp=None),
        "another audience": signed(aud="other"),
        "no audience": signed(aud=None),
        "another issuer": signed(iss="https://evil.example"),
        "no issuer": signed(iss=None),
        "no subject": signed(sub=None),
        "an unknown key": signed(OTHER, "unknown"),
        "no key id": signed(key_id=None),
        "cut": whole[:-10],
        "changed": whole.replace(whole.split(".")[1], whole.split(".")[1][::-1]),
        "too long": signed(extra="x" * 20_000),
        "malformed limits": signed(vora={"max_in_flight": "many"}),
        "a limit that is none": signed(vora={"scopes": ["metrics"]}),
        "a malformed rate": signed(vora={"requests": ["lots"]}),
    }


@pytest.mark.parametrize("how", forged())
def test_forged_tokens(secured: LiveGateway, how: str) -> None:
    answer = models(secured, forged()[how])
    assert answer.status_code == 401, how
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "Traceback" not in answer.text
    assert models(secured, signed()).status_code == 200


def test_scopes_and_limits(engine: FakeEngine, start_gateway: Start, provider: Provider) -> None:
    gateway = start_gateway(engine.url, auth={"jwt": token_settings(provider, group_claim="org")})
    assert models(gateway, signed()).status_code == 401, "a tenant is asked for"
    reader = signed(org="a", scope="openid models")
    assert models(gateway, reader).status_code == 200
    assert ask(gateway, reader).status_code == 403
    assert ask(gateway, signed(org="a", scope=["generate"])).status_code == 200
    salt = engine.seen[-1]["cache_salt"]
    assert ask(gateway, signed(org="a", sub="bob")).status_code == 200
    assert engine.seen[-1]["cache_salt"] == salt
    assert ask(gateway, signed(org="b")).status_code == 200
    assert engine.seen[-1]["cache_salt"] != salt
    limited = signed(org="c", vora={"requests": ["1/hour"], "models": ["vora-test"]})
    assert [ask(gateway, limited).status_code for _ in range(2)] == [200, 429]
    assert ask(gateway, signed(org="c", sub="d", vora={"models": []})).status_code == 404


def test_keys_rotate(
    secured: LiveGateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models(secured, signed()).status_code == 200
    assert models(secured, signed()).status_code == 200
    assert provider.asked == 1
    for number in range(20):
        assert models(secured, signed(OTHER, f"made-up-{number}")).status_code == 401
    assert provider.asked == 1, "made-up key ids do not reach the provider"
    monkeypatch.setattr(tokens_module, "_LEAST_REFRESH_S", 0.0)
    provider.keys = [jwk(OTHER, "two")]
    assert models(secured, signed(OTHER, "two")).status_code == 200
    assert models(secured, signed()).status_code == 401, "a key that was withdrawn"
    provider.status = 500
    assert models(secured, signed(EC, "curve", "ES256")).status_code == 401
    assert models(secured, signed(OTHER, "two")).status_code == 200, "an outage locks nobody out"


def test_a_provider_that_was_never_there(secured: LiveGateway, provider: Provider) -> None:
    provider.status = 500
    answer = models(secured, signed())
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


def test_keys_beside_tokens(
    engine: FakeEngine, start_gateway: Start, provider: Provider, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.yaml", a={})
    auth = {"jwt": token_settings(provider), "keys_file": str(tmp_path / "keys.yaml")}
    gateway = start_gateway(engine.url, auth=auth)
    assert models(gateway, keys["a"]).status_code == 200
    assert models(gateway, signed()).status_code == 200
    assert models(gateway, "wrong").status_code == 401


@pytest.mark.parametrize("algorithm", ["HS256", "none"])
def test_symmetric_algorithms_cannot_be_configured(algorithm: str) -> None:
    tree = {"issuer": "i", "audience": "a", "jwks_url": "https://x/", "algorithms": [algorithm]}
    with pytest.raises(ConfigError):
        load_settings(flags={"auth": {"jwt": tree}})


def test_tokens_are_enough_to_serve_others() -> None:
    tree = {"issuer": "i", "audience": "a", "jwks_url": "https://x/"}
    check_exposure(load_settings(flags={"server": {"host": "0.0.0.0"}, "auth": {"jwt": tree}}))


# ------------------------------------------------------------------- budgets


@pytest.mark.parametrize("period", ["day", "month"])
def test_budgets(engine: FakeEngine, start_gateway: Start, tmp_path: Path, period: str) -> None:
    """Each request uses 13 tokens: a tenant with 20 gets two, whichever of its keys it takes."""
    keys = write_keys(
        tmp_path / "keys.yaml",
        one={"group": "g", "budgets": {period: 20}},
        two={"group": "g", "budgets": {period: 20}},
        free={},
    )
    gateway = start_gateway(engine.url, auth={"keys_file": str(tmp_path / "keys.yaml")})
    assert ask(gateway, keys["one"]).status_code == 200
    assert ask(gateway, keys["two"], stream=True).status_code == 200
    answer = ask(gateway, keys["one"])
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert f"20 tokens per {period}" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) <= 86_400 * (1 if period == "day" else 31)
    assert ask(gateway, keys["two"]).status_code == 429
    assert ask(gateway, keys["free"]).status_code == 200


def test_ends_of_periods() -> None:
    at = datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert _end("day", at) == _end("month", at) == datetime(2028, 1, 1, tzinfo=UTC)
    assert _end("month", datetime(2028, 2, 1, tzinfo=UTC)) == datetime(2028, 3, 1, tzinfo=UTC)
