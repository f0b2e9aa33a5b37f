"""Servers of a run: started here, or pointed at; watched for being what they were."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtest.servers.processes import end_tree
from loadtest.servers.target import Target
from loadtest.settings import EngineSettings, ServerSpec
from vora_core.errors import ConfigError, EngineError

PROGRAMS = Path(__file__).parents[1] / "programs"
_PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    """A port on loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server of a run.

    Args:
        spec: what it is.
        engine: what all engines of the run get.
        logs: folder for its output.
        upstream: the server that it proxies.
    """

    def __init__(
        self, spec: ServerSpec, engine: EngineSettings, logs: Path, upstream: Server | None = None
    ) -> None:
        self.spec = spec
        self.upstream = upstream
        self.log = logs / f"{spec.name}.log"
        self.start_s: float | None = None
        self._engine = engine
        self._process: subprocess.Popen[bytes] | None = None
        self._url = spec.url or ""
        self._seen: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name in the run."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """Root of its processes; None for one that runs elsewhere."""
        return self._process.pid if self._process is not None else None

    @property
    def target(self) -> Target:
        """Where requests go."""
        return Target(self._url, self._model_name(), self._key())

    @property
    def metrics_urls(self) -> list[str]:
        """Its own metrics first, then those of the server that it proxies."""
        own = [] if self.spec.kind == "delay" else [self._url]
        return own + (self.upstream.metrics_urls if self.upstream is not None else [])

    def root(self) -> Server:
        """The server at the end of the chain of upstreams."""
        return self if self.upstream is None else self.upstream.root()

    def pids(self) -> list[int]:
        """Roots of its own processes and of its upstream's."""
        own = [self.pid] if self.pid is not None else []
        return own + (self.upstream.pids() if self.upstream is not None else [])

    def checkpoint(self) -> Path | None:
        """Folder of the weights that answer its requests, where known."""
        if self.upstream is not None:
            return self.upstream.checkpoint()
        if self.spec.model is not None and Path(self.spec.model).is_dir():
            return Path(self.spec.model)
        return None

    def start(self) -> None:
        """Start it, unless it runs elsewhere, and wait until it answers.

        Raises:
            EngineError: it does not.
            ConfigError: its checkpoint cannot be served here.
        """
        began = time.monotonic()
        if self.spec.kind != "url":
            port = free_port()
            self._url = f"http://127.0.0.1:{port}"
            env = {**os.environ, **_PRIVATE, **self._engine.env, **self.spec.env}
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(port), stdout=log, stderr=log, env=env, start_new_session=True
                )
        self._wait(began + self._engine.start_timeout_s)
        self.start_s = time.monotonic() - began
        self._seen = self._identity()

    def stop(self) -> None:
        """End its processes."""
        if self._process is not None:
            end_tree(self._process.pid)
            self._process.wait()
            self._process = None

    def check(self) -> None:
        """See that it lives and serves what it served when it started.

        Raises:
            EngineError
        """
        self._check_alive()
        if self.upstream is not None:
            self.upstream._check_alive()
        found = self._identity()
        if found != self._seen:
            raise EngineError(
                f"The server {self.name} serves another model than before: "
                f"{found}, not {self._seen}."
            )

    def identity(self) -> dict[str, Any]:
        """What it said of its model when it started."""
        return dict(self._seen or {})

    def _key(self) -> str | None:
        """The key that goes with requests, if any.

        Raises:
            ConfigError: its file cannot be read.
        """
        if self.spec.api_key_env is not None:
            return os.environ.get(self.spec.api_key_env)
        if self.spec.api_key_file is None:
            return None
        try:
            return self.spec.api_key_file.read_text(encoding="utf-8").strip() or None
        except OSError as error:
            raise ConfigError(
                f"The key's file {self.spec.api_key_file} cannot be read: {error.strerror}."
            ) from None

    def _model_name(self) -> str:
        if self.spec.kind == "url":
            return self.spec.model or str((self._seen or {}).get("id", ""))
        return self.upstream._model_name() if self.upstream is not None else self.name

    def _command(self, port: int) -> list[str]:
        spec = self.spec
        python = spec.python or sys.executable
        own = [*self._engine.args, *spec.args]
        if spec.kind == "stock":
            return [
                *(python, str(PROGRAMS / "stock_engine.py"), "--model", str(spec.model)),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--served-model-name", spec.name, "--disable-uvicorn-access-log", *own),
            ]
        if spec.kind == "delay":
            assert self.upstream is not None
            there = self.upstream.target.url.removeprefix("http://")
            program = str(PROGRAMS / "delay_proxy.py")
            return [python, program, str(port), there, str(spec.delay_ms)]
        vora_serve = Path(python).parent / "vora-serve"
        if not vora_serve.exists():
            raise ConfigError(
                f"{spec.name} cannot be started: no vora-serve is installed beside {python}."
            )
        if spec.kind == "gateway":
            assert self.upstream is not None
            url = self.upstream.target.url
            return [
                *(str(vora_serve), "serve", "--upstream", url, "--port", str(port)),
                *spec.args,
            ]
        if spec.kind == "serve":
            return [
                *(str(vora_serve), "serve", "--model", str(spec.model), "--port", str(port)),
                *("--served-model-name", spec.name, "--verbose", "--", *own),
            ]
        return [
            *(str(vora_serve), "engine", "--model", str(spec.model), "--port", str(port)),
            *("--", "--served-model-name", spec.name, *own),
        ]

    def _check_alive(self) -> None:
        if self._process is None:
            return
        code = self._process.poll()
        if code is not None:
            raise EngineError(f"The server {self.name} ended with code {code}{self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line.strip() for line in lines if "rror" in line and "File" not in line]
        said = (telling or [line.strip() for line in lines if line.strip()] or [""])[-1]
        return f": {said[:300]} (all of it: {self.log})" if said else f"; see {self.log}."

    def _wait(self, until: float) -> None:
        while True:
            self._check_alive()
            try:
                self._identity()
                if self._is_ready():
                    return
                raise EngineError(f"The server {self.name} is not ready.")
            except EngineError:
                if time.monotonic() > until:
                    raise EngineError(
                        f"The server {self.name} did not answer within "
                        f"{self._engine.start_timeout_s:.0f} s; see {self.log}."
                        if self._process is not None
                        else f"The server {self.name} at {self._url} does not answer."
                    ) from None
                if self._process is None and time.monotonic() > until - (
                    self._engine.start_timeout_s - 10
                ):
                    raise
            time.sleep(0.3)

    def _is_ready(self) -> bool:
        """Gateways list models before an engine can take work; they say so at ``/ready``."""
        if self.spec.kind not in ("gateway", "serve"):
            return True
        try:
            return httpx.get(f"{self._url}/ready", timeout=30).status_code == 200
        except httpx.HTTPError:
            return False

    def _identity(self) -> dict[str, Any]:
        """Name, path and length of the model, from ``/v1/models``, and the age of the process.

        Raises:
            EngineError: it does not answer, or has no such model.
        """
        key = self._key()
        headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            answer = httpx.get(f"{self._url}/v1/models", headers=headers, timeout=30)
            models = answer.raise_for_status().json()["data"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"The server {self.name} does not list its models: {type(error).__name__} {error}."
            ) from None
        wanted = self._model_name()
        for model in models:
            if model.get("id") == wanted or not wanted:
                keys = ("id", "root", "max_model_len")
                found = {name: model.get(name) for name in keys}
                if self.pid is not None:
                    found["started"] = psutil.Process(self.pid).create_time()
                return found
        names = [model.get("id") for model in models]
        raise EngineError(f"The server {self.name} serves {names}, not {wanted}.")
