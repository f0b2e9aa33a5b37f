"""Who may ask, how often, and how many at a time."""

from vora_serve.gateway.admission.key_file import add_key, set_field, state_of
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
from vora_serve.gateway.admission.tokens import TokenVerifier, token_in

__all__ = [
    "ANONYMOUS",
    "ApiKey",
    "FairQueue",
    "KeyRing",
    "RateLimits",
    "Scope",
    "TokenVerifier",
    "add_key",
    "hash_key",
    "new_key",
    "read_keys",
    "set_field",
    "state_of",
    "token_in",
]
