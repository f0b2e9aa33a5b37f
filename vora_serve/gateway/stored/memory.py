"""Kept responses in this process's memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from vora_serve.gateway.settings import ResponseSettings
from vora_serve.gateway.stored.entry import StoredResponse

_OVERHEAD_BYTES = 1024  # of an entry, beside its JSON
Place = tuple[str, str]


@dataclass
class _Kept:
    data: bytes
    items: list[str]
    expires: float

    @property
    def size(self) -> int:
        return len(self.data) + _OVERHEAD_BYTES + sum(64 + len(item) for item in self.items)


class MemoryStore:
    """Holds responses within bounds, the least recently used of a tenant leaving first.

    Where all tenants together hold too much, the one that holds the most gives way: nobody can push
    out another's conversations.

    Args:
        settings: Bounds and lifetime.
        clock: Seconds, for tests.
    """

    def __init__(
        self, settings: ResponseSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[Place, _Kept] = OrderedDict()  # by last use, so by expiry
        self._of: dict[str, OrderedDict[str, None]] = {}
        self._items: dict[Place, str] = {}
        self._sizes: dict[str, int] = {}
        self.size = 0
        """Bytes held, all tenants together."""

    async def put(self, tenant: str, entry: StoredResponse) -> bool:
        """Keep a response; False where it is larger than a tenant may keep."""
        self._expire()
        self._remove((tenant, entry.id))
        kept = _Kept(entry.encode(), entry.ids(), self._clock() + self._settings.ttl_s)
        limit = min(self._settings.max_bytes, self._settings.max_bytes_per_tenant)
        if kept.size > limit:
            return False
        while self._sizes.get(tenant, 0) + kept.size > self._settings.max_bytes_per_tenant:
            self._evict(tenant)
        while self.size + kept.size > self._settings.max_bytes:
            self._evict(max(self._sizes, key=lambda name: self._sizes[name]))
        self._kept[tenant, entry.id] = kept
        self._of.setdefault(tenant, OrderedDict())[entry.id] = None
        self._sizes[tenant] = self._sizes.get(tenant, 0) + kept.size
        self.size += kept.size
        for item in kept.items:
            self._items[tenant, item] = entry.id
        return True

    async def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """A tenant's response, which counts as used."""
        self._expire()
        kept = self._kept.get((tenant, response_id))
        if kept is None:
            return None
        kept.expires = self._clock() + self._settings.ttl_s
        self._kept.move_to_end((tenant, response_id))
        self._of[tenant].move_to_end(response_id)
        return StoredResponse.decode(kept.data)

    async def holder(self, tenant: str, item_id: str) -> str | None:
        """The id of the tenant's response that has this item."""
        self._expire()
        return self._items.get((tenant, item_id))

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Forget a response; False where there is none."""
        self._expire()
        return self._remove((tenant, response_id))

    async def close(self) -> None:
        """Nothing to close."""

    def _expire(self) -> None:
        now = self._clock()
        while self._kept:
            place, kept = next(iter(self._kept.items()))
            if kept.expires > now:
                return
            self._remove(place)

    def _evict(self, tenant: str) -> None:
        self._remove((tenant, next(iter(self._of[tenant]))))

    def _remove(self, place: Place) -> bool:
        kept = self._kept.pop(place, None)
        if kept is None:
            return False
        tenant, response_id = place
        self.size -= kept.size
        self._sizes[tenant] -= kept.size
        del self._of[tenant][response_id]
        if not self._of[tenant]:
            del self._of[tenant], self._sizes[tenant]
        for item in kept.items:
            if self._items.get((tenant, item)) == response_id:
                del self._items[tenant, item]
        return True
