"""What is measured: an engine, and gateways in front of it; each with the CPU time it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.gateway.targets import LITELLM_KEY, free_port
from vora_serve.engine.launch import safe_flags

MODEL = "m"
START_S = 900


@dataclass
class Process:
    """A program under measurement.

    Attributes:
        port: where it listens.
        popen: the process.
        key: what it asks of clients.
    """

    port: int
    popen: subprocess.Popen[bytes]
    key: str | None = None

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of what answers HTTP, and of what computes the model."""
        top = psutil.Process(self.popen.pid)
        front = core = 0.0
        for process in [top, *top.children(recursive=True)]:
            try:
                times, command = process.cpu_times(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            used = times.user + times.system
            if "EngineCore" in command or "Worker" in command:
                core += used
            else:
                front += used
        return front, core


@dataclass
class System:
    """What a client asks, and the programs behind it.

    Attributes:
        name: of the row in the report.
        entry: where requests go.
        before: programs in front of the engine.
        engine: the engine.
    """

    name: str
    entry: Process
    before: Sequence[Process]
    engine: Process

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far by part."""
        front, core = self.engine.cpu_s()
        return {
            "gateway": sum(sum(process.cpu_s()) for process in self.before),
            "front end": front,
            "model": core,
        }


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    ready: str,
    log: Path,
    *,
    key: str | None = None,
    env: dict[str, str] | None = None,
    tree: Path | None = None,
) -> Iterator[Process]:
    """A program, from its first good answer on."""
    own = {"PYTHONPATH": str(tree)} if tree is not None else {}
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {}), **own},
            cwd=tree,
        )
        try:
            _wait(f"http://127.0.0.1:{port}{ready}", popen, log)
            yield Process(port, popen, key)
        finally:
            popen.send_signal(signal.SIGTERM)
            try:
                popen.wait(30)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


def _wait(url: str, popen: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if popen.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise RuntimeError(f"it did not come up: {log.read_text()[-2000:]}")


@contextmanager
def engine(
    model: Path, log: Path, *, tree: Path | None = None, servers: int = 1, plain: bool = False
) -> Iterator[Process]:
    """``vora-serve engine``.

    Args:
        model: the checkpoint.
        log: file for its output.
        tree: a checkout whose code it runs; this one where absent.
        servers: HTTP servers in it.
        plain: without what this project adds for images that come ready.
    """
    port = free_port()
    flags = safe_flags(16)
    flags.pop("--middleware")
    if tree is None and not plain:
        flags["--middleware"] = ["model_plugin.engine.announce.AnnounceImages"]
    given = [word for flag, values in flags.items() for word in (flag, *values)]
    command = [
        *(sys.executable, "-m", "vora_serve.engine", "--model", str(model)),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *("--enforce-eager", *given),
    ]
    if servers > 1:
        command += ["--api-server-count", str(servers)]
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with running(command, port, "/health", log, env=env, tree=tree) as process:
        yield process


@contextmanager
def gateway(
    behind: Process, log: Path, *, tree: Path | None = None, fast: bool = False
) -> Iterator[Process]:
    """``vora-serve serve`` in front of an engine, with its default settings.

    Args:
        behind: the engine.
        log: file for its output.
        tree: a checkout whose code it runs; this one where absent.
        fast: decode JPEGs at a fraction of their size.
    """
    port = free_port()
    command = [
        *(sys.executable, "-c", "from vora_serve.cli import main; main()", "serve"),
        *("--upstream", f"http://127.0.0.1:{behind.port}", "--port", str(port)),
    ]
    env = {"VORA_SERVE_LOGGING__ACCESS": "false"}
    if fast:
        env["VORA_SERVE_IMAGES__FAST_DECODE"] = "true"
    with running(command, port, "/ready", log, env=env, tree=tree) as process:
        yield process


@contextmanager
def litellm(behind: Process, program: Path, log: Path) -> Iterator[Process]:
    """LiteLLM's proxy in front of an engine, one worker."""
    port = free_port()
    config = (
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n"
        f"      model: hosted_vllm/{MODEL}\n      api_base: http://127.0.0.1:{behind.port}/v1\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(config)
        file.flush()
        command = [
            *(str(program), "--config", file.name, "--port", str(port), "--host", "127.0.0.1"),
            *("--num_workers", "1", "--telemetry", "False"),
        ]
        env = {
            "LITELLM_MASTER_KEY": LITELLM_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        with running(command, port, "/health/liveliness", log, key=LITELLM_KEY, env=env) as process:
            yield process
