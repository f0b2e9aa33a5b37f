"""Faults on purpose, under load, with a real engine: nothing hangs, nothing is mixed up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.gateway.mixed import Tally, one
from tests.vora_serve.gateway.real_engine import Served, command, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

DEADLINE_S = 40.0
QUEUE = 16
CONFIG = f"""
admission:
  max_in_flight: 8
  max_queued: {QUEUE}
  queue_timeout_s: 20
  request_timeout_s: {DEADLINE_S}
engine: {{hang_timeout_s: 12, restart_backoff_s: 0.5}}
routing: {{health_interval_s: 0.5, health_timeout_s: 2}}
server: {{grace_period_s: 20}}
"""


class CuttingProxy:
    """Between a gateway and the engine's socket; aborts every connection when told to."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.cuts = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in list(self._writers):
            self.cuts += 1
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_unix_connection(self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(writer)
        pipes = [self._pipe(reader, there[1]), self._pipe(there[0], writer)]
        try:
            await asyncio.wait(
                [asyncio.ensure_future(pipe) for pipe in pipes], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            there[1].transport.abort()

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()


@contextlib.asynccontextmanager
async def load(url: str, tally: Tally, clients: int, prefix: str) -> AsyncIterator[None]:
    """So many clients, each with one request after the other, until the block ends."""
    stop = asyncio.Event()

    async def client(number: int) -> None:
        chance = random.Random(f"{prefix}{number}")
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(
            base_url=url, timeout=DEADLINE_S + 20, limits=limits, trust_env=False
        ) as http:
            count = 0
            while not stop.is_set():
                count += 1
                await one(http, "tiny", f"{prefix}{number}-{count}", chance, tally)
                if chance.random() < 0.3:
                    await asyncio.sleep(0.1)

    running = asyncio.gather(*(client(number) for number in range(clients)))
    try:
        yield
    finally:
        stop.set()
        await running


async def ready(url: str, wanted: bool, within: float) -> float:
    """Until the gateway says so; seconds it took."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        while time.monotonic() - began < within:
            with contextlib.suppress(httpx.HTTPError):
                if ((await http.get("/ready")).status_code == 200) is wanted:
                    return round(time.monotonic() - began, 1)
            await asyncio.sleep(0.1)
    raise AssertionError(f"never {'ready' if wanted else 'down'}")


async def idle(served: Served, within: float = 60) -> float:
    """Until the engine's own count of requests is zero; seconds it took."""
    began = time.monotonic()
    while served.running_requests():
        assert time.monotonic() - began < within, "the engine still works for nobody"
        await asyncio.sleep(0.1)
    return round(time.monotonic() - began, 1)


async def flood(url: str, tally: Tally) -> None:
    """Twenty times what the queue holds, at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=DEADLINE_S + 20, limits=limits, trust_env=False
    ) as http:
        chance = random.Random(7)
        names = [f"flood{index}" for index in range(20 * QUEUE)]
        await asyncio.gather(*(one(http, "tiny", name, chance, tally) for name in names))


def test_chaos(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    tallies: dict[str, Tally] = {}
    notes: dict[str, Any] = {}

    def tally(phase: str) -> Tally:
        return tallies.setdefault(phase, Tally())

    async def engine_faults(served: Served) -> None:
        async with load(served.url, tally("kill -9"), 12, "k"):
            await asyncio.sleep(8)
            os.kill(served.engine_pids()[0], signal.SIGKILL)
            await ready(served.url, False, 30)
            notes["back after kill -9, s"] = await ready(served.url, True, 400)
            await asyncio.sleep(5)
        async with load(served.url, tally("hang"), 12, "h"):
            await asyncio.sleep(3)
            for pid in served.engine_pids():
                os.kill(pid, signal.SIGSTOP)
            await ready(served.url, False, 90)
            notes["back after a hang, s"] = await ready(served.url, True, 400)
            await asyncio.sleep(5)
        notes["engine idle after the load, s"] = await idle(served)

    async def cuts(served: Served) -> None:
        proxy = CuttingProxy(served.engine_socket())
        url = await proxy.start()
        loop = asyncio.get_running_loop()
        front = command(tmp_path, "--upstream", url, "--config", str(config), log="front.log")
        second = await loop.run_in_executor(None, front.__enter__)
        try:
            async with load(second.url, tally("cut connections"), 12, "c"):
                for _ in range(20):
                    await asyncio.sleep(0.7)
                    proxy.cut()
                notes["back after cuts, s"] = await ready(second.url, True, 60)
                await asyncio.sleep(3)
            notes["connections cut"] = proxy.cuts
            await idle(served)
        finally:
            await loop.run_in_executor(None, front.__exit__, None, None, None)
            proxy.stop()

    async def full(served: Served) -> None:
        async with load(served.url, tally("full queue"), 4, "f"):
            await flood(served.url, tally("full queue"))
        await idle(served)
        text = httpx.get(f"{served.url}/metrics").text
        assert "vora_gateway_requests_in_flight 0.0" in text
        assert "vora_gateway_requests_queued 0.0" in text

    async def term(served: Served) -> None:
        began = 0.0
        async with load(served.url, tally("SIGTERM"), 8, "t"):
            await asyncio.sleep(4)
            began = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            while served.process.poll() is None:
                assert time.monotonic() - began < 120
                await asyncio.sleep(0.1)
        notes["ended after SIGTERM, s"] = round(time.monotonic() - began, 1)

    async def scenario(served: Served) -> None:
        await engine_faults(served)
        await cuts(served)
        await full(served)
        await term(served)

    with serving(tmp_path, "--config", str(config)) as served:
        asyncio.run(scenario(served))
    report = {
        "deadline_s": DEADLINE_S,
        "phases": {phase: seen.report() for phase, seen in tallies.items()},
        **notes,
    }
    if "VORA_TEST_REPORT" in os.environ:
        Path(os.environ["VORA_TEST_REPORT"]).write_text(json.dumps(report, indent=2) + "\n")
    assert served.process.returncode == 0
    for phase, seen in tallies.items():
        assert not seen.wrong, (phase, seen.wrong[:5])
        assert seen.slowest_s < DEADLINE_S + 5, phase
        assert not {"ReadTimeout", "500"} & set(seen.outcomes), phase
        assert seen.outcomes["whole"], phase
        assert seen.outcomes["stream"], phase
    assert tallies["full queue"].outcomes["429"] > 100
    assert notes["connections cut"] > 20
    # Each fault was felt: else this shows nothing.
    for phase, signs in {
        "kill -9": {"502", "503", "stream that ended with an error"},
        "hang": {"502", "503", "504", "stream that ended with an error"},
        "cut connections": {"502", "stream that ended with an error"},
        "SIGTERM": {"503", "ConnectError", "RemoteProtocolError", "ReadError"},
    }.items():
        assert signs & set(tallies[phase].outcomes), phase
