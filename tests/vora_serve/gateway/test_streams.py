"""Streams: clients that leave, engines that die, fall silent or are slow."""

from __future__ import annotations

import gc
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import httpx
import openai
import pytest
from PIL import Image

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer
from tests.vora_serve.gateway.fake_web import FakeWeb, response, serving
from tests.vora_serve.gateway.test_attacks import silence
from tests.vora_serve.gateway.test_chat import data_url, events
from vora_serve.gateway.forward import Outgoing
from vora_serve.gateway.relay import StreamState

T = TypeVar("T")


def until(condition: Callable[[], Any], within: float = 30.0) -> None:
    """Wait for a condition; the bound is for tests that fail, on any machine."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, "it never came to be"
        time.sleep(0.005)


def body(stream: bool, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "x"}]
    return {"model": "vora-test", "messages": messages, "stream": stream, **more}


@contextmanager
def asking(gateway: LiveGateway, payload: dict[str, Any]) -> Iterator[socket.socket]:
    """A client that has sent a request; it leaves at the end, answered or not."""
    content = json.dumps(payload).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        connection.sendall(head.encode() + content)
        yield connection


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_prefill(gateway: LiveGateway, engine: FakeEngine, stream: bool) -> None:
    engine.first_delay_s = 300  # far longer than the test may take
    with asking(gateway, body(stream)):
        until(lambda: engine.running == 1)
    until(lambda: engine.cancelled == 1)
    until(lambda: not gateway.state.active)
    assert gateway.state.queue.in_flight == 0


def test_leaving_after_a_large_body(gateway: LiveGateway, engine: FakeEngine) -> None:
    """The server stops reading while a large body waits; it must go on, or it sees nobody leave."""
    engine.first_delay_s = 300
    noise = io.BytesIO()
    Image.effect_noise((500, 500), 90).save(noise, "PNG")
    part = {"type": "image_url", "image_url": {"url": data_url(noise.getvalue())}}
    payload = body(False, messages=[{"role": "user", "content": [part]}])
    for turn in range(1, 6):  # how the body is cut into pieces is up to the system
        with asking(gateway, payload):
            until(lambda: engine.running == 1)
        until(lambda turn=turn: engine.cancelled == turn)  # type: ignore[misc]


def test_leaving_in_decode(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.words = ["word "] * 10_000
    engine.delay_s = 0.05  # 500 s in all
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body(True)) as answer:
        for _, _line in zip(range(5), answer.iter_lines(), strict=False):
            pass
    until(lambda: engine.cancelled == 1)
    assert engine.running == 0


def test_leaving_the_queue(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, admission={"max_in_flight": 1})
    engine.first_delay_s = 300
    with asking(gateway, body(False)):
        until(lambda: engine.running == 1)
        with asking(gateway, body(False)):
            until(lambda: gateway.state.queue.queued == 1)
        until(lambda: gateway.state.queue.queued == 0)
        assert engine.running == 1, "the place in flight is still taken"
    until(lambda: not gateway.state.active)
    assert len(engine.seen) == 1, "the one that left never reached the engine"


def test_leaving_while_images_are_fetched(engine: FakeEngine, start_gateway: Start) -> None:
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/silence"] = silence
        images = {"allow_networks": ["127.0.0.2/32"], "timeout_s": 300, "total_timeout_s": 300}
        gateway = start_gateway(engine.url, images=images)
        part = {"type": "image_url", "image_url": {"url": web.url("/silence")}}
        payload = body(True, messages=[{"role": "user", "content": [part]}])
        with asking(gateway, payload):
            until(lambda: web.open == 1)
        until(lambda: not gateway.state.active)
        assert not engine.seen


def test_a_hundred_slow_image_hosts_keep_no_text_out(
    engine: FakeEngine, start_gateway: Start
) -> None:
    """Images are fetched before a place in flight is taken."""
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/silence"] = silence
        images = {"allow_networks": ["127.0.0.2/32"], "timeout_s": 300, "total_timeout_s": 300}
        admission = {"max_in_flight": 2, "max_queued": 2}
        gateway = start_gateway(engine.url, images=images, admission=admission)
        part = {"type": "image_url", "image_url": {"url": web.url("/silence")}}
        payload = body(False, messages=[{"role": "user", "content": [part]}])
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(asking(gateway, payload))
            until(lambda: web.open == 64)  # fetches that run at a time
            for _ in range(5):
                assert gateway.chat().status_code == 200
            assert gateway.state.queue.in_flight == 0
        until(lambda: not gateway.state.active)


def test_an_engine_that_dies_mid_stream(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.die_after = 2
    got = events(gateway.chat(stream=True).text)
    assert got[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in got
    assert [event["choices"][0]["delta"]["content"] for event in got[:-1]] == ["a", " red"]
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(**body(True)))


def test_an_engine_that_falls_silent(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(
        engine.url, routing={"idle_timeout_s": 0.6}, streams={"heartbeat_s": 0.1}
    )
    engine.first_delay_s = 300
    text = gateway.chat(stream=True).text
    assert text.count(": heartbeat") >= 3
    assert events(text)[-1]["error"]["code"] == "engine_timeout"
    until(lambda: engine.cancelled == 1)


def test_heartbeats_do_not_disturb_clients(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, streams={"heartbeat_s": 0.05})
    engine.first_delay_s = 0.4
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    chunks = list(client.chat.completions.create(**body(True)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "a red circle"


def test_the_deadline_in_prefill_and_in_decode(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, admission={"request_timeout_s": 0.5})
    engine.first_delay_s = 30
    answer = gateway.chat()
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    engine.first_delay_s = 0
    engine.words = ["word "] * 100
    engine.delay_s = 0.05
    got = events(gateway.chat(stream=True).text)
    assert got[-1]["error"]["code"] == "deadline_exceeded"
    until(lambda: engine.running == 0)


def test_a_client_that_reads_nothing_is_dropped(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, streams={"write_timeout_s": 0.5})
    engine.words = ["word " * 20_000] * 400
    with asking(gateway, body(True)):
        until(lambda: gateway.state.active)
        until(lambda: not gateway.state.active, within=60)
    until(lambda: engine.running == 0)


def alive(kind: type[T]) -> list[T]:
    """All objects of a kind in this process, in which the gateway runs too."""
    gc.collect()
    # isinstance would ask lazy objects of other libraries for their class, and they warn or import.
    return [thing for thing in gc.get_objects() if type(thing) is kind]


def test_backpressure(gateway: LiveGateway, engine: FakeEngine) -> None:
    """A slow reader slows the engine; the gateway does not hold the rest."""
    engine.words = ["word " * 20_000] * 400
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body(True)) as answer:
        lines = answer.iter_raw()
        next(lines)
        time.sleep(0.5)
        (stream,) = alive(StreamState)
        assert 0 < stream.events < 400, "all of it was swallowed"
        total = sum(len(piece) for piece in lines)
    assert total > 30_000_000


def test_a_thousand_events_arrive_in_order(gateway: LiveGateway, engine: FakeEngine) -> None:
    engine.words = [f"{index} " for index in range(1000)]
    got = events(gateway.chat(stream=True).text)
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in got[:-1])
    assert text == "".join(engine.words)


def test_slow_bodies(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, server={"body_timeout_s": 0.3, "max_body_bytes": 1000})
    host, port = gateway.url.removeprefix("http://").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + b"content-length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(1000)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            connection.sendall(b"200\r\n" + b" " * 512 + b"\r\n")
        assert b" 413 " in connection.recv(1000)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + b"content-length: 1001\r\n\r\n")
        assert b" 413 " in connection.recv(1000)
    assert gateway.state.bodies.used == 0


@contextmanager
def sending(gateway: LiveGateway, size: int) -> Iterator[None]:
    """A client that has sent so many bytes of a larger body, and sends no more."""
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {size + 1}\r\n\r\n"
        )
        connection.sendall(head.encode() + b" " * size)
        until(lambda: gateway.state.bodies.used >= size)
        yield
    until(lambda: gateway.state.bodies.used == 0)


def refused_for_now(answer: httpx.Response) -> None:
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "memory_full"
    assert int(answer.headers["retry-after"]) > 0


def refused_for_good(answer: httpx.Response) -> None:
    assert answer.status_code == 413
    assert "server.max_body_memory_bytes" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers


def test_body_memory_is_bounded(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, server={"max_body_memory_bytes": 3000})
    refused_for_good(gateway.chat("x" * 3000))
    with sending(gateway, 2000):
        refused_for_now(gateway.chat("x" * 1000))
    assert gateway.chat("x" * 1000).status_code == 200


def test_fetched_images_count_into_memory(engine: FakeEngine, start_gateway: Start) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(buffer, "PNG")
    size = buffer.tell()
    with serving(FakeWeb("127.0.0.2")) as web:
        web.pages["/large"] = response(buffer.getvalue())
        web.pages["/small"] = response(make_image())
        images = {"allow_networks": ["127.0.0.2/32"]}
        small = start_gateway(
            engine.url, images=images, server={"max_body_memory_bytes": size // 2}
        )
        refused_for_good(small.show(web.url("/large")))
        assert small.show(web.url("/small")).status_code == 200
        # As a file, then as what is sent of it, in the request that is sent.
        roomy = start_gateway(engine.url, images=images, server={"max_body_memory_bytes": 8 * size})
        with sending(roomy, 7 * size + size // 2):
            refused_for_now(roomy.show(web.url("/large")))
            assert roomy.show(web.url("/small")).status_code == 200
        assert roomy.show(web.url("/large")).status_code == 200
    until(lambda: roomy.state.bodies.used == small.state.bodies.used == 0)


def test_images_are_let_go_once_the_engine_answers(
    gateway: LiveGateway, engine: FakeEngine
) -> None:
    engine.first_delay_s = 300
    content = [{"type": "image_url", "image_url": {"url": data_url(make_image())}}]
    payload = body(True, messages=[{"role": "user", "content": content}])
    earlier = alive(Outgoing)  # of other tests; held, so that their places in memory stay taken
    with asking(gateway, payload):
        until(lambda: engine.running == 1 and gateway.state.bodies.used == 0)
        (outgoing,) = (one for one in alive(Outgoing) if all(one is not old for old in earlier))
        assert not outgoing.body


def test_media_types(gateway: LiveGateway) -> None:
    path = "/v1/chat/completions"
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = gateway.client.post(path, content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415
    headers = {"content-type": "application/json", "content-encoding": "br"}
    assert gateway.client.post(path, content=b"x", headers=headers).status_code == 415


def test_draining(engine: FakeEngine) -> None:
    """Asked to stop: not ready at once, the stream finishes, new requests are refused."""
    import asyncio

    import uvloop

    from vora_serve.gateway import create_app, load_settings
    from vora_serve.gateway.listen import bind
    from vora_serve.gateway.server import serve

    engine.words = ["word "] * 60
    engine.delay_s = 0.05
    settings = load_settings(
        flags={
            "upstreams": [engine.url],
            "server": {"drain_delay_s": 2, "grace_period_s": 60},
            "logging": {"access": False},
        }
    )
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    loops: list[Any] = []
    started = threading.Event()

    async def main() -> None:
        stop = asyncio.Event()
        app = create_app(settings)
        loops.extend((asyncio.get_running_loop(), stop, app.state.gateway))
        await serve(app, settings, listener, stop, started.set)

    thread = threading.Thread(target=lambda: uvloop.run(main()))
    thread.start()
    started.wait(10)
    answers: list[str] = []

    def ask() -> None:
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=body(True), timeout=30).text)

    thread_asking = threading.Thread(target=ask)
    thread_asking.start()
    until(lambda: engine.running == 1)
    loops[0].call_soon_threadsafe(loops[1].set)
    until(lambda: httpx.get(f"{url}/ready").status_code == 503)
    assert not loops[2].closing, "not ready at once, while requests are still taken"
    until(lambda: loops[2].closing)
    late = httpx.post(f"{url}/v1/chat/completions", json=body(False))
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "draining"
    thread_asking.join(60)
    thread.join(60)
    assert not thread.is_alive()
    assert events(answers[0])[-1] == "[DONE]"


def test_a_killed_engine(start_gateway: Start) -> None:
    second = FakeEngine()
    server = ThreadServer(second.app())
    port = server.start()
    second.words = ["word "] * 100
    second.delay_s = 0.05
    gateway = start_gateway(f"http://127.0.0.1:{port}", routing={"health_interval_s": 0.1})
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(gateway.chat(stream=True).text))
    thread.start()
    until(lambda: second.running == 1)
    server.kill()
    thread.join(5)
    assert not thread.is_alive()
    assert events(texts[0])[-1]["error"]
    until(lambda: gateway.client.get("/ready").status_code == 503)
    answer = gateway.chat()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
