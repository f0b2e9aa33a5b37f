"""How long one request may live: until its client leaves, stops reading, or the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal

Interruption = Literal["disconnect", "deadline", "stalled"]

CLIENT_KEY = "vora_serve.client"
"""Where the ASGI scope holds the :class:`Client`."""


class Client:
    """The peer of one connection, and who must learn that it left.

    A callback, since a task that awaits the ASGI disconnect costs each request a fourteenth of its
    CPU time.
    """

    def __init__(self) -> None:
        self.left = False
        self.on_leaving: set[Callable[[], None]] = set()

    def leave(self) -> None:
        """Tell everybody who asked."""
        self.left = True
        for callback in tuple(self.on_leaving):
            callback()


class Lifetime:
    """Cancels a request, wherever it is, when it must end.

    Args:
        client: Who waits for the answer; None where nobody can leave.
        timeout_s: Seconds until the deadline.

    Attributes:
        interrupted: Why the request was ended; None while nothing has ended it.
        sending_since: ``time.monotonic()`` when the write that is under way began, else None.
    """

    def __init__(self, client: Client | None, timeout_s: float) -> None:
        self.interrupted: Interruption | None = None
        self.sending_since: float | None = None
        self._client = client or Client()
        self._timeout_s = timeout_s
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def bound(self, active: set[Lifetime]) -> AsyncIterator[None]:
        """Run a block in the current task until it ends or is interrupted.

        An interruption leaves the block without an exception; ``interrupted`` says why.

        Args:
            active: All lifetimes that are running; this one is in it for as long as it does.
        """
        task = self._task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._timeout_s, self.interrupt, "deadline")
        active.add(self)
        self._client.on_leaving.add(self._leave)
        try:
            if self._client.left:
                self._leave()
            yield
        except asyncio.CancelledError:
            if self.interrupted is None:
                raise  # the server is stopping
            task.uncancel()
        finally:
            deadline.cancel()
            self._client.on_leaving.discard(self._leave)
            active.discard(self)

    def interrupt(self, why: Interruption) -> None:
        """End the request."""
        if self.interrupted is None and self._task is not None:
            self.interrupted = why
            self._task.cancel()

    def interrupt_if_stalled(self, now: float, limit_s: float) -> None:
        """End a request whose client has taken nothing for ``limit_s`` seconds."""
        if self.sending_since is not None and now - self.sending_since > limit_s:
            self.interrupt("stalled")

    def _leave(self) -> None:
        self.interrupt("disconnect")
