"""A bound on the bytes that all requests of a process hold together: bodies and images."""

from __future__ import annotations

import ctypes

from vora_core.errors import RateLimitError, RequestTooLargeError
from vora_serve.gateway.semaphore import WeightedSemaphore

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
#: Smaller blocks are used again. An image of 448 x 448 pixels on its way to an engine is copied a
#: few times: fresh pages for each copy would take longer than all that is done to a small file.
#: With larger values a wave of large images leaves more behind than the memory settings promise.
_REUSED_BYTES = 2**20
_KEPT_BYTES = 4 * 2**20


def give_back_freed_memory() -> None:
    """Have glibc return large blocks to the system when they are freed.

    By default it learns from the first large block that is freed to keep the next ones, and each
    thread has a heap of its own: a wave of large images would leave its peak behind for good.
    Elsewhere this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _REUSED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 2)


class Share:
    """What one request holds of the budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held = 0

    def grow(self, size: int) -> None:
        """Count bytes in, before or as they arrive.

        Raises:
            RequestTooLargeError: this request alone exceeds the budget.
            RateLimitError: no room at the moment.
        """
        if self.held + size > self._budget.total:
            raise RequestTooLargeError(
                "The request with its images exceeds the limit server.max_body_memory_bytes, "
                f"{self._budget.total} bytes."
            )
        self._budget.acquire(size)
        self.held += size

    def shrink(self, size: int) -> None:
        """Give bytes back."""
        self._budget.release(size)
        self.held -= size

    def release(self) -> None:
        """Give everything back."""
        self.shrink(self.held)

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class MemoryBudget:
    """Bytes held at one time by this process. Nobody waits for them: no room is a refusal.

    Args:
        total: The bound.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._bytes = WeightedSemaphore(total)

    @property
    def used(self) -> int:
        """Bytes held."""
        return self._bytes.held

    def acquire(self, size: int) -> None:
        """Count bytes in.

        Raises:
            RateLimitError: no room.
        """
        if not self._bytes.try_acquire(size):
            raise RateLimitError(
                "The server holds too many large requests at the moment.",
                code="memory_full",
                retry_after=2,
            )

    def release(self, size: int) -> None:
        """Count bytes out."""
        self._bytes.release(size)

    def share(self) -> Share:
        """A request's share, which is given back when it is left as a context."""
        return Share(self)
