"""Who may ask, how often, and how many at a time."""

from vora_serve.gateway.admission.keys import (
    ANONYMOUS,
    ApiKey,
    KeyRing,
    Scope,
    hash_key,
    new_key,
    read_keys,
)
from vora_serve.gateway.admission.limits import RateLimits
from vora_serve.gateway.admission.queue import FairQueue

__all__ = [
    "ANONYMOUS",
    "ApiKey",
    "FairQueue",
    "KeyRing",
    "RateLimits",
    "Scope",
    "hash_key",
    "new_key",
    "read_keys",
]
