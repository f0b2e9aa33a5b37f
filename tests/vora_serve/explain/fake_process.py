"""A fake of the process that looks into answers: a few lines that load no model."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from vora_serve.explain.on_demand import OnDemand

#: Answers each connection with its process's id; ends by itself, or breaks, where told.
_FAKE = """
import os, socket, sys, threading, time
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
listener = socket.socket(fileno=int(sys.argv[1]))
listener.setblocking(True)
if "break" in sys.argv:
    sys.exit("out of luck")
listener.settimeout(0.3 if "idle" in sys.argv else None)
try:
    while True:
        connection, _ = listener.accept()
        connection.sendall(str(os.getpid()).encode())
        connection.close()
except TimeoutError:
    pass
"""


class Fake(OnDemand):
    """As ever, but the process is a few lines that load no model."""

    how = ""

    def command(self, descriptor: int) -> list[str]:
        return [sys.executable, "-c", _FAKE, str(descriptor), self.how]


@contextlib.asynccontextmanager
async def listening(how: str = "") -> AsyncIterator[Fake]:
    explainer = Fake("model", 60)
    explainer.how = how
    explainer.listen()
    try:
        yield explainer
    finally:
        await explainer.stop()


async def ask(explainer: OnDemand) -> int:
    """Which process answered; 0 for a connection that was closed."""
    reader, writer = await asyncio.open_unix_connection(str(explainer.socket))
    async with asyncio.timeout(30):
        said = await reader.read()
    writer.close()
    return int(said or 0)
