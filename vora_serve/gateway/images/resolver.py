"""Resolving host names: once per connection, with its own threads and a time limit."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from vora_serve.gateway.images.addresses import IPAddress


class Resolver(Protocol):
    """Turns a host name into addresses."""

    async def resolve(self, host: str) -> list[IPAddress]:
        """All addresses of the host, in order of preference.

        Raises:
            OSError: the name does not resolve.
        """
        ...


class SystemResolver:
    """The operating system's resolver, in threads of its own so that slow names delay nobody else.

    Args:
        threads: Lookups at one time.
    """

    def __init__(self, threads: int = 16) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def resolve(self, host: str) -> list[IPAddress]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(
            self._executor,
            lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM),
        )
        addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
        return list(dict.fromkeys(addresses))

    def close(self) -> None:
        """Stop the threads without waiting for lookups that hang."""
        self._executor.shutdown(wait=False, cancel_futures=True)
