"""Tokens that a tenant may use in a calendar day and month, in UTC."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

from limits.aio.storage import Storage
from limits.errors import StorageError

from vora_core.errors import RateLimitError

logger = logging.getLogger("vora_serve.gateway.limits")

Period = Literal["day", "month"]


def _label(period: Period, now: datetime) -> str:
    return now.strftime("%Y-%m-%d" if period == "day" else "%Y-%m")


def _end(period: Period, now: datetime) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return midnight + timedelta(days=1)
    return (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)


class Budgets:
    """Counts what tenants use, where rate limits are counted too.

    Args:
        storage: Memory, or Redis where gateways share it and counts outlast them.
        common: Tokens per period, for keys without budgets of their own.
    """

    def __init__(self, storage: Storage, common: Mapping[Period, int]) -> None:
        self._storage = storage
        self._common = common

    async def check(self, tenant: str, own: Mapping[Period, int] | None) -> None:
        """See that a tenant which has used up a budget starts nothing new.

        Raises:
            RateLimitError: a budget is used up.
        """
        now = datetime.now(UTC)
        for period, budget in (own if own is not None else self._common).items():
            try:
                used = await self._storage.get(self._name(tenant, period, now))
            except (StorageError, OSError) as error:
                logger.error("budgets cannot be counted: %s", type(error).__name__)
                return
            if used >= budget:
                end = _end(period, now)
                raise RateLimitError(
                    f"The budget of {budget} tokens per {period} is used up; "
                    f"it is renewed at {end:%Y-%m-%dT%H:%MZ}.",
                    code="insufficient_quota",
                    retry_after=max(1, math.ceil((end - now).total_seconds())),
                )

    async def use(self, tenant: str, own: Mapping[Period, int] | None, tokens: int) -> None:
        """Count tokens that a request has used."""
        now = datetime.now(UTC)
        for period in (own if own is not None else self._common) if tokens > 0 else ():
            # Kept a day beyond the period, so that clocks that differ a little do no harm.
            expiry = math.ceil((_end(period, now) - now).total_seconds()) + 86_400
            try:
                await self._storage.incr(self._name(tenant, period, now), expiry, tokens)
            except (StorageError, OSError) as error:
                logger.error("budgets cannot be counted: %s", type(error).__name__)

    @staticmethod
    def _name(tenant: str, period: Period, now: datetime) -> str:
        return f"vora-budget/{tenant}/{_label(period, now)}"
