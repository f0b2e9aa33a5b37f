"""A web server that misbehaves on purpose, and a victim that counts who reaches it."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from vora_serve.gateway.images.addresses import IPAddress

Handler = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]


def response(
    body: bytes, *headers: str, status: str = "200 OK", length: int | None = None
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


class FakeWeb:
    """Serves what its table of paths says; counts connections and requests."""

    def __init__(self, address: str = "127.0.0.2") -> None:
        self.address = address
        self.port = 0
        self.pages: dict[str, bytes | Handler] = {}
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.open = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def url(self, path: str = "/", host: str | None = None) -> str:
        return f"http://{host or self.address}:{self.port}{path}"

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._serve, self.address, 0)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()
            server.close()

        asyncio.run(main())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = head[0].split(" ")[1]
            pairs = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            self.requests.append((path, headers))
            page = self.pages.get(path, response(b"no", status="404 Not Found"))
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(path, headers, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.open -= 1
            writer.close()

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@contextmanager
def serving(web: FakeWeb) -> Iterator[FakeWeb]:
    web.start()
    try:
        yield web
    finally:
        web.stop()


class FakeResolver:
    """Answers from a table; a name with several answers gives another one at each look-up."""

    def __init__(self, **names: list[list[str]]) -> None:
        self.names = {name.replace("_", "."): answers for name, answers in names.items()}
        self.lookups: list[str] = []

    async def resolve(self, host: str) -> list[IPAddress]:
        self.lookups.append(host)
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        answers = self.names.get(host)
        if not answers:
            raise OSError("no such name")
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        return [ipaddress.ip_address(text) for text in answer]
