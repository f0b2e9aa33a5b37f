"""Several engines: choice, failover, circuit breaker, stale connections, reloading."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vora_serve.gateway.conftest import Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine, running
from tests.vora_serve.gateway.test_chat import data_url
from tests.vora_serve.gateway.test_streams import until
from vora_core.errors import NotFoundError, UnavailableError
from vora_serve.gateway.settings import RoutingSettings, UpstreamSettings
from vora_serve.gateway.upstreams import Balancer, Upstream
from vora_serve.gateway.upstreams.breaker import CircuitBreaker


@pytest.fixture
def engines() -> Iterator[list[FakeEngine]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(FakeEngine())) for _ in range(3)]


def test_unix_socket(tmp_path: Path, start_gateway: Start) -> None:
    with running(FakeEngine(), uds=tmp_path / "engine.sock") as engine:
        assert start_gateway(engine.url).chat().status_code == 200


def test_work_is_spread(engines: list[FakeEngine], start_gateway: Start) -> None:
    urls = [engine.url for engine in engines]
    gateway = start_gateway(*urls, routing={"affinity": False})
    for engine in engines:
        engine.first_delay_s = 0.3
    threads = [threading.Thread(target=gateway.chat, args=(f"{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(engine.seen) for engine in engines) == [4, 4, 4]


def test_affinity(engines: list[FakeEngine], start_gateway: Start) -> None:
    """The same image goes where it is cached, whatever is asked about it."""
    gateway = start_gateway(*[engine.url for engine in engines])
    for colour in range(6):
        url = data_url(make_image(colour=(colour * 40, 9, 9)))
        before = [len(engine.seen) for engine in engines]
        for index in range(4):
            gateway.show(url, text=f"question {index}")
        grown = [len(engine.seen) - old for engine, old in zip(engines, before, strict=True)]
        assert sorted(grown) == [0, 0, 4]


def test_failover_when_nothing_was_sent(engines: list[FakeEngine], start_gateway: Start) -> None:
    routing = {"affinity": False, "retries": 2}
    gateway = start_gateway(*[engine.url for engine in engines], routing=routing)
    # All are believed to be up, but two of them refuse connections.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    first, second, third = gateway.state.balancer.upstreams
    for upstream in (first,):
        upstream.pool.close()
        upstream.pool.endpoint = type(upstream.pool.endpoint)("127.0.0.1", free)
    assert gateway.chat().status_code == 200
    second.pool.close()
    second.pool.endpoint = type(second.pool.endpoint)("127.0.0.1", free)
    assert {gateway.chat().status_code for _ in range(3)} == {200}
    third.pool.close()
    third.pool.endpoint = type(third.pool.endpoint)("127.0.0.1", free)
    assert gateway.chat().status_code == 503


def test_no_retry_after_the_request_was_sent(
    engines: list[FakeEngine], start_gateway: Start
) -> None:
    """An engine that answers 500 has seen the request: it is not run a second time elsewhere."""
    gateway = start_gateway(*[engine.url for engine in engines])
    for engine in engines:
        engine.status = 500
    answer = gateway.chat()
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "upstream_error"
    assert sum(len(engine.seen) for engine in engines) == 1


def test_stale_connections_are_replaced(start_gateway: Start) -> None:
    """An engine that closes its kept-alive connections loses no request."""
    stop = threading.Event()
    served = []

    def serve(listener: socket.socket) -> None:
        while not stop.is_set():
            connection, _ = listener.accept()
            threading.Thread(target=once, args=(connection,), daemon=True).start()

    def once(connection: socket.socket) -> None:
        """Answers one request as if the connection stayed, then hangs up on the next."""
        with connection:
            head = connection.recv(65536)
            if not head:
                return
            path = head.split(b" ")[1]
            if path == b"/v1/models":
                body = b'{"data": [{"id": "vora-test"}]}'
            elif path == b"/health":
                body = b""
            else:
                served.append(path)
                body = b'{"choices": [], "usage": {"prompt_tokens": 1}}'
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            connection.recv(65536)  # the next request arrives, and the connection goes down

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        gateway = start_gateway(
            f"http://127.0.0.1:{listener.getsockname()[1]}", routing={"health_interval_s": 60}
        )
        assert [gateway.chat().status_code for _ in range(10)] == [200] * 10
        assert len(served) == 10
        stop.set()
        socket.create_connection(listener.getsockname()).close()


@pytest.mark.parametrize(
    ("status", "message", "expected", "code"),
    [
        (400, "maximum context length is 10 tokens", 400, "context_length_exceeded"),
        (400, "At most 1 image(s) may be provided", 400, "invalid_image"),
        (400, "bad grammar in /usr/lib/x.py at <A object at 0x7f00>", 400, "invalid_value"),
        (404, "no such model", 404, "not_found"),
        (422, "unprocessable", 400, "invalid_value"),
        (429, "busy", 429, "engine_busy"),
        (500, "boom", 502, "engine_error"),
        (503, "overloaded", 503, "engine_unavailable"),
    ],
)
def test_engine_errors(
    start_gateway: Start, status: int, message: str, expected: int, code: str
) -> None:
    with running(FakeEngine(status=status, error_message=message)) as engine:
        answer = start_gateway(engine.url).chat()
    assert answer.status_code == expected
    error = answer.json()["error"]
    assert error["code"] == code
    assert "/usr" not in error["message"]
    assert "0x7f00" not in error["message"]


def test_answers_that_are_no_json(start_gateway: Start) -> None:
    with running(FakeEngine()) as engine:
        gateway = start_gateway(engine.url)
        engine.non_streaming = lambda *_: "nonsense"  # type: ignore[method-assign, assignment]
        assert gateway.chat().status_code == 502


def test_no_engine_at_all(start_gateway: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    gateway = start_gateway(f"http://127.0.0.1:{free}")
    answer = gateway.chat()
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert gateway.client.get("/health").status_code == 200
    assert gateway.client.get("/ready").status_code == 503


def test_an_unhealthy_engine_gets_nothing(engines: list[FakeEngine], start_gateway: Start) -> None:
    gateway = start_gateway(
        *[engine.url for engine in engines], routing={"health_interval_s": 0.05}
    )
    for engine in engines[1:]:
        engine.healthy = False
    upstreams = gateway.state.balancer.upstreams
    until(lambda: sum(upstream.healthy for upstream in upstreams) == 1)
    for index in range(10):
        assert gateway.chat(f"{index}").status_code == 200
    assert [len(engine.seen) for engine in engines] == [10, 0, 0]
    engines[1].healthy = True
    until(lambda: sum(upstream.healthy for upstream in upstreams) == 2)


def test_models_of_different_engines(start_gateway: Start) -> None:
    with running(FakeEngine(model="one")) as one, running(FakeEngine(model="two")) as two:
        gateway = start_gateway(one.url, two.url)
        assert gateway.chat(model="one").status_code == 200
        assert gateway.chat(model="two").status_code == 200
        assert (len(one.seen), len(two.seen)) == (1, 1)
        names = [card["id"] for card in gateway.client.get("/v1/models").json()["data"]]
        assert sorted(names) == ["one", "two"]


def test_reloading_engines(engines: list[FakeEngine], start_gateway: Start) -> None:
    """New ones join after their first probe; removed ones get nothing new but finish."""
    first, second, _ = engines
    gateway = start_gateway(first.url, routing={"health_interval_s": 0.05})
    first.first_delay_s = 1.0
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(gateway.chat().status_code))
    thread.start()
    until(lambda: first.running == 1)
    assert gateway.server.loop is not None
    gateway.server.loop.call_soon_threadsafe(
        gateway.state.reload_upstreams, [UpstreamSettings(url=second.url)]
    )
    until(lambda: gateway.client.get("/ready").status_code == 200)
    assert gateway.chat().status_code == 200
    assert len(second.seen) == 1
    thread.join()
    assert statuses == [200]
    metrics = gateway.client.get("/metrics").text
    gauges = re.findall(r'\nvora_gateway_upstream_up\{upstream="(.*?)"\}', metrics)
    assert gauges == [second.url]
    assert f'outcome="ok",upstream="{first.url}"' in metrics  # counters stay


def test_circuit_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vora_serve.gateway.upstreams.breaker.time.monotonic", lambda: now[0])
    breaker = CircuitBreaker(failures=3, open_s=10)
    for _ in range(2):
        breaker.fail()
    assert breaker.allows()
    breaker.fail()
    assert not breaker.allows()
    now[0] = 10
    assert breaker.allows()
    breaker.begin()
    assert not breaker.allows(), "one trial at a time"
    breaker.fail()
    now[0] = 19
    assert not breaker.allows()
    now[0] = 20
    breaker.begin()
    breaker.succeed()
    assert breaker.allows()


def test_the_breaker_opens_and_closes(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, routing={"breaker_failures": 3, "breaker_open_s": 0.3})
    engine.status = 500
    statuses = [gateway.chat().status_code for _ in range(5)]
    assert statuses == [502, 502, 502, 503, 503]
    assert len(engine.seen) == 3
    engine.status = 200
    until(lambda: gateway.chat().status_code == 200)
    assert gateway.chat().status_code == 200


def ready(url: str, **more: object) -> Upstream:
    settings = UpstreamSettings(url=url, **more)  # type: ignore[arg-type]
    upstream = Upstream(settings, RoutingSettings(), url)
    upstream.healthy = True
    upstream.models = {"m": {}}
    return upstream


def test_least_outstanding_tokens_by_weight() -> None:
    light, heavy = ready("http://a:1"), ready("http://b:1", weight=4.0)
    balancer = Balancer([light, heavy], RoutingSettings(affinity=False))
    light.outstanding_tokens, heavy.outstanding_tokens = 100, 300
    assert balancer.pick("m", None, set()) is heavy
    heavy.outstanding_tokens = 500
    assert balancer.pick("m", None, set()) is light


def test_affinity_is_bounded_by_load() -> None:
    upstreams = [ready(f"http://h{index}:1") for index in range(4)]
    balancer = Balancer(upstreams, RoutingSettings())
    home = balancer.pick("m", b"key", set())
    assert home is not None
    home.in_flight, home.outstanding_tokens = 1, 1000
    other = balancer.pick("m", b"key", set())
    assert other is not home
    for upstream in upstreams:
        upstream.in_flight, upstream.outstanding_tokens = 1, 900
    assert balancer.pick("m", b"key", set()) is home


def test_requirements_on_models() -> None:
    upstream = ready("http://a:1")
    balancer = Balancer([upstream], RoutingSettings())
    with pytest.raises(NotFoundError, match="'nope' does not exist"):
        balancer.require_model("nope")
    upstream.draining = True
    with pytest.raises(UnavailableError):
        balancer.require_model("m")
