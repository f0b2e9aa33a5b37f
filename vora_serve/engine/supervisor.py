"""Keeping one engine process running: start, wait, watch, restart, stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vora_core.errors import EngineError
from vora_serve.engine.launch import EngineLaunch

logger = logging.getLogger("vora_serve.engine")

Progress = Callable[[str], None]

_NOISE = re.compile(r"^\(?\w* ?pid=\d+\)? ?|^(INFO|DEBUG|WARNING) ")
_TOKENS = re.compile(r"^vllm:(?:prompt|generation)_tokens_total\{[^}]*\} (\S+)$", re.MULTILINE)
_CAUSE = re.compile(r"(?:engine error|error|\w+(?:Error|Exception)): (.+)")


class EngineSupervisor:
    """Starts the engine, restarts it with growing pauses when it dies or hangs, and stops it.

    Args:
        launch: The command; its socket path is replaced by one in a private directory.
        progress: Told what happens while the engine starts, one short line at a time.
        start_timeout_s: Longest wait for the engine's first answer.
        stop_timeout_s: Between SIGTERM and SIGKILL.
        backoff_s, backoff_max_s: First and longest pause before a restart.
        stable_after_s: An engine that ran this long starts the pauses anew.
        hang_timeout_s: Silence after which it is killed: of its health page, or of a request for
            one token that is sent now and then while none of its other requests moved either;
            0: never.
        on_down: Called when the engine is known to be gone.
        show_output: Pass the engine's own output through instead of keeping its last lines.
    """

    def __init__(
        self,
        launch: EngineLaunch,
        *,
        progress: Progress | None = None,
        start_timeout_s: float = 900,
        stop_timeout_s: float = 30,
        backoff_s: float = 1,
        backoff_max_s: float = 60,
        stable_after_s: float = 300,
        hang_timeout_s: float = 60,
        on_down: Callable[[], None] | None = None,
        show_output: bool = False,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vora-serve-"))  # mode 0700
        self.socket = self._directory / "engine.sock"
        self._launch = replace(launch, uds=self.socket)
        self._progress = progress or (lambda _: None)
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._stable_after_s = stable_after_s
        self._hang_timeout_s = hang_timeout_s
        self.on_down = on_down
        self._show_output = show_output
        self._tail: deque[str] = deque(maxlen=200)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._up = False
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The engine's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start the engine and wait until it answers; from then on it is kept running.

        Raises:
            EngineError: it died, or did not answer in time.
        """
        await self._spawn()
        try:
            await self._wait_ready(announce=True)
        except EngineError:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stop the engine and remove its socket."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    # ------------------------------------------------------------------ one life of the process

    async def _spawn(self) -> None:
        self._up = False
        self.socket.unlink(missing_ok=True)
        self._tail.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._launch.command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**self._launch.environment(), "VORA_SERVE_SUPERVISED": "1"},
            start_new_session=True,  # signals to the terminal's group are the gateway's to handle
            limit=2**20,
        )
        self._reader = asyncio.create_task(self._read_output(self._process))

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # an endless line
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self._tail.append(text)
            if self._show_output:
                self._progress(f"[engine] {text}")

    async def _wait_ready(self, announce: bool) -> None:
        process = self._process
        assert process is not None
        began = time.monotonic()
        said = 0.0
        while True:
            if process.returncode is not None:
                if self._reader is not None:
                    await self._reader
                raise EngineError(f"The engine could not be started: {self._cause()}")
            if await self._healthy():
                self._up = True
                if announce:
                    self._progress(f"engine ready after {time.monotonic() - began:.0f} s")
                return
            waited = time.monotonic() - began
            if waited > self._start_timeout_s:
                raise EngineError(
                    f"The engine did not answer within {self._start_timeout_s:.0f} s."
                )
            if announce and waited - said >= 5:
                said = waited
                self._progress(f"engine starting, {waited:.0f} s: {self._stage()}")
            await asyncio.sleep(0.1)

    def _stage(self) -> str:
        """What the engine seems to be doing, by its own last words."""
        stages = (
            ("Starting vLLM server", "opening its socket"),
            ("Graph capturing", "capturing graphs"),
            ("Compiling", "compiling"),
            ("torch.compile", "compiling"),
            ("GPU KV cache size", "laying out the KV cache"),
            ("Loading weights", "loading weights"),
            ("Loading model", "loading weights"),
            ("Initializing a V1 LLM engine", "setting up"),
        )
        for line in reversed(self._tail):
            for sign, stage in stages:
                if sign in line:
                    return stage
        return "importing vLLM"

    def _cause(self) -> str:
        """The reason that the engine's last lines give, in one sentence."""
        for line in reversed(self._tail):
            if line.lstrip().startswith(("File ", "at ", "RuntimeError: Engine core init")):
                continue
            match = _CAUSE.search(line)
            if match is not None and "See root cause above" not in line:
                return match[1].strip().rstrip(".")[:400] + "."
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        code = self._process.returncode if self._process is not None else None
        return f"{_NOISE.sub('', last)[:300] or f'its process ended with code {code}'}."

    async def _healthy(self) -> bool:
        """Whether ``GET /health`` on the socket says 200."""
        if not self.socket.exists():
            return False
        return (await self._ask(b"GET", b"/health", b"", 5)).startswith(b"HTTP/1.1 200")

    async def generates(self) -> bool:
        """Whether the engine still gives a token, or any answer: its health page alone may."""
        body = {"model": self._launch.served_names[0], "prompt": ".", "max_tokens": 1}
        content = json.dumps(body).encode()
        return bool(await self._ask(b"POST", b"/v1/completions", content, self._hang_timeout_s))

    async def _tokens(self) -> float:
        """How many tokens the engine has read and written, by its own count; 0 without one."""
        text = (await self._ask(b"GET", b"/metrics", b"", 5, whole=True)).decode("utf-8", "replace")
        return sum(float(match[1]) for match in _TOKENS.finditer(text))

    async def _ask(
        self, method: bytes, path: bytes, body: bytes, timeout: float, whole: bool = False
    ) -> bytes:
        """The status line of an answer, or the whole answer; empty where there is none in time."""
        writer = None
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                writer.write(
                    method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n"
                    b"Connection: close\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body) + body
                )
                return await (reader.read() if whole else reader.readline())
        except (OSError, TimeoutError):
            return b""
        finally:
            if writer is not None:
                writer.close()

    async def _keep(self) -> None:
        """Restart the engine whenever it ends, until cancelled."""
        backoff = self._backoff_s
        while True:
            began = time.monotonic()
            why = await self._until_gone()
            if self.on_down is not None:
                self.on_down()
            if time.monotonic() - began > self._stable_after_s:
                backoff = self._backoff_s
            logger.error("the engine %s; restarting in %.1f s", why, backoff)
            await self._end(at_once=True)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, self._backoff_max_s)
            self.restarts += 1
            try:
                await self._spawn()
                await self._wait_ready(announce=False)
            except (EngineError, OSError) as error:
                logger.error("%s", error)
                continue
            logger.warning("the engine is back after %.0f s", time.monotonic() - began)

    async def _until_gone(self) -> str:
        process = self._process
        assert process is not None
        ended = asyncio.ensure_future(process.wait())
        watch = asyncio.ensure_future(self._until_hung())
        try:
            await asyncio.wait({ended, watch}, return_when=asyncio.FIRST_COMPLETED)
            if process.returncode is not None:
                return f"ended with code {process.returncode}"
            return f"has not answered for {self._hang_timeout_s:.0f} s"
        finally:
            ended.cancel()
            watch.cancel()

    async def _until_hung(self) -> None:
        """Until neither a health page nor a token came within the hang timeout.

        The request for a token waits behind all others: an engine that is merely busy, or starved
        of CPU, shows in its counts of tokens, which grow.
        """
        last_answer = last_token = time.monotonic()
        asking: asyncio.Task[bool] | None = None
        tokens = 0.0
        try:
            while True:
                await asyncio.sleep(min(2.0, self._hang_timeout_s / 4 or 2.0))
                if not self._hang_timeout_s:
                    continue
                if await self._healthy():
                    last_answer = time.monotonic()
                if time.monotonic() - last_answer > self._hang_timeout_s:
                    return
                if asking is None and time.monotonic() - last_token > self._hang_timeout_s / 2:
                    tokens = await self._tokens()
                    asking = asyncio.create_task(self.generates())
                if asking is not None and asking.done():
                    if not asking.result() and await self._tokens() <= tokens:
                        return
                    asking, last_token = None, time.monotonic()
        finally:
            if asking is not None:
                asking.cancel()

    async def _end(self, at_once: bool = False) -> None:
        """End the process and its subprocesses: SIGTERM, then SIGKILL; at once if it hangs."""
        process = self._process
        if process is None:
            return
        if process.returncode is None and not at_once:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            # One that has not come up yet has no work to finish, and may not listen either.
            patience = self._stop_timeout_s if self._up else min(3.0, self._stop_timeout_s)
            try:
                async with asyncio.timeout(patience):
                    await process.wait()
            except TimeoutError:
                logger.warning("the engine did not stop in time and is killed")
        # Its subprocesses share its session; none of them may outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._reader is not None:
            # A subprocess that still holds the pipe open must not delay this.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._reader
        self._process = None
        self.socket.unlink(missing_ok=True)
