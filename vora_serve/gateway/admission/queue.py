"""A hard cap on requests in flight, with a bounded queue that is fair between callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vora_core.errors import DeadlineError, RateLimitError
from vora_serve.gateway.semaphore import Group, WeightedSemaphore


class FairQueue:
    """Admits at most ``max_in_flight`` requests at a time; the rest wait in turn or are refused.

    Args:
        max_in_flight: Requests admitted at a time.
        max_queued: Requests waiting at a time.
        timeout_s: Longest wait.

    Attributes:
        on_release: Called whenever a place came free.
    """

    def __init__(self, max_in_flight: int, max_queued: int, timeout_s: float) -> None:
        self._places = WeightedSemaphore(max_in_flight)
        self._max_queued = max_queued
        self._timeout_s = timeout_s
        self.on_release: Callable[[], None] | None = None

    @property
    def in_flight(self) -> int:
        """Requests admitted and not finished."""
        return self._places.held

    @property
    def queued(self) -> int:
        """Requests waiting."""
        return self._places.waiting

    def require_room(self, caller: str, queue_cap: int | None = None) -> None:
        """Refuse a request that could only wait where nothing more may wait.

        Raises:
            RateLimitError: the queue is full, or this caller's part of it.
        """
        if self._places.held < self._places.capacity and not self._places.waiting:
            return
        self._require_line(caller, queue_cap)

    @asynccontextmanager
    async def slot(
        self,
        caller: str,
        *,
        tenant: str | None = None,
        weight: float = 1.0,
        priority: int = 0,
        cap: int | None = None,
        queue_cap: int | None = None,
    ) -> AsyncIterator[None]:
        """Hold one of the places in flight.

        Args:
            caller: Whose caps these are.
            tenant: Who shares the places with others; the caller where absent. The one that holds
                fewest for its weight goes next, and equals take turns.
            weight: The tenant's.
            priority: Higher goes first.
            cap: The caller's own cap on requests in flight.
            queue_cap: The caller's own cap on requests waiting.

        Raises:
            RateLimitError: the queue is full.
            DeadlineError: no place came free in time.
        """
        group = Group(tenant if tenant is not None else caller, weight)
        if not self._places.try_acquire(caller=caller, group=group, limit=cap):
            await self._wait(caller, group, priority, cap, queue_cap)
        try:
            yield
        finally:
            self._places.release(caller=caller, group=group)
            if self.on_release is not None:
                self.on_release()

    async def _wait(
        self, caller: str, group: Group, priority: int, cap: int | None, queue_cap: int | None
    ) -> None:
        self._require_line(caller, queue_cap)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire(caller=caller, group=group, priority=priority, limit=cap)
        except TimeoutError:
            raise DeadlineError(
                f"No place came free within {self._timeout_s:g} s.",
                code="queue_timeout",
                retry_after=5,
            ) from None

    def _require_line(self, caller: str, queue_cap: int | None) -> None:
        if self.queued >= self._max_queued:
            raise RateLimitError(
                "The server is busy and its queue is full.", code="queue_full", retry_after=2
            )
        if queue_cap is not None and self._places.waiting_of(caller) >= queue_cap:
            raise RateLimitError(
                "This key has too many requests waiting.", code="queue_full", retry_after=2
            )
