"""A proxy that is slow on purpose: it holds every request back for so many milliseconds.

Run by path: ``delay_proxy.py PORT UPSTREAM_HOST:PORT DELAY_MS``. It exists to show that a
comparison finds a known difference. It copies bytes and reads none of them: what a client sends
after the server's last answer, or first of all, begins a request and is delayed; what follows is
not.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


class _Link:
    """One client's connection and its own to the server."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.answered = True

    async def up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.answered:
                self.answered = False
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self.answered = True
            writer.write(data)
            await writer.drain()
        writer.close()


async def serve(port: int, host: str, upstream_port: int, delay_s: float) -> None:
    """Copy bytes until cancelled."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(host, upstream_port)
        except OSError:
            writer.close()
            return
        link = _Link(delay_s)
        with contextlib.suppress(OSError):
            await asyncio.gather(link.up(reader, back), link.down(there, writer))
        for each in (writer, back):
            each.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    target_host, _, target_port = sys.argv[2].rpartition(":")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            serve(int(sys.argv[1]), target_host, int(target_port), float(sys.argv[3]) / 1000)
        )
