"""Every exception that this project raises on purpose, as one tree.

Each message is one sentence fit for a user. Each class knows the exit code of a command that ends
with it (2: usage, configuration, checkpoint; 1: the rest) and the HTTP status that it means::

    VoRAError                          exit code 1, status 500
    ├── ConfigError                    exit code 2: usage or configuration
    ├── CheckpointError                exit code 2: a checkpoint is absent, incomplete, another kind
    ├── ImageError                     exit code 2, status 400
    ├── PlaceholderError               exit code 2, status 400
    ├── SplitSpanError                 an image span would be computed in part
    ├── EngineError                    an engine did not start, or died and stayed dead
    ├── GeneratorError                 a load generator did not start, or broke down
    └── APIError                       an answer in OpenAI's error shape
        ├── InvalidRequestError        400
        │   ├── ImageRequestError      400, an image in the request cannot be used
        │   ├── DocumentRequestError   400, a file in the request cannot be used
        │   └── ContextLengthError     400, code ``context_length_exceeded``
        ├── AuthenticationError        401
        ├── PermissionDeniedError      403
        ├── NotFoundError              404
        ├── MethodNotAllowedError      405
        ├── RequestTimeoutError        408, the client sent its request too slowly
        ├── ConflictError              409, what is asked for is in use, taken or without room
        ├── RequestTooLargeError       413
        │   └── ImageTooLargeError     413, an image exceeds a limit
        ├── UnsupportedMediaTypeError  415
        ├── RateLimitError             429
        ├── InternalError              500
        ├── UpstreamError              502, the engine answered nonsense or broke off
        ├── UnavailableError           503, no engine can take work
        └── DeadlineError              504

The types of API errors are those that OpenAI's clients know, so that each status arrives as the
exception that a user of those clients expects.
"""

from __future__ import annotations

from typing import Any, ClassVar


class VoRAError(Exception):
    """Root of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500


class ConfigError(VoRAError, ValueError):
    """Usage or configuration: a value is missing, unknown or contradicts another."""

    exit_code = 2


class CheckpointError(VoRAError, ValueError):
    """A checkpoint is absent, incomplete, of another kind, or has unknown or missing tensors."""

    exit_code = 2


class ImageError(VoRAError, ValueError):
    """An image cannot be turned into tokens: unreadable, too small, too large, too elongated."""

    exit_code = 2
    status = 400


class PlaceholderError(VoRAError, ValueError):
    """The number of image placeholders in a prompt differs from the number of images given."""

    exit_code = 2
    status = 400


class SplitSpanError(VoRAError, RuntimeError):
    """An image span would be computed in part, but its tokens attend to each other."""


class EngineError(VoRAError):
    """An engine process could not be started, or died and stayed dead."""


class GeneratorError(VoRAError):
    """A load generator could not be started, or broke down."""


class APIError(VoRAError):
    """An error that the gateway answers a request with.

    Args:
        message: One sentence for the caller; never an address, a path or an object's repr.
        param: The request's field at fault, in OpenAI's dotted notation.
        code: A stable machine-readable word.
        retry_after: Seconds after which the caller may try again (``Retry-After``).
        headers: Further response headers.
    """

    error_type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON body: ``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {
                "message": self.message,
                "type": self.error_type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(APIError):
    """400: the request itself is at fault."""

    status = 400
    error_type = "invalid_request_error"


class ImageRequestError(InvalidRequestError):
    """400: an image is unreachable, refused, unreadable, too large or of an unknown kind."""

    default_code = "invalid_image"


class DocumentRequestError(InvalidRequestError):
    """400: a file is unreachable, refused, unreadable, has too many pages or is of another kind."""

    default_code = "invalid_file"


class ContextLengthError(InvalidRequestError):
    """400: the prompt and the wanted completion do not fit the model's context."""

    default_code = "context_length_exceeded"


class AuthenticationError(APIError):
    """401: no valid API key was given."""

    status = 401
    error_type = "authentication_error"
    default_code = "invalid_api_key"


class PermissionDeniedError(APIError):
    """403: the key is valid, but not for this."""

    status = 403
    error_type = "permission_error"
    default_code = "insufficient_permissions"


class NotFoundError(APIError):
    """404: no such model, response or page."""

    status = 404
    error_type = "not_found_error"


class MethodNotAllowedError(APIError):
    """405: the path exists, the method does not."""

    status = 405
    error_type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeoutError(APIError):
    """408: the client sent its request too slowly."""

    status = 408
    error_type = "timeout_error"
    default_code = "request_timeout"


class ConflictError(APIError):
    """409: a name is taken or in use, or there is no room for another."""

    status = 409
    error_type = "invalid_request_error"
    default_code = "conflict"


class RequestTooLargeError(APIError):
    """413: the body exceeds the limit."""

    status = 413
    error_type = "invalid_request_error"
    default_code = "request_too_large"


class ImageTooLargeError(RequestTooLargeError):
    """413: an image, or all of a request's together, exceed a limit; the message names it."""

    default_code = "image_too_large"


class UnsupportedMediaTypeError(APIError):
    """415: the body is not JSON, or is compressed."""

    status = 415
    error_type = "invalid_request_error"
    default_code = "unsupported_media_type"


class RateLimitError(APIError):
    """429: a rate limit, a concurrency limit or the queue's end was reached."""

    status = 429
    error_type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class InternalError(APIError):
    """500: a fault of the gateway's own."""

    default_code = "internal_error"


class UpstreamError(APIError):
    """502: the engine broke off, or its answer could not be understood."""

    status = 502
    error_type = "upstream_error"
    default_code = "engine_error"


class UnavailableError(APIError):
    """503: no engine can take work at the moment."""

    status = 503
    error_type = "service_unavailable_error"
    default_code = "engine_unavailable"


class DeadlineError(APIError):
    """504: the request was not finished, or not begun, by its deadline."""

    status = 504
    error_type = "timeout_error"
    default_code = "deadline_exceeded"
