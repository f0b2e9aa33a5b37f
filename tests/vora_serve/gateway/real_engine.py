"""``vora-serve serve`` with a real vLLM engine for the tiny released checkpoint, as a process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

MODEL = Path(__file__).parents[2] / "fixtures" / "released_vora_tiny" / "merged"


@dataclass
class Served:
    """A running command."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_ready(self, within: float = 240) -> float:
        """Until an engine can take work; how long it took."""
        began = time.monotonic()
        while time.monotonic() - began < within:
            if self.process.poll() is not None:
                raise RuntimeError(f"it ended: {self.log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return time.monotonic() - began
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"not ready: {self.log.read_text()[-3000:]}")

    def engine_processes(self) -> list[psutil.Process]:
        """The supervised engine and its children, the API server first."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine_pids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for process in self.engine_processes()]

    def running_requests(self) -> float:
        """What the engine itself counts as running or waiting."""
        return self.engine_metric("vllm:num_requests_running", "vllm:num_requests_waiting{")

    def generated_tokens(self) -> float:
        """How many tokens the engine has generated since it started."""
        return self.engine_metric("vllm:generation_tokens_total")

    def engine_socket(self) -> str:
        """Where the supervised engine listens."""
        match = re.search(r'upstream="unix:([^"]+)"', httpx.get(f"{self.url}/metrics").text)
        assert match is not None
        return match[1]

    def engine_metric(self, *prefixes: str) -> float:
        """The sum of the engine's own metrics of these names, asked for behind the gateway."""
        transport = httpx.HTTPTransport(uds=self.engine_socket())
        with httpx.Client(transport=transport, base_url="http://engine") as client:
            text = client.get("/metrics", timeout=20).text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(prefixes)
        )


@contextmanager
def command(tmp_path: Path, *arguments: str, log: str = "serve.log") -> Iterator[Served]:
    """``vora-serve serve`` with these arguments, ready; stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = tmp_path / log
    call = [
        sys.executable, "-c", "from vora_serve.cli import main; main()", "serve",
        "--port", str(port), *arguments,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "2", "VORA_SERVE_ENGINE__CPU_KVCACHE_GIB": "1"}
    with path.open("wb") as output:
        process = subprocess.Popen(call, stdout=output, stderr=output, env=env)
        served = Served(f"http://127.0.0.1:{port}", process, path)
        try:
            served.wait_ready()
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def serving(
    tmp_path: Path,
    *arguments: str,
    model: Path = MODEL,
    name: str = "tiny",
    engine_arguments: Sequence[str] = (),
) -> Iterator[Served]:
    """The command with an engine of its own."""
    engine = [
        "--", "--max-model-len", "1024", "--enforce-eager",
        # A random model would fill its answers with whitespace.
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
        *engine_arguments,
    ]  # fmt: skip
    names = ["--model", str(model), "--served-model-name", name, "--verbose"]
    images = ["--allow-image-network", "127.0.0.1/32"]
    with command(tmp_path, *names, *images, *arguments, *engine) as served:
        yield served
