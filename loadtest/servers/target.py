"""Where requests go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An OpenAI-compatible server and the model that is asked.

    Args:
        url: base URL, without ``/v1``.
        model: name in requests.
        key: API key.
    """

    url: str
    model: str
    key: str | None = None
