"""One gateway process: in the main process, or one of several that share a listening socket.

``python -m vora_serve.gateway.worker FD`` serves on the inherited socket; its configuration comes
as JSON on standard input: ``{"config": path or null, "flags": {...}}``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError
from vora_serve.gateway.app import create_app
from vora_serve.gateway.logs import configure_logging
from vora_serve.gateway.server import serve
from vora_serve.gateway.settings import Settings, load_settings
from vora_serve.gateway.state import GatewayState

logger = logging.getLogger("vora_serve.gateway")


class Worker:
    """The gateway in this process.

    Args:
        settings: What is in force.
        config, flags: Where to read the engines from again on a reload.
    """

    def __init__(self, settings: Settings, config: Path | None, flags: Mapping[str, Any]) -> None:
        self.settings = settings
        self._config = config
        self._flags = flags
        self.app = create_app(settings)
        self.state: GatewayState = self.app.state.gateway
        self.stop = asyncio.Event()

    async def run(
        self, listener: socket.socket, on_started: Callable[[], None] | None = None
    ) -> None:
        """Serve until :attr:`stop` is set, then drain."""
        await serve(self.app, self.settings, listener, self.stop, on_started)

    def interrupt(self) -> None:
        """Drain; asked a second time, cut what is still going on."""
        again = self.stop.is_set()
        self.stop.set()
        if again:
            self.state.cut_all()
        try:
            self.state.audit.record("gateway.cut" if again else "gateway.stopped")
        except ConfigError as error:  # stopping matters more
            logger.error("%s", error)

    def reload(self) -> None:
        """Read the engines and keys again; a broken configuration changes nothing."""
        self.state.keys.reload()
        try:
            settings = load_settings(self._config, self._flags)
            self.state.reload_upstreams(settings.upstreams)
            self.state.audit.record("configuration.reloaded", engines=len(settings.upstreams))
        except ConfigError as error:
            logger.error("configuration not reloaded: %s", error)
            return
        logger.info("configuration reloaded: %d engines", len(settings.upstreams))


def handle_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """SIGTERM and SIGINT stop, SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)


async def _main(descriptor: int, config: Path | None, flags: Mapping[str, Any]) -> None:
    settings = load_settings(config, flags)
    configure_logging(settings.logging)
    worker = Worker(settings, config, flags)
    handle_signals(worker.interrupt, worker.reload)
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    await worker.run(listener)


def main() -> int:
    """A worker process's whole life."""
    import uvloop

    given = json.load(sys.stdin)
    config = Path(given["config"]) if given["config"] else None
    try:
        uvloop.run(_main(int(sys.argv[1]), config, given["flags"]))
    except ConfigError as error:
        sys.stderr.write(f"vora-serve: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
