"""``python -m benchmarks.gateway.soak --model PATH``: a real service under mixed load for long.

Starts ``vora-serve serve`` with its engine, sends mixed requests at a steady rate (whole, streamed,
with images by data URL and fetched, photos of 12 megapixels that are decoded each time, clients
that leave, malformed ones), and samples the memory, threads and open files of the gateway and the
engine. Memory is flat if the median of the last quarter exceeds that of the second by no more than
the tolerance; the first is warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil
import uvloop

from benchmarks.gateway.mixed import Tally, one
from benchmarks.gateway.targets import free_port, mock_engine
from benchmarks.images.files import another, phone_photo

MODEL = "soak"
TOLERANCE = 0.05
TOLERANCE_MIB = 8


@dataclass
class Sample:
    """The service at one moment."""

    at_s: float
    gateway_mib: float
    engine_mib: float
    threads: int
    files: int


def sample(began: float, gateway: psutil.Process) -> Sample:
    """What the gateway's process and its subprocesses (the engine) hold."""
    engine = 0
    for process in gateway.children(recursive=True):
        try:
            engine += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return Sample(
        time.monotonic() - began,
        gateway.memory_info().rss / 2**20,
        engine / 2**20,
        gateway.num_threads(),
        gateway.num_fds(),
    )


def photos() -> Callable[[], str]:
    """Data URLs of a portrait photo of 12 megapixels, none of them seen before."""
    photo, numbers = phone_photo(4032, 3024, 0), itertools.count()

    def url() -> str:
        content = base64.b64encode(another(photo, next(numbers))).decode()
        return f"data:image/jpeg;base64,{content}"

    return url


async def load(url: str, model: str, until: float, rate: float, image: str, tally: Tally) -> None:
    """Requests at random intervals of ``1 / rate`` seconds on average, whatever is still open."""
    chance = random.Random(1)
    open_requests: set[asyncio.Task[None]] = set()
    count = 0
    images: list[str | Callable[[], str]] = [image, photos()]
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
        while time.monotonic() < until:
            count += 1
            request = one(client, model, f"soak{count}", chance, tally, images, malformed=0.1)
            task = asyncio.create_task(request)
            open_requests.add(task)
            task.add_done_callback(open_requests.discard)
            await asyncio.sleep(chance.expovariate(rate))
        await asyncio.gather(*open_requests)


async def watch(
    url: str, model: str, process: psutil.Process, minutes: float, rate: float
) -> tuple[Tally, list[Sample]]:
    """Load and samples for the whole time."""
    tally = Tally()
    samples: list[Sample] = []
    with mock_engine() as images:  # it also serves an image of 1 MB
        image = f"http://127.0.0.1:{images.port}/image.jpg"
        began = time.monotonic()
        loading = asyncio.create_task(load(url, model, began + 60 * minutes, rate, image, tally))
        while not loading.done():
            samples.append(sample(began, process))
            await asyncio.wait([loading], timeout=10)
        await loading
    return tally, samples


def table(tally: Tally, samples: list[Sample], what: str, load_before: float) -> tuple[str, bool]:
    """The report, and whether memory stayed flat and all answers were right."""
    quarter = max(1, len(samples) // 4)
    rows = []
    memory = []
    for index in range(4):
        part = samples[index * quarter : (index + 1) * quarter]
        middle = {
            name: statistics.median(getattr(item, name) for item in part)
            for name in ("gateway_mib", "engine_mib", "threads", "files")
        }
        memory.append(middle["gateway_mib"])
        rows.append(
            "| {0} | {gateway_mib:.1f} | {engine_mib:.0f} | {threads:.0f} | {files:.0f} |".format(
                index + 1, **middle
            )
        )
    grown = memory[3] - memory[1]
    flat = grown <= max(TOLERANCE * memory[1], TOLERANCE_MIB)
    peak = max(item.gateway_mib for item in samples)
    outcomes = [f"| {key} | {count} |" for key, count in sorted(tally.outcomes.items())]
    lines = [
        what,
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, vora-serve {version('vora-serve')}, Python "
        f"{sys.version.split()[0]}, {os.cpu_count()} cores, load average {load_before:.1f} before "
        f"and {os.getloadavg()[0]:.1f} after.",
        "",
        f"{tally.requests} requests, {len(tally.wrong)} wrong answers, the slowest "
        f"{tally.slowest_s:.1f} s. Memory is {'flat' if flat else 'NOT flat'}: the gateway's "
        f"median in the last quarter is {grown:+.1f} MiB against the second, its peak {peak:.1f}.",
        "",
        "| quarter | gateway MiB | engine MiB | gateway's threads | gateway's open files |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "| outcome | requests |",
        "|---|---|",
        *outcomes,
    ]
    return "\n".join(lines) + "\n", flat and not tally.wrong


@contextmanager
def service(model: str, start_timeout_s: float) -> Iterator[tuple[str, int]]:
    """``vora-serve serve`` with its engine: URL and process id."""
    port = free_port()
    command = [
        sys.executable, "-c", "from vora_serve.cli import main; main()", "serve",
        "--model", model, "--served-model-name", MODEL, "--port", str(port),
        "--allow-image-network", "127.0.0.1/32",
        "--", "--max-model-len", "1024", "--enforce-eager",
    ]  # fmt: skip
    env = {
        **os.environ,
        "VORA_SERVE_ENGINE__CPU_KVCACHE_GIB": "1",
        "VORA_SERVE_ENGINE__START_TIMEOUT_S": str(start_timeout_s),
    }
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, env=env)
        try:
            deadline = time.monotonic() + start_timeout_s
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the service did not come up")
                time.sleep(0.5)
            yield url, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.soak", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="checkpoint to serve")
    source.add_argument("--attach", type=int, metavar="PID", help="a gateway that runs already")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the attached gateway")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rate", type=float, default=4, help="requests a second")
    parser.add_argument("--start-timeout", type=float, default=900, help="seconds for the engine")
    parser.add_argument("--output", type=Path, help="file for the report")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    running = (
        service(args.model, args.start_timeout)
        if args.model is not None
        else nullcontext((args.url, args.attach))
    )
    with running as (url, pid):
        name = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"]
        sys.stderr.write(f"the load on {url} begins\n")
        tally, samples = uvloop.run(watch(url, name, psutil.Process(pid), args.minutes, args.rate))
    what = (
        f"A real engine under {args.rate:g} mixed requests a second for {args.minutes:g} minutes "
        "(`python -m benchmarks.gateway.soak`)."
    )
    text, good = table(tally, samples, what, load_before)
    sys.stdout.write(text)
    if args.output is not None:
        args.output.write_text(text)
    for wrong in tally.wrong[:10]:
        sys.stderr.write(f"wrong: {wrong}\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
