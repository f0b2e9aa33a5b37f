"""SIGTERM to the whole ``vora-serve serve``: streams end by themselves, a second signal cuts them."""

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

from tests.vora_serve.gateway.fake_engine import FakeEngine, running

COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()"]
BODY = {
    "model": "vora-test",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}
LIMIT_S = 60.0


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

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self._first: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        self._thread.start()

    def _read(self, url: str) -> None:
        with (
            httpx.Client(timeout=LIMIT_S, trust_env=False) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=BODY) as response,
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
def service(engine: FakeEngine, workers: int, log: Path) -> Iterator[tuple[Any, str]]:
    """The command as a user starts it, in front of the engine: its process and URL."""
    environment = {
        **os.environ,
        "VORA_SERVE_SERVER__GRACE_PERIOD_S": str(LIMIT_S),
        # The first to find the engine: as many workers, as many probes.
        "VORA_SERVE_ROUTING__HEALTH_INTERVAL_S": "0.1",
    }
    arguments = ["serve", "--upstream", engine.url, "--port", "0", "--workers", str(workers)]
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
        refused = httpx.post(f"{url}/v1/chat/completions", json=BODY, trust_env=False)
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
