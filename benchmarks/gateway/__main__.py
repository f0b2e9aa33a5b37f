"""``python -m benchmarks.gateway``: added latency, throughput, CPU and memory of gateways.

One mock engine, asked directly and through each gateway: text, streams, a data URL of about 1 MB,
and an image to be fetched. Prints a table in Markdown; ``--output`` also writes it to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from benchmarks.gateway.load import Outcome, drive
from benchmarks.gateway.mock_engine import MODEL, make_image
from benchmarks.gateway.targets import Target, gateway, litellm, mock_engine, vllm_router


def request_body(scenario: str, engine_port: int) -> bytes:
    """The request that a scenario sends."""
    content: object = "Describe the picture in one sentence, please."
    if scenario in ("data_url", "fetched"):
        url = f"http://127.0.0.1:{engine_port}/image.jpg"
        if scenario == "data_url":
            url = f"data:image/jpeg;base64,{base64.b64encode(make_image()).decode()}"
        content = [
            {"type": "text", "text": "Describe it."},
            {"type": "image_url", "image_url": {"url": url}},
        ]
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 20,
        "stream": scenario in ("stream", "streams_1000"),
    }
    return json.dumps(body).encode()


# scenario -> (requests, connections for the throughput run)
SCENARIOS = {
    "text": (4000, 32),
    "stream": (1000, 32),
    "data_url": (150, 8),
    "fetched": (150, 8),
}


async def measure(
    target: Target, scenario: str, engine_port: int, scale: float
) -> dict[str, float]:
    """One repeat: latency alone, then throughput under load."""
    requests, connections = SCENARIOS[scenario]
    if target.name == "litellm":
        requests //= 4  # so slow that the rest of the run would be waiting
    requests = max(connections, int(requests * scale))
    body = request_body(scenario, engine_port)
    await drive(target.port, body, max(20, requests // 20), connections, target.key)  # warm up
    alone = await drive(target.port, body, max(40, requests // 10), 1, target.key)
    before = target.cpu_s()
    loaded: Outcome = await drive(target.port, body, requests, connections, target.key)
    cpu = target.cpu_s() - before
    return {
        "p50_ms": alone.percentile(0.50),
        "p95_ms": alone.percentile(0.95),
        "p99_ms": alone.percentile(0.99),
        "rate": loaded.rate,
        "cpu_s_per_1000": 1000 * cpu / max(1, requests),
        "rate_per_core": requests / cpu if cpu else float("nan"),
        "memory_mib": target.memory_mib(),
        "errors": float(alone.errors + loaded.errors),
    }


Starter = Callable[[int], AbstractContextManager[Target]]


def run(args: argparse.Namespace) -> str:
    """All targets and scenarios; the table."""
    rows: list[str] = []
    starters: dict[str, Starter] = {"vora-serve": gateway}
    if args.others is not None:
        starters["litellm"] = lambda port: litellm(port, args.others)
        starters["vllm-router"] = lambda port: vllm_router(port, args.others)
    with mock_engine() as engine:
        base: dict[str, dict[str, float]] = {}
        for name in ("direct", *starters):
            try:
                start = nullcontext(engine) if name == "direct" else starters[name](engine.port)
                with start as target:
                    for scenario in args.scenarios:
                        repeats = []
                        for _ in range(args.repeats):
                            repeats.append(
                                asyncio.run(measure(target, scenario, engine.port, args.scale))
                            )
                        middle = {
                            key: statistics.median(repeat[key] for repeat in repeats)
                            for key in repeats[0]
                        }
                        base.setdefault(scenario, middle)
                        rows.append(_row(name, scenario, middle, base[scenario]))
                        sys.stderr.write(rows[-1] + "\n")
            except RuntimeError as error:
                rows.append(f"| {name} | could not be started: {error} |||||||||")
                sys.stderr.write(rows[-1] + "\n")
    if args.streams:
        rows.append(asyncio.run(many_streams(args.streams)))
        sys.stderr.write(rows[-1] + "\n")
    return _table(rows, args.repeats)


async def many_streams(count: int) -> str:
    """So many streams at one time, 50 ms between tokens."""
    with mock_engine(0.05) as engine, gateway(engine.port) as target:
        outcome = await drive(target.port, request_body("streams_1000", 0), count, count)
        return (
            f"\n{count} concurrent streams through vora-serve: {outcome.errors} errors, "
            f"p50 {outcome.percentile(0.5):.0f} ms, p99 {outcome.percentile(0.99):.0f} ms "
            f"(1000 ms of it are the engine's), peak memory {target.memory_mib():.0f} MiB."
        )


def _row(name: str, scenario: str, got: dict[str, float], base: dict[str, float]) -> str:
    added = [got[key] - base[key] for key in ("p50_ms", "p95_ms", "p99_ms")]
    shown = " | ".join(
        f"{got[key]:.2f}" if name == "direct" else f"+{plus:.2f}"
        for key, plus in zip(("p50_ms", "p95_ms", "p99_ms"), added, strict=True)
    )
    return (
        f"| {name} | {scenario} | {shown} | {got['rate']:.0f} | {got['rate_per_core']:.0f} "
        f"| {got['cpu_s_per_1000']:.2f} | {got['memory_mib']:.0f} | {got['errors']:.0f} |"
    )


def _table(rows: list[str], repeats: int) -> str:
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {os.cpu_count()} cores "
        f"({platform.machine()}), load average {os.getloadavg()[0]:.1f} at the end; driver and "
        f"engine share the cores. Medians of {repeats} repeats. Latencies in ms with one request "
        "at a time, added to direct.\n\n"
        "| target | scenario | p50 | p95 | p99 | requests/s | requests/s per core "
        "| CPU s per 1000 | peak MiB | errors |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--streams", type=int, default=1000, help="concurrent streams; 0: none")
    parser.add_argument(
        "--others", type=Path, help="bin directory that holds litellm and vllm-router"
    )
    parser.add_argument("--output", type=Path, help="file for the table")
    args = parser.parse_args()
    uvloop.install()
    table = run(args)
    sys.stdout.write(table)
    if args.output is not None:
        args.output.write_text(table)


if __name__ == "__main__":
    main()
