"""``--api-server-count``: several HTTP servers, each with what this project changes in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.model_plugin.engine.harness import needs_vllm
from vora_core.ready_pixels import MEDIA_TYPE, pack
from vora_serve.gateway.images.data_url import encode_data_url
from vora_serve.gateway.upstreams.announcement import announced

# A refused connection to a Unix socket leaves httpx an unclosed one.
pytestmark = [
    needs_vllm,
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "vora_serve" / "demo" / "checkpoint"
TOKENS = 400


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    socket = tmp_path / "engine.sock"
    command = [
        *(sys.executable, "-m", "vora_serve.engine", "--model", str(MODEL), "--uds", str(socket)),
        *("--served-model-name", "m", "--enforce-eager", "--api-server-count", "2"),
        *("--shutdown-timeout", "120"),
        *("--middleware", "model_plugin.engine.announce.AnnounceImages"),  # as serve has it
    ]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine", timeout=300
        ) as client:
            while process.poll() is None:
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            assert process.poll() is None, log.read_text()
            yield process, client
    finally:
        process.terminate()  # killed, it would leave its servers and the engine's core behind
        process.wait(300)


def test_two_servers_answer_and_finish_what_they_have(
    engine: tuple[subprocess.Popen[bytes], httpx.Client],
) -> None:
    process, client = engine
    children = psutil.Process(process.pid).children(recursive=True)
    servers = [child for child in children if "APIServer" in " ".join(child.cmdline())]
    assert len(servers) == 2
    body = {
        "model": "m",
        "prompt": "Tell",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    first = threading.Event()
    lines: list[str] = []

    def ask() -> None:
        with client.stream("POST", "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                first.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert first.wait(300)
    process.send_signal(signal.SIGTERM)
    asking.join(300)
    # Whole: the request that was running when the engine was told to stop.
    assert lines[-2:] == ["data: [DONE]", ""]
    assert process.wait(300) == 0
    assert not [child for child in psutil.wait_procs(servers, timeout=60)[1] if child.is_running()]


def test_every_server_takes_pixels_that_are_ready(
    engine: tuple[subprocess.Popen[bytes], httpx.Client], tmp_path: Path
) -> None:
    answers = set()
    for _ in range(20):  # a connection each, so that both servers are met
        transport = httpx.HTTPTransport(uds=str(tmp_path / "engine.sock"))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=300) as client:
            cards = client.get("/v1/models").json()["data"]
            settings = announced(cards)["m"]
            side = settings.image_size
            pixels = pack(bytes(range(256)) * (3 * side * side // 256), (side, side), settings)
            url = encode_data_url(pixels, MEDIA_TYPE)
            content = [{"type": "image_url", "image_url": {"url": url}}]
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 4,
                "temperature": 0,
            }
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            tokens = settings.image_size**2 // settings.unit**2
            assert answer.json()["usage"]["prompt_tokens"] > tokens
            answers.add(answer.json()["choices"][0]["message"]["content"])
    assert len(answers) == 1
