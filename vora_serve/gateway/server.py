"""Running the application under uvicorn: the socket, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from vora_serve.gateway.memory import give_back_freed_memory
from vora_serve.gateway.protocol import GatewayProtocol
from vora_serve.gateway.settings import Settings
from vora_serve.gateway.state import GatewayState

logger = logging.getLogger("vora_serve.gateway")


class Server(uvicorn.Server):
    """uvicorn, with signals handled by whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=GatewayProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=int(settings.server.keep_alive_s),
        backlog=settings.server.backlog,
        timeout_graceful_shutdown=5,
    )


async def serve(
    app: FastAPI,
    settings: Settings,
    listener: socket.socket,
    stop: asyncio.Event,
    on_started: Callable[[], None] | None = None,
) -> None:
    """Serve until ``stop`` is set, then drain: not ready at once, streams finish, then the end.

    Args:
        app: From :func:`vora_serve.gateway.create_app`.
        settings: For times.
        listener: A bound, listening socket.
        stop: Set by a signal handler; set twice (cleared and set) it changes nothing.
        on_started: Called once requests are taken.
    """
    give_back_freed_memory()
    state: GatewayState = app.state.gateway
    server = Server(_uvicorn_config(app, settings))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if running.done():
        await running
        return
    # What the start has made lives as long as the process; collecting garbage among it as well
    # took a tenth of a text request's time.
    gc.collect()
    gc.freeze()
    if on_started is not None:
        on_started()
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not running.done():
        await _drain(state, settings)
        server.should_exit = True
    await running


async def _drain(state: GatewayState, settings: Settings) -> None:
    state.draining = True
    logger.info("draining", extra={"fields": {"in_flight": len(state.active)}})
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.server.drain_delay_s
    end = until + settings.server.grace_period_s
    while loop.time() < until:
        await asyncio.sleep(0.05)
    state.closing = True
    while loop.time() < end and state.active:
        await asyncio.sleep(0.05)
    state.cut_all()
    for _ in range(20):
        if not state.active:
            break
        await asyncio.sleep(0.05)
