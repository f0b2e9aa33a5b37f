"""Request and token rate limits per key, through the ``limits`` library."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from limits import RateLimitItem, parse_many
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from vora_core.errors import ConfigError, RateLimitError
from vora_serve.gateway.admission.budgets import Budgets
from vora_serve.gateway.settings import AdmissionSettings

logger = logging.getLogger("vora_serve.gateway.limits")


def parse_limits(texts: Sequence[str]) -> list[RateLimitItem]:
    """Limits such as ``600/minute``.

    Raises:
        ConfigError: one is malformed.
    """
    try:
        return [item for text in texts for item in parse_many(text)]
    except ValueError:
        raise ConfigError(
            f"A rate limit is malformed: {', '.join(texts)}; write for example 600/minute."
        ) from None


class RateLimits:
    """Counts requests and tokens over sliding windows, in memory or in Redis.

    Args:
        settings: The storage, and the limits of keys that have none of their own.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        self._requests = parse_limits(settings.requests)
        self._tokens = parse_limits(settings.tokens)
        self._parsed: dict[tuple[str, ...], list[RateLimitItem]] = {}
        uri = settings.rate_limit_storage
        uri = uri if uri.startswith("async+") else f"async+{uri}"
        options: dict[str, Any] = {"wrap_exceptions": True}
        if "redis" in uri.partition("://")[0]:
            # The `redis` package; and a store that is out of reach must not hold requests up.
            options |= {
                "implementation": "redispy",
                "socket_timeout": 1.0,
                "socket_connect_timeout": 1.0,
            }
        try:
            storage = storage_from_string(uri, **options)
        except Exception as error:  # noqa: BLE001 - the library raises whatever its driver does
            reason = f"{uri.partition('://')[0]}:// cannot be used: {str(error).splitlines()[0]}"
            raise ConfigError(
                f"The rate limits' storage {reason.replace('async+', '').rstrip('.')}."
            ) from None
        assert isinstance(storage, Storage)
        self._storage = storage
        self.budgets = Budgets(storage, settings.budgets)
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def close(self) -> None:
        """Close connections to a shared storage; the library has no word for it."""
        client = getattr(getattr(self._storage, "bridge", None), "storage", None)
        close = getattr(client, "aclose", None)
        if close is not None:
            await close()

    def _limits(self, own: list[str] | None, common: list[RateLimitItem]) -> list[RateLimitItem]:
        if own is None:
            return common
        name = tuple(own)
        if name not in self._parsed:
            self._parsed[name] = parse_limits(own)
        return self._parsed[name]

    async def take_request(self, caller: str, own: list[str] | None) -> None:
        """Count one request.

        Raises:
            RateLimitError: a limit is reached.
        """
        for limit in self._limits(own, self._requests):
            if not await self._hit(limit, 1, "requests", caller):
                raise await self._refusal(limit, "requests", caller)

    async def check_tokens(self, caller: str, own: list[str] | None) -> None:
        """See that a key which has used up its tokens starts nothing new.

        Raises:
            RateLimitError: a limit is reached.
        """
        for limit in self._limits(own, self._tokens):
            if not await self._test(limit, caller):
                raise await self._refusal(limit, "tokens", caller)

    async def use_tokens(self, caller: str, own: list[str] | None, tokens: int) -> None:
        """Count the tokens that a request turned out to have used."""
        for limit in self._limits(own, self._tokens):
            if tokens > 0 and not await self._hit(limit, tokens, "tokens", caller):
                # More than what was left: the window is full all the same.
                left = await self._left(limit, caller)
                if left > 0:
                    await self._hit(limit, left, "tokens", caller)

    async def _hit(self, limit: RateLimitItem, cost: int, what: str, caller: str) -> bool:
        try:
            return await self._limiter.hit(limit, what, caller, cost=cost)
        except (StorageError, OSError) as error:
            return self._open(error)

    async def _test(self, limit: RateLimitItem, caller: str) -> bool:
        try:
            return await self._limiter.test(limit, "tokens", caller)
        except (StorageError, OSError) as error:
            return self._open(error)

    async def _left(self, limit: RateLimitItem, caller: str) -> int:
        try:
            return (await self._limiter.get_window_stats(limit, "tokens", caller)).remaining
        except (StorageError, OSError) as error:
            self._open(error)
            return 0

    async def _refusal(self, limit: RateLimitItem, what: str, caller: str) -> RateLimitError:
        try:
            stats = await self._limiter.get_window_stats(limit, what, caller)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
        except (StorageError, OSError):
            wait = 1
        return RateLimitError(
            f"This key's limit of {limit.amount} {what} per "
            f"{limit.multiples} {limit.GRANULARITY.name} is reached.",
            code=f"{what}_rate_limit_exceeded",
            retry_after=wait,
        )

    @staticmethod
    def _open(error: Exception) -> bool:
        # Requests go on when the counters are out of reach: the hard caps still hold.
        logger.error("rate limits cannot be counted: %s", type(error).__name__)
        return True
