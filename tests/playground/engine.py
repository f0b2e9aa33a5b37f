"""A real engine without a gateway: ``vora-serve engine`` as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from vora_serve.explain.on_demand import OnDemand

_COMMAND = [sys.executable, "-c", "from vora_serve.cli import main; main()"]


@contextmanager
def running_engine(folder: Path, model: Path, *names: str) -> Iterator[str]:
    """Its address, ready; stopped at the end. ``VORA_TEST_ENGINE`` names one that runs already."""
    if given := os.environ.get("VORA_TEST_ENGINE"):
        yield given
        return
    yield from _engine(folder / "engine.log", model, *names)


@contextmanager
def running_host(folder: Path, specialists: Path, *names: str) -> Iterator[str]:
    """An engine with an LLM and vision adapters of these names; its address, ready."""
    adapters = [f"--vision-adapter={name}={specialists / name}" for name in names]
    yield from _engine(folder / "host.log", specialists / "llm", "llm", *adapters)


def _engine(log: Path, model: Path, *names_and_flags: str) -> Iterator[str]:
    port = _free_port()
    command = [
        *_COMMAND, "engine", "--model", str(model), "--port", str(port), "--max-model-len", "1024",
        "--enforce-eager", "--served-model-name", *names_and_flags,
    ]  # fmt: skip
    yield from _running(command, f"http://127.0.0.1:{port}", log)


@contextmanager
def explainer_on_demand(model: Path) -> Iterator[str]:
    """Where the view of attention is asked for; the first question starts its process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    explainer = OnDemand(str(model), 600)

    async def listen() -> None:
        explainer.listen()

    asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    try:
        yield f"unix:{explainer.socket}"
    finally:
        asyncio.run_coroutine_threadsafe(explainer.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _running(command: list[str], url: str, log: Path) -> Iterator[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "2", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        try:
            _wait(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 300:
        if process.poll() is not None:
            raise RuntimeError(f"it ended: {log.read_text()[-3000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"not ready: {log.read_text()[-3000:]}")
