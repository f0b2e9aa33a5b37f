"""One tree: an exit code and a status on every class, in step with the documented image."""

from __future__ import annotations

import inspect
import re

from vora_core import errors
from vora_core.errors import APIError, VoRAError


def classes() -> list[type[VoRAError]]:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)]
    assert len(found) > 20
    return found


def test_every_error_is_in_the_tree_and_knows_its_codes() -> None:
    for kind in classes():
        assert issubclass(kind, VoRAError), kind
        assert kind.exit_code in (1, 2), kind
        assert 400 <= kind.status < 600, kind


def test_the_image_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = set(re.findall(r"\b(\w+Error)\b +", errors.__doc__))
    assert drawn == {kind.__name__ for kind in classes()}
    for name, status in re.findall(r"\b(\w+Error) +(\d{3})\b", errors.__doc__):
        assert getattr(errors, name).status == int(status), name


def test_an_api_error_has_openais_shape() -> None:
    error = errors.RateLimitError("Slow down.", param="model", retry_after=3)
    assert isinstance(error, APIError)
    assert error.body() == {
        "error": {
            "message": "Slow down.",
            "type": "rate_limit_error",
            "param": "model",
            "code": "rate_limit_exceeded",
        }
    }


def test_the_packages_share_the_tree() -> None:
    import model_plugin.errors

    assert model_plugin.errors.VoRAError is VoRAError
