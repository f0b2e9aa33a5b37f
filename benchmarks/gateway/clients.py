"""``python -m benchmarks.gateway.clients``: what asking an engine costs, by HTTP client.

The gateway's own HTTP/1.1 client beside aiohttp and httpx, all asking the same mock engine in
turns, and a whole gateway beside them. This decides whether the gateway may use a general
client: yes, if its requests per core fall by no more than a quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import aiohttp
import httpx
import uvloop

from benchmarks.gateway.__main__ import request_body
from benchmarks.gateway.mock_engine import WORDS
from benchmarks.gateway.targets import gateway, mock_engine
from vora_serve.gateway.http1 import Connection, Endpoint, Headers

PATH = "/v1/chat/completions"
HEADERS: Headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]

Client = Callable[[int, bytes, int], Awaitable[int]]


async def own(port: int, body: bytes, requests: int) -> int:
    """One connection; the pieces of all answers."""
    connection = await Connection.open(Endpoint("127.0.0.1", port), 5)
    pieces = 0
    for _ in range(requests):
        response = await connection.request(b"POST", PATH.encode(), HEADERS, body, 60)
        while await response.read(60):
            pieces += 1
    connection.close()
    return pieces


async def general(port: int, body: bytes, requests: int) -> int:
    """The same through httpx."""
    pieces = 0
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for _ in range(requests):
            async with client.stream("POST", PATH, content=body, headers=headers) as response:
                async for _piece in response.aiter_raw():
                    pieces += 1
    return pieces


async def aiohttp_client(port: int, body: bytes, requests: int) -> int:
    """The same through aiohttp."""
    pieces = 0
    headers = {"content-type": "application/json"}
    url = f"http://127.0.0.1:{port}{PATH}"
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for _ in range(requests):
            async with session.post(url, data=body, headers=headers) as response:
                async for _piece in response.content.iter_any():
                    pieces += 1
    return pieces


async def measure(client: Client, port: int, body: bytes, requests: int, at_once: int) -> float:
    """Microseconds of CPU for a request."""
    await client(port, body, 3)
    gc.collect()
    before = time.process_time()
    await asyncio.gather(*(client(port, body, requests) for _ in range(at_once)))
    return 1e6 * (time.process_time() - before) / (requests * at_once)


async def drive_gateway(port: int, body: bytes, requests: int, at_once: int) -> None:
    """Requests through a gateway, over this project's own client."""
    await asyncio.gather(*(own(port, body, requests) for _ in range(at_once)))


def run(repeats: int) -> str:
    """The table.

    The last columns take a gateway's CPU for the same request, measured in the same turns, and put
    the difference between the clients on top: what its requests per core would become.
    """
    clients: dict[str, Client] = {"own": own, "aiohttp": aiohttp_client, "httpx": general}
    costs: dict[tuple[str, str], list[float]] = {}
    with (
        mock_engine() as at_once,
        mock_engine(0.005) as slowly,
        gateway(at_once.port) as fast_gateway,
        gateway(slowly.port) as slow_gateway,
    ):
        scenarios = {
            "non-streaming": (at_once, fast_gateway, request_body("text", 0), 300, 8),
            f"stream of {WORDS} events, 5 ms apart": (
                slowly, slow_gateway, request_body("stream", 0), 20, 32,
            ),
        }  # fmt: skip
        for _ in range(repeats):  # in turns: all see the same machine
            for scenario, (engine, front, body, requests, width) in scenarios.items():
                for name, client in clients.items():
                    cost = uvloop.run(measure(client, engine.port, body, requests, width))
                    costs.setdefault((scenario, name), []).append(cost)
                uvloop.run(drive_gateway(front.port, body, 3, width))
                before = front.cpu_s()
                uvloop.run(drive_gateway(front.port, body, requests, width))
                total = 1e6 * (front.cpu_s() - before) / (requests * width)
                costs.setdefault((scenario, "gateway"), []).append(total)
    return _table(costs, list(scenarios), repeats)


def _table(costs: dict[tuple[str, str], list[float]], scenarios: list[str], repeats: int) -> str:
    rows = []
    for scenario in scenarios:
        middle = {
            name: statistics.median(cost) for (s, name), cost in costs.items() if s == scenario
        }
        falls = []
        for name in ("aiohttp", "httpx"):
            triples = zip(
                costs[scenario, "gateway"], costs[scenario, name], costs[scenario, "own"],
                strict=True,
            )  # fmt: skip
            falls.append(statistics.median(1 - g / (g + other - o) for g, other, o in triples))
        rows.append(
            f"| {scenario} | {middle['own']:.0f} | {middle['aiohttp']:.0f} | {middle['httpx']:.0f} "
            f"| {middle['gateway']:.0f} | {falls[0]:.0%} | {falls[1]:.0%} |"
        )
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, aiohttp {version('aiohttp')}, httpx "
        f"{version('httpx')}, Python {sys.version.split()[0]}, uvloop {version('uvloop')}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; medians of {repeats} "
        "paired repeats. Microseconds of CPU per request: of the asking process for each client, "
        "and of the whole gateway with its own client. The last columns: by how much the "
        "gateway's requests per core would fall with the other client.\n\n"
        "| scenario | own client | aiohttp | httpx | gateway | fall with aiohttp | with httpx |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway.clients", description=__doc__
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    table = run(args.repeats)
    sys.stdout.write(table)
    if args.output is not None:
        args.output.write_text(table)


if __name__ == "__main__":
    main()
