"""The settings of what is kept for later turns."""

from __future__ import annotations

from vora_serve.gateway.settings.types import PositiveInt, Seconds, Section


class ResponseSettings(Section):
    """Responses kept for later turns: ``previous_response_id``, ``item_reference``, ``store``."""

    store: bool = False
    """Keep responses, unless a request says ``store: false``."""
    storage: str = "memory://"
    """Redis, such as ``redis://cache:6379``, where workers or gateways share what is kept."""
    ttl_s: Seconds = 86_400.0
    """How long a response is kept after it was last used."""
    max_bytes: PositiveInt = 256 * 2**20
    """All tenants together, in memory; Redis has its own ``maxmemory``."""
    max_bytes_per_tenant: PositiveInt = 64 * 2**20
    """Beyond it, a tenant's least recently used responses are forgotten."""
    max_turns: PositiveInt = 256
    """How far back ``previous_response_id`` may lead."""
