"""Asking the process that runs the model with attention to look into an answer.

It is ``vora-serve explain --listen``, or one that ``vora-serve serve`` starts when it is asked.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import httpx
from pydantic import BaseModel, ValidationError

from vora_core.errors import InvalidRequestError, UnavailableError, UpstreamError
from vora_core.installation import program
from vora_serve.gateway.listen import is_loopback
from vora_serve.gateway.settings import Settings

#: The first question also loads the model.
_TIMEOUT_S = 120
_UNIX = "unix:"


class _Asked(BaseModel):
    """The part of a question that this process reads; the other reads the rest."""

    model: str


def ask_about(body: bytes) -> _Asked:
    """What is asked about.

    Raises:
        InvalidRequestError: the body does not name a model.
    """
    try:
        return _Asked.model_validate_json(body)
    except ValidationError:
        raise InvalidRequestError(
            "The body must be a JSON object with model, messages and answer."
        ) from None


def how_to_explain(settings: Settings) -> str | None:
    """For the page: ``ready`` where a question is enough, ``command`` where a command has to be
    typed first, None where answers cannot be looked into."""
    where = settings.playground.explain_url
    if where is None:
        return None
    return "ready" if _listens(where) else "command"


def _listens(where: str) -> bool:
    return not where.startswith(_UNIX) or Path(where.removeprefix(_UNIX)).is_socket()


def explain_command(settings: Settings) -> str:
    """What to type on the server, so that a large model can be looked into."""
    where = settings.playground.explain_url
    return shlex.join([program(), "explain", "--model", str(settings.engine.model)]) + (
        f" --listen {where}"
    )


def _how_to_start(settings: Settings) -> str:
    """What to do; without paths, for people who may be on another machine."""
    if settings.auth.keys_file is None and is_loopback(settings.server.host):
        return f"This model is looked into on demand. Run: {explain_command(settings)}"
    return "This model is looked into on demand; the server's log names the command that starts it."


async def look_into(settings: Settings, body: bytes) -> tuple[bytes, int]:
    """The other process's answer and its status.

    Raises:
        UnavailableError: nothing runs there, or it took too long.
        UpstreamError: it failed.
    """
    where = settings.playground.explain_url
    assert where is not None
    if not _listens(where):
        raise UnavailableError(_how_to_start(settings), code="explain_command")
    path = where.removeprefix(_UNIX) if where.startswith(_UNIX) else None
    transport = httpx.AsyncHTTPTransport(uds=path)
    base = "http://localhost" if path is not None else where
    try:
        async with httpx.AsyncClient(transport=transport, timeout=_TIMEOUT_S) as client:
            answer = await client.post(
                f"{base}/explain", content=body, headers={"content-type": "application/json"}
            )
    except httpx.TimeoutException:
        raise UnavailableError("Looking into the model took too long.") from None
    except httpx.HTTPError:
        raise UnavailableError("The process that looks into the model is away.") from None
    if answer.status_code >= 500 and answer.status_code != UnavailableError.status:
        raise UpstreamError("Looking into the model failed.")
    return answer.content, answer.status_code
