"""All attacks at once against ``vora-serve serve`` as a process of its own: what it costs.

The single attacks and what each is answered stand in test_attacks.py.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image

from tests.vora_serve.gateway.conftest import make_image
from tests.vora_serve.gateway.fake_engine import FakeEngine, running
from tests.vora_serve.gateway.fake_web import FakeWeb, response, serving
from tests.vora_serve.gateway.test_attacks import (
    BODIES,
    DATA_URLS,
    FILES,
    HARMLESS,
    SPELLINGS,
    VICTIM,
    WORLD,
    data_url,
    redirect,
)
from tests.vora_serve.gateway.test_streams import until

MEMORY_MIB = 600
ROUNDS = 3
AT_ONCE = 12


def attacks(world: FakeWeb, victim: FakeWeb) -> dict[str, str]:
    """Every attack that needs no resolver of its own: a name and the image's URL."""
    found = {
        f"URL {index}": url.replace("{port}", str(victim.port))
        for index, url in enumerate(SPELLINGS)
    }
    for name, body in BODIES.items():
        world.pages[f"/{name.replace(' ', '-')}"] = body
        found[f"body: {name}"] = world.url(f"/{name.replace(' ', '-')}")
    for status in ("301 M", "302 F", "303 S", "307 T", "308 P"):
        world.pages[f"/to-victim-{status[:3]}"] = redirect(victim.url("/secret.png"), status)
        found[f"redirect {status}"] = world.url(f"/to-victim-{status[:3]}")
    world.pages["/loop"] = redirect("/loop")
    found["redirect loop"] = world.url("/loop")
    found |= {
        f"file: {name}": data_url(file) for name, file in FILES.items() if name not in HARMLESS
    }
    for name, file in FILES.items():
        if name not in HARMLESS and len(file) < 2_000_000:
            world.pages[f"/file-{name.replace(' ', '-')}"] = response(file)
            found[f"fetched file: {name}"] = world.url(f"/file-{name.replace(' ', '-')}")
    found |= {f"data URL {index}": url for index, url in enumerate(DATA_URLS)}
    return found


@contextmanager
def gateway(
    tmp_path: Path, engine: FakeEngine, network: str, **images: Any
) -> Iterator[tuple[httpx.Client, int]]:
    """The command with its default limits, and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "config.yaml"
    settings = {
        "images": {"allow_networks": [f"{network}/32"], **images},
        "logging": {"access": False},
    }
    config.write_text(yaml.safe_dump(settings))
    command = [
        sys.executable, "-c", "from vora_serve.cli import main; main()", "serve",
        "--upstream", engine.url, "--port", str(port), "--config", str(config),
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False
        ) as client:

            def ready() -> bool:
                assert process.poll() is None
                try:
                    return client.get("/ready").status_code == 200
                except httpx.TransportError:
                    return False

            until(ready, within=60)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


def show(client: httpx.Client, *urls: str) -> httpx.Response:
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    body = {"model": "vora-test", "messages": [{"role": "user", "content": content}]}
    return client.post("/v1/chat/completions", json=body)


def peak_mib(pid: int) -> float:
    """The highest resident memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        / 1024
    )


def test_memory_and_answers_under_all_attacks(tmp_path: Path) -> None:
    with (
        running(FakeEngine()) as engine,
        serving(FakeWeb(WORLD)) as world,
        serving(FakeWeb(VICTIM)) as victim,
        gateway(tmp_path, engine, WORLD, timeout_s=2) as (client, pid),
    ):
        victim.pages["/secret.png"] = world.pages["/good.png"] = response(make_image())
        found = attacks(world, victim)
        assert len(found) >= 80
        with ThreadPoolExecutor(AT_ONCE) as pool:
            got = pool.map(
                lambda item: (item[0], show(client, item[1])), list(found.items()) * ROUNDS
            )
            answers = list(got)
        statuses = Counter(answer.status_code for _, answer in answers)
        assert set(statuses) == {400, 413}, [
            (name, answer.text) for name, answer in answers if answer.status_code not in (400, 413)
        ]
        assert victim.connections == 0, "the victim was reached"
        assert not engine.seen, "the engine was bothered"
        assert show(client, world.url("/good.png")).status_code == 200, "nobody is held"
        assert "vora_gateway_requests_in_flight 0.0" in client.get("/metrics").text
        peak = peak_mib(pid)
        report = {"attacks": len(found), "requests": len(answers), "peak_rss_mib": round(peak)}
        if "VORA_TEST_REPORT" in os.environ:
            Path(os.environ["VORA_TEST_REPORT"]).write_text(json.dumps(report, indent=2) + "\n")
        assert peak < MEMORY_MIB


def noise(side: int) -> bytes:
    """An image that compression does nothing for."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_memory_under_many_large_images(tmp_path: Path) -> None:
    """Nothing is wrong with any of them: there are just too many at once."""
    file = noise(1600)
    assert 1_500_000 < len(file) < 3_000_000
    patient = {"timeout_s": 600, "total_timeout_s": 600}
    wide = make_image(5000, 5000, mode="RGBA", colour=(1, 2, 3, 4))
    with (
        running(FakeEngine(looks=False, first_delay_s=1)) as engine,
        serving(FakeWeb(WORLD)) as world,
        gateway(tmp_path, engine, WORLD, **patient) as (client, pid),
    ):
        for index in range(9):  # together just under what one request may hold
            world.pages[f"/{index}"] = response(file)
        fetched = [world.url(f"/{index}") for index in range(9)]
        sent = [data_url(file + bytes([index])) for index in range(8)]
        requests = [fetched] * 6 + [sent] * 6 + [[data_url(wide)]] * 3
        with ThreadPoolExecutor(len(requests)) as pool:
            answers = list(pool.map(lambda urls: show(client, *urls), requests))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 429}, [answer.text[:200] for answer in answers]
        assert statuses[200]
        for answer in answers:
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "memory_full"
                assert int(answer.headers["retry-after"]) > 0
        assert show(client, fetched[0]).status_code == 200
        assert peak_mib(pid) < MEMORY_MIB


def test_the_victim_can_be_reached_where_it_is_allowed(tmp_path: Path) -> None:
    """The control: without the policy the same addresses would have been fetched."""
    with (
        running(FakeEngine()) as engine,
        serving(FakeWeb(VICTIM)) as victim,
        gateway(tmp_path, engine, VICTIM) as (client, _),
    ):
        victim.pages["/secret.png"] = response(make_image())
        assert show(client, victim.url("/secret.png")).status_code == 200
        mapped = f"http://[::ffff:127.0.0.1]:{victim.port}/secret.png"
        assert show(client, mapped).status_code == 200
        assert victim.connections >= 1
