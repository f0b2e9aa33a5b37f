"""``vora-serve serve``: the gateway with a supervised engine, or in front of engines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vora_core.adapter import AdapterHeader
from vora_core.errors import ConfigError, VoRAError
from vora_core.installation import program
from vora_serve.engine import (
    AdapterFlags,
    EngineLaunch,
    EngineSupervisor,
    ServedCheckpoint,
    check_checkpoint,
    check_engine_installed,
)
from vora_serve.engine.download import fetch
from vora_serve.explain.on_demand import OnDemand, is_small
from vora_serve.gateway.listen import bind, check_exposure
from vora_serve.gateway.logs import configure_logging, logs_are_json
from vora_serve.gateway.playground import explain_command
from vora_serve.gateway.settings import Settings, load_settings

logger = logging.getLogger("vora_serve.serve")


def say(line: str) -> None:
    """Progress for a person, on standard error; for a program where the logs are for one."""
    if logs_are_json():
        logger.info("%s", line)
        return
    sys.stderr.write(f"vora-serve: {line}\n")
    sys.stderr.flush()


def check_settings(settings: Settings) -> ServedCheckpoint | None:
    """Everything that can be refused before anything is started.

    Returns:
        The checkpoint to start an engine for, or None with engines elsewhere.

    Raises:
        ConfigError
    """
    check_exposure(settings)
    if settings.engine.model is not None and settings.upstreams:
        raise ConfigError("Give either a model to serve or upstreams, not both.")
    if settings.engine.model is None and not settings.upstreams:
        raise ConfigError(
            f"Nothing to serve. Give a model ({program()} serve PATH_OR_HUB_ID), "
            "or the URL of a running engine (--upstream URL)."
        )
    limited = settings.admission.requests or settings.admission.tokens or settings.auth.keys_file
    in_memory = settings.admission.rate_limit_storage.startswith("memory:")
    if settings.server.workers > 1 and in_memory and limited:
        raise ConfigError(
            "Rate limits in memory hold for one process: with several workers, set "
            "admission.rate_limit_storage to a Redis address."
        )
    if settings.engine.model is None:
        return None
    host = bool(_adapter_flags(settings))
    for folder in settings.engine.vision_adapters.values():
        AdapterHeader.open(folder)
    checkpoint = check_checkpoint(settings.engine.model, host=host)
    check_engine_installed()
    return checkpoint


def _adapter_flags(settings: Settings) -> AdapterFlags:
    """Vision adapters as the settings have them.

    Raises:
        ConfigError: limits are given, but no adapters.
    """
    engine = settings.engine
    flags = AdapterFlags(
        [f"{name}={folder}" for name, folder in engine.vision_adapters.items()],
        engine.adapters_folder,
        engine.max_adapters,
        engine.adapter_rank,
        engine.adapter_image_tokens,
    )
    for name in ("max_adapters", "adapter_rank", "adapter_image_tokens"):
        if not flags and getattr(engine, name) is not None:
            raise ConfigError(
                f"engine.{name} goes with engine.vision_adapters or engine.adapters_folder."
            )
    return flags


class Service:
    """Everything that ``vora-serve serve`` runs.

    Args:
        settings: What is in force.
        config, flags: Where it came from, for workers and for reloading.
        show_engine_output: Pass the engine's own output through.
    """

    def __init__(
        self,
        settings: Settings,
        config: Path | None,
        flags: Mapping[str, Any],
        show_engine_output: bool = False,
    ) -> None:
        self._settings = settings
        self._config = config
        self._flags = dict(flags)
        self._show_engine_output = show_engine_output
        self._stop = asyncio.Event()
        self._supervisor: EngineSupervisor | None = None
        self._remote: ServedCheckpoint | None = None
        self._explainer: OnDemand | None = None

    async def run(self, checkpoint: ServedCheckpoint | None, listener: socket.socket) -> None:
        """Serve until asked to stop.

        Raises:
            EngineError: the engine could not be started.
        """
        if checkpoint is not None:
            self._supervisor = self._make_supervisor(checkpoint)
            self._remote = None if checkpoint.local else checkpoint
            uds = f"unix:{self._supervisor.socket}"
            self._flags = {**self._flags, "upstreams": [{"url": uds}]}
            self._prepare_explainer(checkpoint)
            # The worker knows a supervised engine by its socket alone.
            self._settings = load_settings(self._config, self._flags)
        front = self._several() if self._settings.server.workers > 1 else self._one()
        serving = asyncio.create_task(front.run(listener))
        handle = front.handlers()
        handle()
        try:
            await self._beside(serving, front)
        finally:
            if not self._stop.is_set():  # asked a second time, it would cut what still goes on
                front.interrupt()
            try:
                await serving
            finally:
                if self._explainer is not None:
                    await self._explainer.stop()
                if self._supervisor is not None:
                    say("stopping the engine")
                    await self._supervisor.stop()

    def _one(self) -> _Here:
        return _Here(self._settings, self._config, self._flags, self._stop)

    def _several(self) -> _Workers:
        return _Workers(self._settings, self._config, self._flags, self._stop)

    async def _beside(self, serving: asyncio.Task[None], front: _Here | _Workers) -> None:
        """Start the engine while the gateway already answers, then wait for the end."""
        stopped = asyncio.create_task(self._stop.wait())
        where = f"http://{self._settings.server.host}:{self._settings.server.port}"
        starting: asyncio.Task[None] | None = None
        waiting: set[asyncio.Task[Any]] = {serving, stopped}
        try:
            if self._supervisor is not None:
                self._supervisor.on_down = front.engine_down
                say(f"gateway on {where}, starting the engine")
                starting = asyncio.create_task(self._start_engine(self._supervisor))
                waiting.add(starting)
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if starting not in done:
                    return
                await starting
                waiting.discard(starting)
            names = ", ".join(self._settings.engine.served_model_name) or "engines elsewhere"
            if self._supervisor is not None:
                names = self._settings.engine.model or ""
            say(f"serving {names} on {where}")
            if self._settings.playground.enabled:
                command = self._chat_command(where)
                say(f"open {where} in a browser, or chat in a terminal: {command}")
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if starting is not None and not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)

    async def _start_engine(self, supervisor: EngineSupervisor) -> None:
        if self._remote is not None:
            say(f"fetching {self._remote.location}, or looking for what has changed")
            await fetch(self._remote.location, self._settings.engine.args)
        if self._explainer is not None:
            self._offer_explanations(self._explainer)
        await supervisor.start()

    def _prepare_explainer(self, checkpoint: ServedCheckpoint) -> None:
        """Reserve the place where the model is looked into, unless the settings name another."""
        playground = self._settings.playground
        if not playground.enabled or playground.explain == "never" or playground.explain_url:
            return
        if _adapter_flags(self._settings):
            return  # a plain LLM, which is not the model that sees
        self._explainer = OnDemand(checkpoint.location, playground.explain_idle_s)
        given = {"explain_url": f"unix:{self._explainer.socket}"}
        self._flags["playground"] = {**self._flags.get("playground", {}), **given}

    def _offer_explanations(self, explainer: OnDemand) -> None:
        """Let the first question start the process, or say what starts it."""
        if self._settings.playground.explain == "always" or is_small(explainer.model):
            explainer.listen()
            return
        say(f"to see where the model looks, run: {explain_command(self._settings)}")

    @staticmethod
    def _chat_command(where: str) -> str:
        usual = "http://127.0.0.1:8000"
        command = f"{program()} chat"
        return command if where == usual else f"{command} --base-url {where}"

    def _make_supervisor(self, checkpoint: ServedCheckpoint) -> EngineSupervisor:
        engine = self._settings.engine
        launch = EngineLaunch(
            model=checkpoint.location,
            served_names=engine.served_model_name or [checkpoint.name],
            uds=Path("unset"),
            args=engine.args,
            max_images=self._settings.images.max_count,
            cpu_kvcache_gib=engine.cpu_kvcache_gib,
            adapters=_adapter_flags(self._settings) or None,
        )
        return EngineSupervisor(
            launch,
            progress=say,
            start_timeout_s=engine.start_timeout_s,
            stop_timeout_s=engine.stop_timeout_s,
            backoff_s=engine.restart_backoff_s,
            backoff_max_s=engine.restart_backoff_max_s,
            stable_after_s=engine.stable_after_s,
            hang_timeout_s=engine.hang_timeout_s,
            show_output=self._show_engine_output,
        )


class _Here:
    """The gateway in this process."""

    def __init__(
        self,
        settings: Settings,
        config: Path | None,
        flags: Mapping[str, Any],
        stop: asyncio.Event,
    ) -> None:
        from vora_serve.gateway.worker import Worker

        self._worker = Worker(settings, config, flags)
        self._stop = stop

    def handlers(self) -> Any:
        from vora_serve.gateway.worker import handle_signals

        return lambda: handle_signals(self.interrupt, self._worker.reload)

    async def run(self, listener: socket.socket) -> None:
        await self._worker.run(listener)

    def interrupt(self) -> None:
        self._stop.set()
        self._worker.interrupt()

    def engine_down(self) -> None:
        for upstream in self._worker.state.balancer.upstreams:
            upstream.mark_down()


class _Workers:
    """The gateway in several processes that share the listening socket."""

    def __init__(
        self,
        settings: Settings,
        config: Path | None,
        flags: Mapping[str, Any],
        stop: asyncio.Event,
    ) -> None:
        count = settings.server.workers
        self._count = count
        self._stop = stop
        # Each worker gets its share of the caps that hold for the whole gateway.
        admission = settings.admission
        shares = {
            "admission": {
                "max_in_flight": -(-admission.max_in_flight // count),
                "max_queued": -(-admission.max_queued // count),
            },
            "routing": {"max_in_flight": -(-settings.routing.max_in_flight // count)},
        }
        merged = {**flags}
        for section, values in shares.items():
            merged[section] = {**merged.get(section, {}), **values}
        self._given = json.dumps({"config": str(config) if config else None, "flags": merged})
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._asked = False

    def handlers(self) -> Any:
        from vora_serve.gateway.worker import handle_signals

        return lambda: handle_signals(self.interrupt, lambda: self._signal(signal.SIGHUP))

    def _signal(self, number: int) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def interrupt(self) -> None:
        self._stop.set()
        self._asked = True
        self._signal(signal.SIGTERM)

    def engine_down(self) -> None:
        """Workers find out by their own probes."""

    async def run(self, listener: socket.socket) -> None:
        with tempfile.TemporaryDirectory(prefix="vora-metrics-") as directory:
            await asyncio.gather(
                *(self._keep(index, listener, directory) for index in range(self._count))
            )

    async def _keep(self, index: int, listener: socket.socket, directory: str) -> None:
        while not self._asked:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "vora_serve.gateway.worker",
                str(listener.fileno()),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": directory},
            )
            assert process.stdin is not None
            self._processes[index] = process
            process.stdin.write(self._given.encode())
            process.stdin.close()
            if self._asked:
                process.send_signal(signal.SIGTERM)
            code = await process.wait()
            self._forget_metrics(directory, process.pid)
            if not self._asked:
                logger.error("worker %d ended with code %d; restarting it", index, code)
                await asyncio.sleep(1)

    @staticmethod
    def _forget_metrics(directory: str, pid: int) -> None:
        """Gauges of a process that is gone must not count any more."""
        for path in Path(directory).glob(f"gauge_live*_{pid}.db"):
            path.unlink(missing_ok=True)


def run_service(
    config: Path | None, flags: Mapping[str, Any], show_engine_output: bool = False
) -> int:
    """The whole of ``vora-serve serve``; returns the exit code.

    Raises:
        VoRAError
    """
    import uvloop

    settings = load_settings(config, flags)
    configure_logging(settings.logging)
    checkpoint = check_settings(settings)
    with bind(settings.server.host, settings.server.port, settings.server.backlog) as listener:
        if settings.server.port == 0:
            port = listener.getsockname()[1]
            flags = {**flags, "server": {**flags.get("server", {}), "port": port}}
            settings = load_settings(config, flags)

        async def main() -> None:
            service = Service(settings, config, flags, show_engine_output)
            await service.run(checkpoint, listener)

        try:
            uvloop.run(main())
        except KeyboardInterrupt:
            return 0
        except OSError as error:
            raise VoRAError(f"The server failed: {error}.") from None
    return 0
