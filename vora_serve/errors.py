"""The errors of the command line and the gateway; the tree is :mod:`vora_core.errors`."""

from vora_core.errors import (
    APIError,
    AuthenticationError,
    ConfigError,
    ContextLengthError,
    DeadlineError,
    EngineError,
    ImageRequestError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    RequestTooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
    UpstreamError,
    VoRAError,
)

#: The names of these two before there was one tree.
VoRAServeError = VoRAError
ConfigurationError = ConfigError

__all__ = [
    "APIError",
    "AuthenticationError",
    "ConfigError",
    "ConfigurationError",
    "ContextLengthError",
    "DeadlineError",
    "EngineError",
    "ImageRequestError",
    "InternalError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "UnavailableError",
    "UnsupportedMediaTypeError",
    "UpstreamError",
    "VoRAError",
    "VoRAServeError",
]
