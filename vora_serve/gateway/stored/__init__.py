"""Responses kept for later turns: what ``previous_response_id`` and ``item_reference`` refer to."""

from vora_serve.gateway.stored.entry import StoredResponse
from vora_serve.gateway.stored.memory import MemoryStore
from vora_serve.gateway.stored.store import ResponseStore, open_store
from vora_serve.gateway.stored.turn import Turn

__all__ = [
    "MemoryStore",
    "ResponseStore",
    "StoredResponse",
    "Turn",
    "open_store",
]
