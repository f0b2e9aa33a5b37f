"""Pure-ASGI layers around the routes."""

from vora_serve.gateway.middleware.auth import AuthMiddleware
from vora_serve.gateway.middleware.context import (
    ContextMiddleware,
    as_api_error,
    find_header,
    send_error,
)
from vora_serve.gateway.middleware.direct import DirectMiddleware
from vora_serve.gateway.middleware.paths import HeadMiddleware, HintMiddleware

__all__ = [
    "AuthMiddleware",
    "ContextMiddleware",
    "DirectMiddleware",
    "HeadMiddleware",
    "HintMiddleware",
    "as_api_error",
    "find_header",
    "send_error",
]
