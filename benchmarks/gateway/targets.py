"""What is measured: the mock engine alone, and gateways in front of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

LITELLM_KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"


@dataclass
class Target:
    """A running process under measurement."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    key: str | None = None

    def _all(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """CPU seconds so far, subprocesses included."""
        total = 0.0
        for process in self._all():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def memory_mib(self) -> float:
        """Highest resident memory so far, subprocesses included."""
        total = 0.0
        for process in self._all():
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            line = next((row for row in status.splitlines() if row.startswith("VmHWM")), "x 0 kB")
            total += int(line.split()[1]) / 1024
        return total


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], headers: dict[str, str]) -> None:
    deadline = time.monotonic() + 600  # LiteLLM imports for long
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with code {process.returncode}")
        try:
            if httpx.get(url, headers=headers, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError("it did not come up")


@contextmanager
def _running(
    name: str, command: list[str], port: int, ready: str, key: str | None = None,
    env: dict[str, str] | None = None, log: Path | None = None, tree: Path | None = None,
) -> Iterator[Target]:  # fmt: skip
    with open(log or os.devnull, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(env or {})}, cwd=tree
        )
        try:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            _wait(f"http://127.0.0.1:{port}{ready}", process, headers)
            yield Target(name, port, process, key)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def mock_engine(token_delay_s: float = 0.0) -> Iterator[Target]:
    """The engine itself."""
    port = free_port()
    command = [
        sys.executable, "-m", "benchmarks.gateway.mock_engine", str(port), str(token_delay_s)
    ]  # fmt: skip
    with _running("direct", command, port, "/health") as target:
        yield target


@contextmanager
def gateway(engine_port: int, tree: Path | None = None) -> Iterator[Target]:
    """This project's gateway, one worker; of another checkout's code where ``tree`` names one."""
    port = free_port()
    config = (
        f"server: {{port: {port}}}\n"
        "images: {allow_networks: [127.0.0.1/32]}\n"
        "admission: {max_in_flight: 4096}\n"
        "routing: {max_in_flight: 4096, keep_alive_connections: 2048}\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(config)
        command = [
            sys.executable, "-c", "from vora_serve.cli import main; main()", "serve",
            "--upstream", f"http://127.0.0.1:{engine_port}", "--config", str(path),
        ]  # fmt: skip
        name = "vora-serve" if tree is None else f"vora-serve in {tree.name}"
        env = {} if tree is None else {"PYTHONPATH": str(tree)}
        with _running(name, command, port, "/ready", env=env, tree=tree) as target:
            yield target


@contextmanager
def litellm(engine_port: int, program: Path) -> Iterator[Target]:
    """LiteLLM's proxy, one worker."""
    port = free_port()
    config = (
        "model_list:\n"
        "  - model_name: mock\n"
        "    litellm_params:\n"
        "      model: hosted_vllm/mock\n"
        f"      api_base: http://127.0.0.1:{engine_port}/v1\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.yaml"
        path.write_text(config)
        command = [
            str(program), "--config", str(path), "--port", str(port),
            "--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False",
        ]  # fmt: skip
        env = {
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        ready = "/health/liveliness"
        with _running("litellm", command, port, ready, LITELLM_KEY, env) as target:
            yield target


@contextmanager
def vllm_router(engine_port: int, program: Path) -> Iterator[Target]:
    """vllm-router, which is written in Rust."""
    port = free_port()
    command = [
        str(program), "--worker-urls", f"http://127.0.0.1:{engine_port}",
        "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--max-concurrent-requests", "4096", "--log-level", "error",
    ]  # fmt: skip
    with _running("vllm-router", command, port, "/health") as target:
        yield target
