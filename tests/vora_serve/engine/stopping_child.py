"""A server of the class under test, without vLLM: ``python -m ... SOCKET RELEASE TIMEOUT_S``.

Its one answer says ``begun``, and ``ended`` once the file RELEASE is there. As vLLM does, it has
signal handlers of its own when the server starts; they end the process with code 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from vora_serve.engine.stopping import finishing


class Base(uvicorn.Server):
    """As vLLM's: signals are somebody else's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def application(release: Path, timeout_s: int) -> FastAPI:
    """An application that carries what vLLM's carries."""
    app = FastAPI()
    app.state.engine_client = SimpleNamespace(
        vllm_config=SimpleNamespace(shutdown_timeout=timeout_s)
    )

    async def pieces() -> AsyncIterator[str]:
        yield "begun\n"
        while not release.exists():
            await asyncio.sleep(0.02)
        yield "ended\n"

    @app.get("/")
    async def root() -> StreamingResponse:
        return StreamingResponse(pieces())

    return app


async def main() -> None:
    listener, release, timeout_s = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    config = uvicorn.Config(application(release, timeout_s), log_level="critical")
    sockets = [socket.socket(fileno=listener)]
    serving = asyncio.create_task(finishing(Base)(config).serve(sockets))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, os._exit, 7)
    await serving


if __name__ == "__main__":
    asyncio.run(main())
