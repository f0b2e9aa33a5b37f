"""A process that looks into answers, started by the first question and ended by silence.

``vora-serve serve`` listens on a Unix socket in its place. The first connection starts the process,
which inherits the socket and answers what waits there. Nobody who never looks pays for it: neither
the gateway nor this module loads torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from vora_core.checkpoint import MODEL_TYPE, CheckpointHeader, find_local
from vora_core.errors import VoRAError
from vora_serve.gateway.listen import bind_unix

logger = logging.getLogger("vora_serve.explain")

#: Weights above this are not loaded a second time without being asked: in float32 it doubles.
SMALL_BYTES = 2**30
_STOP_S = 5.0
#: Between a process that ended by itself, idle or broken, and the next one.
_PAUSE_S = 1.0


def is_small(location: str) -> bool:
    """Whether a checkpoint is on this machine, is VoRA, and has at most ``SMALL_BYTES`` of weights.

    Args:
        location: a folder, or a hub id whose files are in the local cache.
    """
    folder = find_local(location)
    if folder is None:
        return False
    try:
        header = CheckpointHeader.open(folder)
        return header.model_type == MODEL_TYPE and header.weight_bytes <= SMALL_BYTES
    except VoRAError:
        return False


class OnDemand:
    """The socket, and the process behind it while somebody looks.

    Args:
        model: folder or hub id of the checkpoint.
        idle_s: the process ends after so many seconds without a question.

    Attributes:
        model: the same.
        socket: where it listens once :meth:`listen` was called.
    """

    def __init__(self, model: str, idle_s: float) -> None:
        self.model = model
        self._idle_s = idle_s
        self._directory = Path(tempfile.mkdtemp(prefix="vora-explain-"))  # mode 0700
        self.socket = self._directory / "explain.sock"
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def listen(self) -> None:
        """Take connections; the first one starts the process. Needs a running event loop."""
        self._listener = bind_unix(self.socket)
        self._keeper = asyncio.create_task(self._keep(self._listener))

    async def stop(self) -> None:
        """End the process and remove the socket."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _keep(self, listener: socket.socket) -> None:
        while True:
            await _asked(listener)
            try:
                code = await self._run(listener)
            except OSError as error:
                logger.error("the view of attention cannot be started: %s", error)
                code = 1
            if code:
                _turn_away(listener)
            # One that ended idle may have left a connection that came at its last moment.
            await asyncio.sleep(_PAUSE_S)

    def command(self, descriptor: int) -> list[str]:
        """The process's command line; it inherits the socket ``descriptor``."""
        program = [sys.executable, "-m", "vora_serve.explain"]
        return [*program, str(descriptor), self.model, str(self._idle_s)]

    async def _run(self, listener: socket.socket) -> int:
        """One life of the process; its exit code."""
        logger.info("starting the view of attention")
        process = await asyncio.create_subprocess_exec(
            *self.command(listener.fileno()),
            stdin=asyncio.subprocess.PIPE,  # closes with this process, whatever ends it
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # signals to the terminal's group are the gateway's to handle
            env={**os.environ, "HF_HUB_OFFLINE": "1"},  # the engine has fetched what there is
        )
        self._process = process
        try:
            assert process.stderr is not None
            said = await _tail(process.stderr)
            code = await process.wait()
        finally:
            await _end(process)
        if code:
            last = (said.strip().splitlines() or [""])[-1]
            logger.error("the view of attention ended with code %d: %s", code, last[:400])
        return code


async def _tail(stream: asyncio.StreamReader) -> str:
    """The end of what is written until the stream closes."""
    kept = b""
    while piece := await stream.read(4096):
        kept = (kept + piece)[-4096:]
    return kept.decode("utf-8", "replace")


async def _asked(listener: socket.socket) -> None:
    """Until a connection waits on the socket."""
    loop = asyncio.get_running_loop()
    waits = asyncio.Event()
    loop.add_reader(listener, waits.set)
    try:
        await waits.wait()
    finally:
        loop.remove_reader(listener)


def _turn_away(listener: socket.socket) -> None:
    """Close the connections that nobody will answer; those who asked then see why in the log."""
    listener.setblocking(False)  # a mode that is shared with the process that has ended
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
