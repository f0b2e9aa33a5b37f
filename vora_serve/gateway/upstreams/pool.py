"""Kept-alive connections to one engine."""

from __future__ import annotations

import asyncio
from collections import deque

from vora_serve.gateway.http1 import Connection, Endpoint


class ConnectionPool:
    """Idle connections, the most recently used first; opening is never limited here.

    Args:
        endpoint: Where the engine listens.
        max_idle: Idle connections that are kept.
        keep_alive_s: Seconds after which an idle connection is not used again.
        connect_timeout_s: Seconds for opening one.
    """

    def __init__(
        self, endpoint: Endpoint, max_idle: int, keep_alive_s: float, connect_timeout_s: float
    ) -> None:
        self.endpoint = endpoint
        self._max_idle = max_idle
        self._keep_alive_s = keep_alive_s
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[Connection] = deque()
        self._retired = False

    async def acquire(self, fresh: bool = False) -> tuple[Connection, bool]:
        """A connection, and whether it has been used before.

        Raises:
            ConnectError: none could be opened.
        """
        now = asyncio.get_running_loop().time()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if not connection.closed and now - connection.idle_since < self._keep_alive_s:
                return connection, True
            connection.close()
        return await Connection.open(self.endpoint, self._connect_timeout_s), False

    def release(self, connection: Connection) -> None:
        """Keep the connection if it can be used again, else close it."""
        if connection.reusable and len(self._idle) < self._max_idle and not self._retired:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    def retire(self) -> None:
        """Keep no connection from now on."""
        self._retired = True
        self.close()

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()
