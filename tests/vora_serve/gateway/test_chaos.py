"""Faults on purpose, under load, with a real engine: nothing hangs, nothing is mixed up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.vora_serve.gateway.conftest import picture
from tests.vora_serve.gateway.real_engine import Served, serving
from tests.vora_serve.gateway.test_chat import data_url, events

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

DEADLINE_S = 40.0
CONFIG = f"""
admission:
  max_in_flight: 8
  max_queued: 16
  queue_timeout_s: 20
  request_timeout_s: {DEADLINE_S}
engine: {{hang_timeout_s: 12, restart_backoff_s: 0.5}}
routing: {{health_interval_s: 0.5, health_timeout_s: 2}}
"""


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)


def body(name: str, stream: bool, with_image: bool) -> dict[str, Any]:
    """A request whose only possible answer is its own name."""
    content: Any = f"say {name}"
    if with_image:
        content = [
            {"type": "text", "text": content},
            {"type": "image_url", "image_url": {"url": data_url(picture(40, 40))}},
        ]
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 64,
        "stream": stream,
        "structured_outputs": {"choice": [name]},
    }


async def one(client: httpx.AsyncClient, name: str, chance: random.Random, tally: Tally) -> None:
    stream, leaves = chance.random() < 0.5, chance.random() < 0.15
    payload = body(name, stream, chance.random() < 0.3)
    began = time.monotonic()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=payload) as answer:
            if leaves:
                await asyncio.sleep(chance.random() * 0.5)
                tally.outcomes["left"] += 1
                return
            text = (await answer.aread()).decode()
    except httpx.HTTPError as error:
        tally.outcomes[type(error).__name__] += 1
        return
    finally:
        tally.slowest = max(tally.slowest, time.monotonic() - began)
    if answer.status_code != 200:
        tally.outcomes[str(answer.status_code)] += 1
        assert json.loads(text)["error"]["message"]
    elif stream:
        got = events(text)
        if got[-1] == "[DONE]":
            said = "".join(e["choices"][0]["delta"].get("content") or "" for e in got[:-1])
            tally.outcomes["stream"] += 1
            if said != name:
                tally.wrong.append(f"{name}: {said}")
        else:
            assert got[-1]["error"]
            tally.outcomes["stream with error"] += 1
    else:
        said = json.loads(text)["choices"][0]["message"]["content"]
        tally.outcomes["whole"] += 1
        if said != name:
            tally.wrong.append(f"{name}: {said}")


async def load(served: Served, tally: Tally, clients: int, until: asyncio.Event) -> None:
    """So many clients, each with one request after the other."""

    async def client(number: int) -> None:
        chance = random.Random(number)
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(
            base_url=served.url, timeout=DEADLINE_S + 20, limits=limits
        ) as http:
            count = 0
            while not until.is_set():
                count += 1
                await one(http, f"c{number}-{count}", chance, tally)
                if chance.random() < 0.3:
                    await asyncio.sleep(0.1)

    await asyncio.gather(*(client(number) for number in range(clients)))


async def ready(served: Served, wanted: bool, within: float) -> float:
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=served.url, timeout=5) as http:
        while time.monotonic() - began < within:
            with contextlib.suppress(httpx.HTTPError):
                if ((await http.get("/ready")).status_code == 200) is wanted:
                    return time.monotonic() - began
            await asyncio.sleep(0.1)
    raise AssertionError(f"never {'ready' if wanted else 'down'}")


def test_chaos(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    tally, notes = Tally(), dict[str, float]()

    async def scenario(served: Served) -> None:
        stop = asyncio.Event()
        loading = asyncio.create_task(load(served, tally, clients=12, until=stop))
        await asyncio.sleep(8)
        os.kill(served.engine_pids()[0], signal.SIGKILL)
        await ready(served, False, 20)
        notes["back after kill -9"] = await ready(served, True, 200)
        await asyncio.sleep(5)
        for pid in served.engine_pids():
            os.kill(pid, signal.SIGSTOP)
        await ready(served, False, 60)
        notes["back after a hang"] = await ready(served, True, 240)
        await asyncio.sleep(5)
        # Twenty times what the queue holds, at once.
        flood = Tally()
        async with httpx.AsyncClient(
            base_url=served.url,
            timeout=DEADLINE_S + 20,
            limits=httpx.Limits(max_connections=None),
        ) as http:
            chance = random.Random(7)
            names = [f"flood-{index}" for index in range(20 * 16)]
            await asyncio.gather(*(one(http, name, chance, flood) for name in names))
        assert flood.outcomes["429"] > 100
        tally.outcomes.update({f"flood {key}": n for key, n in flood.outcomes.items()})
        tally.wrong += flood.wrong
        tally.slowest = max(tally.slowest, flood.slowest)
        stop.set()
        await loading
        until = time.monotonic() + 10
        while served.running_requests() and time.monotonic() < until:
            await asyncio.sleep(0.2)
        assert served.running_requests() == 0

    with serving(tmp_path, "--config", str(config)) as served:
        asyncio.run(scenario(served))
        text = httpx.get(f"{served.url}/metrics").text
        assert "vora_gateway_requests_in_flight 0.0" in text
        assert "vora_gateway_requests_queued 0.0" in text
    assert served.process.returncode == 0
    report = {"outcomes": dict(tally.outcomes), "slowest_s": tally.slowest, **notes}
    (tmp_path / "chaos.json").write_text(json.dumps(report, indent=2))
    if "VORA_TEST_REPORT" in os.environ:
        Path(os.environ["VORA_TEST_REPORT"]).write_text(json.dumps(report, indent=2))
    assert not tally.wrong
    assert tally.slowest < DEADLINE_S + 5
    assert tally.outcomes["whole"] > 20
    assert tally.outcomes["stream"] > 20
    assert not {"ReadTimeout", "500"} & set(tally.outcomes)
