"""Start-up errors in one sentence, without the wrapping that libraries put around them."""

from pydantic import ValidationError


def explain(error: BaseException) -> str:
    """What went wrong, for a user.

    Args:
        error: what vLLM raised while it read its settings or started.

    Returns:
        The message alone: of a pydantic error, those of its parts, without input values.
    """
    if isinstance(error, ValidationError):
        parts = []
        for part in error.errors(include_url=False, include_context=False, include_input=False):
            message = part["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            where = ".".join(str(key) for key in part["loc"])
            parts.append(f"{where}: {message}" if where else message)
        return " ".join(parts)
    return str(error) or type(error).__name__
