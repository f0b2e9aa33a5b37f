"""How an engine stops: no new requests, running ones finish, then the end.

vLLM 0.32 shuts the model down first and its HTTP server last. Until the last running request has
ended it therefore goes on taking new ones, which fail (500, "cannot schedule new futures after
shutdown"), while ``/health`` answers 200: a router in front has no way to know. So the order is
turned round here, with uvicorn's own means: it closes the listening socket and idle connections
(whoever comes now is refused, and goes to another engine), and waits for the answers that are
under way; the model is shut down after that.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import uvicorn

logger = logging.getLogger("uvicorn.error")  # shown as the rest of its log is


def finishing(base: type[uvicorn.Server]) -> type[uvicorn.Server]:
    """vLLM's server class, made to finish what it has on SIGTERM and SIGINT.

    With ``--shutdown-timeout 0``, vLLM's default, everything stays as vLLM has it: running requests
    are aborted at once. After a second signal nothing is waited for either.

    Args:
        base: ``vllm.entrypoints.launchers.launcher.NoSignalServer``, whose application carries
            ``state.engine_client.vllm_config.shutdown_timeout``, in seconds.
    """

    class FinishingServer(base):  # type: ignore[misc, valid-type]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            # vLLM's own handlers are there by now; these take their place.
            engine = getattr(self.config.app.state, "engine_client", None)
            timeout = engine.vllm_config.shutdown_timeout if engine is not None else 0
            if timeout > 0:
                self.config.timeout_graceful_shutdown = timeout
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, _stop, self)

    return FinishingServer


def _stop(server: uvicorn.Server) -> None:
    if server.should_exit:
        server.force_exit = True
        return
    logger.info("stopping: no new requests, %d running", len(server.server_state.tasks))
    server.should_exit = True
