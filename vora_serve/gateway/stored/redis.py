"""Kept responses in Redis, where workers and gateways share them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from vora_serve.gateway.settings import ResponseSettings
from vora_serve.gateway.stored.entry import StoredResponse

_TIMEOUT_S = 2.0


class _Keys:
    """The names under which a tenant's responses are kept."""

    def __init__(self, tenant: str) -> None:
        # A digest, as a tenant's name may hold anything; braces keep all of a tenant on one node.
        digest = hashlib.sha256(tenant.encode()).hexdigest()[:32]
        self._root = f"vora-responses/{{{digest}}}"
        self.used = f"{self._root}/used"
        """Sorted set: id by the time of its last use."""
        self.sizes = f"{self._root}/sizes"
        """Hash: bytes by id."""
        self.held = f"{self._root}/held"
        """Bytes of all, at least: what has expired is taken off when the bound is reached."""

    def response(self, response_id: str) -> str:
        return f"{self._root}/response/{response_id}"

    def item(self, item_id: str) -> str:
        return f"{self._root}/item/{item_id}"


class RedisStore:
    """Holds a tenant's responses within its bound; Redis itself bounds all of them together.

    Args:
        settings: The URL, the bound and the lifetime.

    Raises:
        ValueError: the URL is malformed.
    """

    def __init__(self, settings: ResponseSettings) -> None:
        self._settings = settings
        self._ttl_ms = max(1, round(settings.ttl_s * 1000))
        self._redis: Redis = Redis.from_url(
            settings.storage, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )

    async def put(self, tenant: str, entry: StoredResponse) -> bool:
        """Keep a response; False where it is larger than a tenant may keep."""
        data, keys = entry.encode(), _Keys(tenant)
        if len(data) > self._settings.max_bytes_per_tenant:
            return False
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.response(entry.id), data, px=self._ttl_ms)
        for item in entry.ids():
            pipe.set(keys.item(item), entry.id, px=self._ttl_ms)
        pipe.zadd(keys.used, {entry.id: time.time()})
        pipe.hset(keys.sizes, entry.id, str(len(data)))
        for key in (keys.used, keys.sizes, keys.held):
            pipe.pexpire(key, self._ttl_ms)
        pipe.incrby(keys.held, len(data))
        *_, held = await _reached(pipe.execute())
        if held > self._settings.max_bytes_per_tenant:
            await self._trim(tenant)
        return True

    async def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """A tenant's response, which counts as used."""
        keys = _Keys(tenant)
        data = await _reached(self._redis.getex(keys.response(response_id), px=self._ttl_ms))
        if data is None:
            return None
        entry = StoredResponse.decode(data)
        pipe = self._redis.pipeline(transaction=False)
        pipe.zadd(keys.used, {response_id: time.time()}, xx=True)
        for key in (keys.used, keys.sizes, keys.held, *(keys.item(item) for item in entry.ids())):
            pipe.pexpire(key, self._ttl_ms)
        await _reached(pipe.execute())
        return entry

    async def holder(self, tenant: str, item_id: str) -> str | None:
        """The id of the tenant's response that has this item."""
        found = await _reached(self._redis.get(_Keys(tenant).item(item_id)))
        return found.decode() if found is not None else None

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Forget a response; False where there is none."""
        keys = _Keys(tenant)
        data = await _reached(self._redis.getdel(keys.response(response_id)))
        pipe = self._redis.pipeline(transaction=True)
        if data is not None:
            for item in StoredResponse.decode(data).ids():
                pipe.delete(keys.item(item))
            pipe.decrby(keys.held, len(data))
        pipe.zrem(keys.used, response_id)
        pipe.hdel(keys.sizes, response_id)
        await _reached(pipe.execute())
        return data is not None

    async def close(self) -> None:
        """Close connections."""
        await self._redis.aclose()

    async def _trim(self, tenant: str) -> None:
        """Forget what has expired, then the least recently used until the rest fits."""
        keys = _Keys(tenant)
        pipe = self._redis.pipeline(transaction=False)
        pipe.zrange(keys.used, 0, -1, withscores=True)
        pipe.hgetall(keys.sizes)
        used, sizes = await _reached(pipe.execute())
        held = sum(map(int, sizes.values()))
        oldest = time.time() - self._settings.ttl_s
        for response_id, last_use in used:
            if last_use > oldest and held <= self._settings.max_bytes_per_tenant:
                break
            held -= int(sizes.get(response_id, 0))
            await self.delete(tenant, response_id.decode())
        await _reached(self._redis.set(keys.held, held, px=self._ttl_ms))


async def _reached(asked: Awaitable[Any] | Any) -> Any:
    """What Redis answers.

    Raises:
        OSError: it is out of reach.
    """
    try:
        return await cast(Awaitable[Any], asked)
    except RedisError as error:
        raise OSError(f"Redis failed: {type(error).__name__}") from None
