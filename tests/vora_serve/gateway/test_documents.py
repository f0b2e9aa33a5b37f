"""Files in requests: pages become images like any other, and hostile files become refusals."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from tests.vora_serve.gateway.conftest import LiveGateway, Start, make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine
from tests.vora_serve.gateway.fake_web import FakeWeb, response, serving
from tests.vora_serve.gateway.pdf_files import (
    BLUE,
    GREEN,
    HARMLESS,
    HOSTILE,
    RED,
    pages,
)
from tests.vora_serve.gateway.test_streams import until
from vora_core.ready_pixels import MEDIA_TYPE
from vora_serve.documents import sandbox
from vora_serve.gateway.images import documents

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="PDF files are rendered on Linux")


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def data_url(content: bytes) -> str:
    return f"data:application/pdf;base64,{base64_of(content)}"


def file_part(content: bytes, **more: str) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "a.pdf", "file_data": data_url(content), **more}}


def show(gateway: LiveGateway, *contents: bytes) -> httpx.Response:
    return gateway.chat([{"type": "text", "text": "?"}, *map(file_part, contents)])


def colours(payload: dict[str, Any]) -> list[Any]:
    """What the engine was sent, in order: texts, and of images the colour in the middle."""
    found: list[Any] = []
    for message in payload.get("messages", payload.get("input")):
        for part in message["content"]:
            holder = part.get("image_url")
            if holder is None:
                found.append(part["text"])
                continue
            url = holder["url"] if isinstance(holder, dict) else holder
            image = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
            middle = image.getpixel((image.width // 2, image.height // 2))
            assert isinstance(middle, tuple)
            found.append(tuple(value // 255 for value in middle))
    return found


def test_pages_take_the_place_of_their_file(gateway: LiveGateway, engine: FakeEngine) -> None:
    image = f"data:image/png;base64,{base64_of(make_image(colour=(0, 0, 255)))}"
    answer = gateway.chat(
        [
            {"type": "text", "text": "before"},
            file_part(pages(RED, GREEN)),
            {"type": "image_url", "image_url": {"url": image}},
            file_part(pages(GREEN, BLUE)),
            {"type": "text", "text": "after"},
        ]
    )
    assert answer.status_code == 200, answer.text
    seen = colours(engine.seen[-1])
    assert seen == ["before", RED, GREEN, BLUE, GREEN, BLUE, "after"]
    assert answer.headers["x-vora-images"].startswith("417x278, ")  # 300 x 200 points at 100 dpi


def test_responses_take_files(gateway: LiveGateway, engine: FakeEngine) -> None:
    part = {"type": "input_file", "filename": "a.pdf", "file_data": base64_of(pages(RED, GREEN))}
    content = [{"type": "input_text", "text": "?"}, part]
    body = {"model": "vora-test", "input": [{"role": "user", "content": content}]}
    answer = gateway.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert colours(engine.seen[-1]) == ["?", RED, GREEN]


@pytest.mark.parametrize("kind", ["base64", "url"])
def test_messages_take_documents(engine: FakeEngine, start_gateway: Start, kind: str) -> None:
    with serving(FakeWeb()) as web:
        web.pages["/a.pdf"] = response(pages(RED, GREEN))
        gateway = start_gateway(engine.url, images={"allow_networks": ["127.0.0.0/8"]})
        source = {"type": "base64", "media_type": "application/pdf", "data": base64_of(pages(RED))}
        if kind == "url":
            source = {"type": "url", "url": web.url("/a.pdf")}
        content = [{"type": "document", "title": "Paper", "source": source}]
        body = {
            "model": "vora-test",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": content}],
        }
        answer = gateway.client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert colours(engine.seen[-1]) == ["Paper\n", *([RED] if kind == "base64" else [RED, GREEN])]


def test_files_by_url_go_the_way_of_images(engine: FakeEngine, start_gateway: Start) -> None:
    with serving(FakeWeb()) as web:
        web.pages["/a.pdf"] = response(pages(BLUE))
        part = {"type": "input_file", "file_url": web.url("/a.pdf")}
        body = {"model": "vora-test", "input": [{"role": "user", "content": [part]}]}
        closed = start_gateway(engine.url).client.post("/v1/responses", json=body)
        assert closed.status_code == 400
        error = closed.json()["error"]
        assert error["code"] == "file_host_refused"
        assert error["param"] == "input[0].content[0].file_url"
        assert "image" not in error["message"]
        assert not web.connections
        gateway = start_gateway(engine.url, images={"allow_networks": ["127.0.0.0/8"]})
        assert gateway.client.post("/v1/responses", json=body).status_code == 200
    assert colours(engine.seen[-1]) == [BLUE]


def test_an_image_may_come_as_a_file(gateway: LiveGateway, engine: FakeEngine) -> None:
    assert show(gateway, make_image(colour=(255, 0, 0))).status_code == 200
    assert colours(engine.seen[-1]) == ["?", RED]


def test_engines_of_vora_get_ready_pixels(engine: FakeEngine, start_gateway: Start) -> None:
    engine.looks = False
    engine.image_settings = {
        "resolution": "native", "patch_size": 14, "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "min_pixels": 3136, "max_pixels": 200704,
    }  # fmt: skip
    gateway = start_gateway(engine.url)
    answer = show(gateway, pages(RED, GREEN))
    assert answer.status_code == 200, answer.text
    urls = [part["image_url"]["url"] for part in engine.seen[-1]["messages"][0]["content"][1:]]
    assert [url.partition(";")[0] for url in urls] == [f"data:{MEDIA_TYPE}"] * 2
    assert gateway.state.bodies.used == 0


def test_a_file_is_rendered_once_for_all_turns(
    gateway: LiveGateway, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    create = asyncio.create_subprocess_exec

    async def counting(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(options)
        return await create(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", counting)
    for _ in range(3):
        assert show(gateway, pages(RED, BLUE)).status_code == 200
    assert len(started) == 1
    assert started[0]["env"] == {}
    assert colours(engine.seen[0]) == colours(engine.seen[2])
    assert gateway.state.bodies.used == 0


def test_limits_are_named(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(
        engine.url,
        images={"max_count": 3},
        documents={"max_count": 2, "max_bytes": 20_000, "max_pages": 4},
    )
    for contents, status, code, words in (
        ([pages(RED)] * 3, 400, "too_many_files", "3 files; at most 2"),
        ([pages(RED) + b" " * 20_000], 413, "file_too_large", "documents.max_bytes, 20000 bytes"),
        ([pages(*[RED] * 4)], 400, "too_many_pages", "4 pages; at most 3"),
        ([pages(RED, RED), pages(RED, RED)], 400, "too_many_pages", "2 pages; at most 1"),
    ):
        answer = show(gateway, *contents)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), error
        assert words in error["message"]
    assert not engine.seen


def renderers() -> list[int]:
    """Processes of this one that render."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("vora_serve.documents" in part for part in child.cmdline()):
                found.append(child.pid)
    return found


def test_rendering_takes_no_longer_than_its_limit(
    engine: FakeEngine, start_gateway: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for a file that keeps the renderer busy."""
    busy = "import time; time.sleep(120)  # as vora_serve.documents"
    monkeypatch.setattr("vora_serve.gateway.images.pages._PROGRAM", busy)
    gateway = start_gateway(engine.url, documents={"timeout_s": 0.5})
    answer = show(gateway, pages(RED))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "file_timeout"
    until(lambda: not renderers(), within=10)


@pytest.mark.parametrize(
    ("missing", "words"),
    [("extra", "vora-serve[pdf]"), ("machine", "this server's machine"), ("setting", "not taken")],
)
def test_without_a_renderer(
    engine: FakeEngine,
    start_gateway: Start,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    words: str,
) -> None:
    if missing == "extra":
        monkeypatch.setattr(documents, "find_spec", lambda _: None)
    if missing == "machine":
        monkeypatch.setattr(sandbox, "available", lambda: False)
    gateway = start_gateway(engine.url, documents={"enabled": missing != "setting"})
    answer = show(gateway, pages(RED))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_file")
    assert words in error["message"]
    assert error["param"].startswith("messages[0].content[1]")


@pytest.mark.parametrize(
    "file",
    [
        {},
        {"file_data": "x", "file_id": "y"},
        {"filename": "a.pdf"},
        {"file_data": "!"},
        {"file_url": ""},
    ],
)
def test_malformed_parts(gateway: LiveGateway, file: dict[str, str]) -> None:
    answer = gateway.chat([{"type": "file", "file": file}])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages[0].content[0].file")


# ------------------------------------------------------------------------------------- attacks


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[LiveGateway, FakeEngine]]:
    from contextlib import ExitStack

    from tests.vora_serve.gateway.fake_engine import ThreadServer, running
    from vora_serve.gateway import create_app, load_settings

    with ExitStack() as stack:
        engine = stack.enter_context(running(FakeEngine()))
        settings = load_settings(
            flags={
                "upstreams": [engine.url],
                "documents": {"max_memory_bytes": 256 * 2**20, "cache_bytes": 0},
                "logging": {"access": False},
            }
        )
        app = create_app(settings)
        server = ThreadServer(app)
        port = server.start()
        stack.callback(server.stop)
        gateway = LiveGateway(server, app.state.gateway, port)
        stack.callback(gateway.client.close)
        yield gateway, engine


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(guarded: tuple[LiveGateway, FakeEngine], name: str) -> None:
    gateway, engine = guarded
    content, status, code = HOSTILE[name]
    before = psutil.Process().memory_info().rss
    engine.seen.clear()
    answer = show(gateway, content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert error["param"].startswith("messages[0].content[1].file")
    assert "\n" not in error["message"]
    assert not engine.seen
    assert gateway.state.bodies.used == 0
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_files(guarded: tuple[LiveGateway, FakeEngine], name: str) -> None:
    gateway, engine = guarded
    answer = show(gateway, HARMLESS[name])
    assert answer.status_code == 200, answer.text
    width, height = engine.image_sizes[-1]
    assert width * height < 1_010_000


def in_sandbox(code: str, lock: bool) -> str:
    """What a program prints, with or without its rights."""
    program = f"""
import ctypes, os, resource, signal, socket, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from vora_serve.documents.sandbox import lock_down
def attempt():
{code}
if {lock}:
    lock_down(256 * 2**20, 5)
try:
    attempt()
    result = "done"
except MemoryError:
    result = "MemoryError"
except (OSError, ValueError) as error:  # the module resource says EPERM so
    result = type(error).__name__
sys.stdout.write(result)
sys.stdout.flush()
"""
    return subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60
    ).stdout


ATTEMPTS = {
    "read a file": "    open('/etc/hostname').read()",
    "write a file": "    open('/tmp/vora-sandbox-test', 'w').write('x')",
    "list a folder": "    os.listdir('/')",
    "open a socket": "    socket.socket()",
    "start a program": "    subprocess.run(['/bin/true'])",
    "fork": "    os.fork() or os._exit(0)",
    "signal its parent": "    os.kill(os.getppid(), 0)",
    "become root again": "    os.setresuid(0, 0, 0)",
    "raise its limits": "    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "look at another process": "    os.readlink(f'/proc/{os.getppid()}/exe')",
    "fill the memory": "    bytes(300 * 2**20)",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_renderer_has_no_rights(name: str) -> None:
    if name == "become root again" and os.geteuid() != 0:
        pytest.skip("not root")
    assert in_sandbox(ATTEMPTS[name], lock=False) == "done"  # the control
    assert in_sandbox(ATTEMPTS[name], lock=True) in (
        "PermissionError",
        "ValueError",
        "MemoryError",
    )


def test_the_renderer_ends_when_its_time_is_up() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from vora_serve.documents.sandbox import lock_down
lock_down(256 * 2**20, 1)
while True:
    pass
"""
    status = subprocess.run([sys.executable, "-I", "-c", program], timeout=60).returncode
    assert status < 0


def test_what_a_taken_over_renderer_sends_is_not_believed(
    gateway: LiveGateway, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for a renderer in the hands of a hostile file."""
    from vora_serve.gateway.images import pages as module

    def lie(sent: bytes) -> httpx.Response:
        program = f"import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write({sent!r})"
        monkeypatch.setattr(module, "_PROGRAM", program)
        return show(gateway, pages(RED))

    def record(kind: bytes, content: bytes) -> bytes:
        return kind + len(content).to_bytes(4, "big") + content

    end = record(b"e", b"")
    for sent in (
        b"",
        b"p",
        record(b"p", make_image()),  # no end
        record(b"p", b"<html>") + end,
        b"p\xff\xff\xff\xff" + b"x" * 100,
        record(b"p", make_image()) * 17 + end,
        record(b"r", b"{"),
        record(b"r", json.dumps({"code": "too_many_pages", "pages": "x"}).encode()),
        record(b"r", b"[]"),
        record(b"z", b"") + end,
    ):
        answer = lie(sent)
        assert answer.status_code == 400, sent[:40]
        assert "\n" not in answer.json()["error"]["message"]
    assert not engine.seen
