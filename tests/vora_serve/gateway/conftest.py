"""A live gateway over a real socket, in front of a fake engine."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer, running
from vora_serve.gateway import create_app, load_settings
from vora_serve.gateway.images import Resolver
from vora_serve.gateway.state import GatewayState


class LiveGateway:
    """A running gateway and a plain client for it."""

    def __init__(self, server: ThreadServer, state: GatewayState, port: int) -> None:
        self.server = server
        self.state = state
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def chat(self, content: Any = "hello", **more: Any) -> httpx.Response:
        body = {"model": "vora-test", "messages": [{"role": "user", "content": content}], **more}
        return self.client.post("/v1/chat/completions", json=body)

    def show(self, *urls: str, text: str = "what is it?", **more: Any) -> httpx.Response:
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return self.chat(parts, **more)


Start = Callable[..., LiveGateway]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with running(FakeEngine()) as fake:
        yield fake


@pytest.fixture
def start_gateway() -> Iterator[Start]:
    """Starts gateways: ``start(url, ..., images={...})``; stopped at the test's end."""
    with ExitStack() as stack:

        def start(*urls: str, resolver: Resolver | None = None, **tree: Any) -> LiveGateway:
            tree.setdefault("logging", {"access": False})
            settings = load_settings(flags={"upstreams": list(urls), **tree})
            app = create_app(settings, resolver)
            server = ThreadServer(app)
            port = server.start()
            stack.callback(server.stop)
            gateway = LiveGateway(server, app.state.gateway, port)
            stack.callback(gateway.client.close)
            return gateway

        yield start


@pytest.fixture
def gateway(engine: FakeEngine, start_gateway: Start) -> LiveGateway:
    return start_gateway(engine.url)


def make_image(
    width: int = 32, height: int = 24, colour: Any = (200, 30, 30), kind: str = "PNG", **save: Any
) -> bytes:
    """An image file."""
    mode = save.pop("mode", "RGB")
    buffer = io.BytesIO()
    Image.new(mode, (width, height), colour).save(buffer, kind, **save)
    return buffer.getvalue()
