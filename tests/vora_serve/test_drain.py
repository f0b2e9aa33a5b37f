"""What is told to stop while streams run: all of ``vora-serve serve``, or an engine behind it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer, running

COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()"]
LIMIT_S = 240.0


def _body(text: str = "hi") -> dict[str, Any]:
    return {
        "model": "vora-test",
        "messages": [{"role": "user", "content": text}],
        "stream": True,
    }


@dataclass
class HeldEngine(FakeEngine):
    """Sends what it has but the end, until the test lets it go on: nothing here hangs on time."""

    released: threading.Event = field(default_factory=threading.Event)

    async def _stream(
        self, payload: dict[str, Any], path: str, image_tokens: int
    ) -> AsyncIterator[bytes]:
        async for event in super()._stream(payload, path, image_tokens):
            if b'"finish_reason":"stop"' in event:
                while not self.released.is_set():
                    await anyio.sleep(0.01)
            yield event


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Stream:
    """One streamed answer, read in a thread."""

    def __init__(self, url: str, text: str = "hi") -> None:
        self.lines: list[str] = []
        self._first: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(url, text), daemon=True)
        self._thread.start()

    def _read(self, url: str, text: str) -> None:
        with (
            httpx.Client(timeout=LIMIT_S, trust_env=False) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=_body(text)) as response,
        ):
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)
                    self._first.put(line)

    def begun(self) -> str:
        """Its first line, once there is one."""
        return self._first.get(timeout=LIMIT_S)

    def all(self) -> list[str]:
        """Its lines, once it has ended."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        return self.lines


@contextmanager
def service(engine: FakeEngine, workers: int, log: Path, *more: str) -> Iterator[tuple[Any, str]]:
    """The command as a user starts it, in front of the engine: its process and URL."""
    environment = {
        **os.environ,
        "VORA_SERVE_SERVER__GRACE_PERIOD_S": str(LIMIT_S),
        # The first to find the engine: as many workers, as many probes.
        "VORA_SERVE_ROUTING__HEALTH_INTERVAL_S": "0.1",
    }
    arguments = ["serve", "--upstream", engine.url, "--port", "0", "--workers", str(workers)]
    arguments += more
    with log.open("wb") as errors:
        process = subprocess.Popen([*COMMAND, *arguments], stderr=errors, env=environment)
    try:
        until(lambda: b" on http://127.0.0.1:" in log.read_bytes())
        url = log.read_text().split(" on ")[1].split()[0]
        until(lambda: _status(url) == 200)
        yield process, url
    finally:
        process.kill()
        process.wait(10)


def _status(url: str) -> int:
    """What ``/ready`` says; 0 where nobody answers."""
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_lets_streams_end(workers: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        running(HeldEngine()) as engine,
        service(engine, workers, log) as (process, url),
    ):
        assert isinstance(engine, HeldEngine)
        stream = Stream(url)
        assert "delta" in stream.begun()
        process.send_signal(signal.SIGTERM)
        until(lambda: _status(url) == 503)
        refused = httpx.post(f"{url}/v1/chat/completions", json=_body(), trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert process.poll() is None, "it waits for the stream"
        assert engine.cancelled == 0
        engine.released.set()
        assert stream.all()[-1] == "data: [DONE]"
        assert process.wait(LIMIT_S) == 0
        assert engine.cancelled == 0
    assert "Traceback" not in log.read_text()


def test_a_second_sigterm_cuts_streams(tmp_path: Path) -> None:
    """Also the control: this is how a stream looks that a stop has cut."""
    log = tmp_path / "log"
    with running(HeldEngine()) as engine, service(engine, 1, log) as (process, url):
        stream = Stream(url)
        stream.begun()
        process.send_signal(signal.SIGTERM)
        until(lambda: _status(url) == 503)
        process.send_signal(signal.SIGTERM)
        last = stream.all()[-1]
        assert '"error"' in last
        assert process.wait(LIMIT_S) == 0
        until(lambda: engine.cancelled == 1)
    assert "Traceback" not in log.read_text()


def test_an_engine_that_stops_finishes_its_streams(tmp_path: Path) -> None:
    """As engines do when they are told to (vora_serve.engine.stopping): the listening socket is
    gone, running streams are not. New requests go to another engine meanwhile."""
    held, other = HeldEngine(), FakeEngine()
    server = ThreadServer(held.app())
    server.config.timeout_graceful_shutdown = int(LIMIT_S)
    held.url = f"http://127.0.0.1:{server.start()}"
    log = tmp_path / "log"
    with running(other), service(held, 1, log, "--upstream", other.url) as (process, url):
        streams: list[Stream] = []
        while not held.seen:  # which engine a request goes to is its text's business
            streams.append(Stream(url, f"hi {len(streams)}"))
            streams[-1].begun()
        assert held.running == 1
        server.server.should_exit = True
        until(lambda: _refused(held.url))
        before = len(other.seen)
        for number in range(8):
            answer = httpx.post(
                f"{url}/v1/chat/completions",
                json={**_body(f"new {number}"), "stream": False},
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
        assert len(other.seen) == before + 8
        assert len(held.seen) == 1
        held.released.set()
        for stream in streams:
            assert stream.all()[-1] == "data: [DONE]"
        assert process.poll() is None


def _refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", timeout=5, trust_env=False)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return False
