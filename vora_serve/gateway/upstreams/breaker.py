"""A circuit breaker: an engine that keeps failing is left alone for a while."""

from __future__ import annotations

import time


class CircuitBreaker:
    """Closed, open after failures in a row, half-open for one trial once the pause is over.

    Args:
        failures: Failures in a row that open it.
        open_s: Seconds for which it stays open.
    """

    def __init__(self, failures: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._open_until = 0.0
        self._trial_until = 0.0

    @property
    def closed(self) -> bool:
        """Whether requests pass freely."""
        return self._failures < self._limit

    def allows(self) -> bool:
        """Whether a request may be tried now."""
        if self.closed:
            return True
        now = time.monotonic()
        return now >= self._open_until and now >= self._trial_until

    def begin(self) -> None:
        """A request is being sent; while half-open it is the one trial."""
        if not self.closed:
            self._trial_until = time.monotonic() + self._open_s

    def succeed(self) -> None:
        """The engine answered."""
        self._failures = 0
        self._trial_until = 0.0

    def fail(self) -> None:
        """The engine could not be reached, broke off, or answered with a server error."""
        self._failures += 1
        self._trial_until = 0.0
        if not self.closed:
            self._open_until = time.monotonic() + self._open_s

    def reset(self) -> None:
        """Forget everything: the engine was restarted."""
        self._failures = 0
        self._open_until = self._trial_until = 0.0
