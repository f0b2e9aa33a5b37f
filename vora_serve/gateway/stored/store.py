"""Where kept responses are: one interface over memory and Redis."""

from __future__ import annotations

from typing import Protocol

from vora_core.errors import ConfigError
from vora_serve.gateway.settings import ResponseSettings
from vora_serve.gateway.stored.entry import StoredResponse
from vora_serve.gateway.stored.memory import MemoryStore


class ResponseStore(Protocol):
    """Keeps responses tenant by tenant, for a time after they were last used.

    Raises:
        OSError: the store is out of reach; from any of its methods.
    """

    async def put(self, tenant: str, entry: StoredResponse) -> bool:
        """Keep a response; False where it is larger than a tenant may keep."""
        ...

    async def get(self, tenant: str, response_id: str) -> StoredResponse | None:
        """A tenant's response, which counts as used."""
        ...

    async def holder(self, tenant: str, item_id: str) -> str | None:
        """The id of the tenant's response that has this item."""
        ...

    async def delete(self, tenant: str, response_id: str) -> bool:
        """Forget a response; False where there is none."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


def open_store(settings: ResponseSettings) -> ResponseStore | None:
    """The store that the settings name; None where nothing is to be kept.

    Raises:
        ConfigError: the storage's URL is wrong, or its client is missing.
    """
    if not settings.store:
        return None
    if settings.storage == "memory://":
        return MemoryStore(settings)
    if not settings.storage.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError(
            "responses.storage is memory://, or a URL of Redis that starts with redis://, "
            "rediss:// or unix://."
        )
    try:
        from vora_serve.gateway.stored.redis import RedisStore

        return RedisStore(settings)
    except ImportError:
        raise ConfigError("responses.storage needs the package redis.") from None
    except ValueError as error:
        raise ConfigError(f"responses.storage cannot be used: {error}.") from None
