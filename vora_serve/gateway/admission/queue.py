"""A hard cap on requests in flight, with a bounded queue that is fair between callers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vora_serve.errors import DeadlineError, RateLimitError


class FairQueue:
    """Admits at most ``max_in_flight`` requests at a time; the rest wait their turn or are refused.

    Higher priorities first; within a priority the callers take turns, each in order of arrival, so
    that one caller's thousand requests delay another's first by one.

    Args:
        max_in_flight: Requests admitted at a time.
        max_queued: Requests waiting at a time.
        timeout_s: Longest wait.
    """

    def __init__(self, max_in_flight: int, max_queued: int, timeout_s: float) -> None:
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._timeout_s = timeout_s
        self._lines: dict[int, OrderedDict[str, deque[asyncio.Future[None]]]] = {}
        self._caps: dict[str, int | None] = {}
        self._queued_by: dict[str, int] = {}
        self._in_flight_by: dict[str, int] = {}
        self.in_flight = 0
        self.queued = 0

    def _below_cap(self, caller: str, cap: int | None) -> bool:
        return cap is None or self._in_flight_by.get(caller, 0) < cap

    def _enter(self, caller: str) -> None:
        self.in_flight += 1
        self._in_flight_by[caller] = self._in_flight_by.get(caller, 0) + 1

    def _leave(self, caller: str) -> None:
        self.in_flight -= 1
        left = self._in_flight_by[caller] - 1
        if left:
            self._in_flight_by[caller] = left
        else:
            del self._in_flight_by[caller]
        self._advance()

    @asynccontextmanager
    async def slot(
        self,
        caller: str,
        *,
        priority: int = 0,
        cap: int | None = None,
        queue_cap: int | None = None,
    ) -> AsyncIterator[None]:
        """Hold one of the places in flight.

        Args:
            caller: Who asks; callers take turns.
            priority: Higher goes first.
            cap: The caller's own cap on requests in flight.
            queue_cap: The caller's own cap on requests waiting.

        Raises:
            RateLimitError: the queue is full.
            DeadlineError: no place came free in time.
        """
        if (
            self.in_flight < self._max_in_flight
            and not self.queued
            and self._below_cap(caller, cap)
        ):
            self._enter(caller)
        else:
            await self._wait(caller, priority, cap, queue_cap)
        try:
            yield
        finally:
            self._leave(caller)

    async def _wait(
        self, caller: str, priority: int, cap: int | None, queue_cap: int | None
    ) -> None:
        if self.queued >= self._max_queued:
            raise RateLimitError(
                "The server is busy and its queue is full.", code="queue_full", retry_after=2
            )
        if queue_cap is not None and self._queued_by.get(caller, 0) >= queue_cap:
            raise RateLimitError(
                "This key has too many requests waiting.", code="queue_full", retry_after=2
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        lines = self._lines.setdefault(priority, OrderedDict())
        lines.setdefault(caller, deque()).append(turn)
        self._caps[caller] = cap
        self.queued += 1
        self._queued_by[caller] = self._queued_by.get(caller, 0) + 1
        timer = loop.call_later(self._timeout_s, _expire, turn)
        self._advance()
        try:
            await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(caller)  # cancelled in the moment that it was admitted
            else:
                self._forget(caller, priority, turn)
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"No place came free within {self._timeout_s:g} s.",
                    code="queue_timeout",
                    retry_after=5,
                ) from None
            raise
        finally:
            timer.cancel()

    def _forget(self, caller: str, priority: int, turn: asyncio.Future[None]) -> None:
        lines = self._lines.get(priority, OrderedDict())
        line = lines.get(caller)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del lines[caller]
                if not lines:
                    del self._lines[priority]
            self._dequeued(caller)

    def _dequeued(self, caller: str) -> None:
        self.queued -= 1
        left = self._queued_by[caller] - 1
        if left:
            self._queued_by[caller] = left
        else:
            del self._queued_by[caller]
            self._caps.pop(caller, None)

    def _advance(self) -> None:
        """Admit as many of the waiting as there is room for."""
        while self.queued and self.in_flight < self._max_in_flight:
            caller = self._next()
            if caller is None:
                return
            self._enter(caller)

    def _next(self) -> str | None:
        """Take the next caller's oldest request out of its line."""
        for priority in sorted(self._lines, reverse=True):
            lines = self._lines[priority]
            for caller in list(lines):
                if not self._below_cap(caller, self._caps.get(caller)):
                    continue
                line = lines[caller]
                admitted = False
                while line and not admitted:
                    turn = line.popleft()
                    if not turn.done():
                        turn.set_result(None)
                        admitted = True
                        self._dequeued(caller)
                    # One that timed out or was cancelled in this very moment counts itself out.
                    else:
                        self._dequeued(caller)
                if line:
                    lines.move_to_end(caller)
                else:
                    del lines[caller]
                    if not lines:
                        del self._lines[priority]
                if admitted:
                    return caller
        return None


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())
