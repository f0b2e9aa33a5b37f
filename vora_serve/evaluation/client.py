"""Asking an OpenAI-compatible server about images, several questions at a time."""

from __future__ import annotations

import asyncio
import base64
import io
import mimetypes
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from PIL import Image

from vora_core.errors import VoRAError

ImageSource = Image.Image | Path | tuple[Image.Image, ...] | None
#: Sends a body to a path below ``/v1`` and returns what the server answered.
Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


class EvaluationError(VoRAError):
    """The server could not be asked."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask.

    Attributes:
        base_url: of the server, with or without ``/v1``.
        model: name of the model; the first that the server lists when None.
        api_key: sent as a bearer token when given.
        concurrency: questions on their way at once.
        timeout: seconds that one answer may take.
    """

    base_url: str
    model: str | None = None
    api_key: str | None = None
    concurrency: int = 8
    timeout: float = 120.0

    @property
    def root(self) -> str:
        """The address that ``/chat/completions`` follows."""
        base = self.base_url.rstrip("/")
        return base if base.endswith("/v1") else f"{base}/v1"


def ask_all(
    endpoint: Endpoint,
    questions: Sequence[tuple[ImageSource, str]],
    progress: Callable[[], None] = lambda: None,
    max_tokens: int = 16,
) -> list[str]:
    """Ask every question, greedily decoded, and return the replies in order.

    Args:
        endpoint: the server.
        questions: an image (drawn, several drawn ones, a file that is sent as it is, or none) and
            what is asked.
        progress: called after every reply.
        max_tokens: longest reply.

    Raises:
        EvaluationError: the server cannot be reached, or refuses a question.
    """

    async def one(post: Ask, model: str, question: tuple[ImageSource, str]) -> str:
        return _reply(await post("/chat/completions", chat_request(model, *question, max_tokens)))

    return for_all(endpoint, questions, one, progress)


def for_all(
    endpoint: Endpoint,
    items: Sequence[I],
    one: Callable[[Ask, str, I], Awaitable[R]],
    progress: Callable[[], None] = lambda: None,
) -> list[R]:
    """Do something with every item, several at a time, and return the results in order.

    Args:
        endpoint: the server.
        items: what is asked about.
        one: given a function that sends a body to a path, the model's name and an item.
        progress: called after every item.

    Raises:
        EvaluationError: the server cannot be reached, or refuses a request.
    """
    return asyncio.run(_for_all(endpoint, items, one, progress))


async def _for_all(
    endpoint: Endpoint,
    items: Sequence[I],
    one: Callable[[Ask, str, I], Awaitable[R]],
    progress: Callable[[], None],
) -> list[R]:
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    async with httpx.AsyncClient(
        headers=headers, timeout=endpoint.timeout, limits=limits, trust_env=False
    ) as client:
        model = endpoint.model or await _first_model(client, endpoint.root)
        results: dict[int, R] = {}
        waiting = iter(enumerate(items))

        async def post(path: str, body: dict[str, Any]) -> Any:
            return await _send(client, "POST", f"{endpoint.root}{path}", body)

        async def work() -> None:
            for index, item in waiting:
                results[index] = await one(post, model, item)
                progress()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(endpoint.concurrency):
                    group.create_task(work())
        except ExceptionGroup as errors:  # the first failure; it ended the others
            raise errors.exceptions[0] from None
        return [results[index] for index in range(len(items))]


def chat_request(model: str, image: ImageSource, text: str, max_tokens: int) -> dict[str, Any]:
    """A chat completion request with images as ``data:`` URLs, decoded greedily.

    Raises:
        EvaluationError: the image's file cannot be read.
    """
    images = image if isinstance(image, tuple) else () if image is None else (image,)
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _data_url(each)}} for each in images
    ]
    content.append({"type": "text", "text": text})
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0.0,
        "max_tokens": max_tokens,
    }


def _data_url(image: Image.Image | Path) -> str:
    if isinstance(image, Path):
        kind = mimetypes.guess_type(image.name)[0] or "image/jpeg"
        try:
            data = image.read_bytes()
        except OSError as error:
            raise EvaluationError(f"{image} cannot be read: {error.strerror}.") from error
    else:
        kind, buffer = "image/png", io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    return f"data:{kind};base64," + base64.b64encode(data).decode("ascii")


async def _first_model(client: httpx.AsyncClient, root: str) -> str:
    listing = await _send(client, "GET", f"{root}/models", None)
    try:
        return str(listing["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise EvaluationError("The server lists no model; name one with --model.") from error


async def _send(
    client: httpx.AsyncClient, method: str, url: str, body: dict[str, Any] | None
) -> Any:
    try:
        response = await client.request(method, url, json=body)
    except httpx.InvalidURL as error:
        raise EvaluationError(f"{url} is not a URL.") from error
    except httpx.UnsupportedProtocol as error:
        raise EvaluationError(f"{url} must begin with http:// or https://.") from error
    except httpx.TimeoutException as error:
        raise EvaluationError(f"The server did not answer in time: {url}.") from error
    except httpx.HTTPError as error:
        raise EvaluationError(f"The server cannot be reached at {url}.") from error
    try:
        answer = response.json()
    except ValueError as error:
        raise EvaluationError(
            f"The server answered {response.status_code} and no JSON: {url}."
        ) from error
    if response.status_code != 200:
        said = answer.get("error", {}) if isinstance(answer, dict) else {}
        reason = said.get("message", "no reason given") if isinstance(said, dict) else str(said)
        raise EvaluationError(f"The server answered {response.status_code}: {reason}")
    return answer


def _reply(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise EvaluationError("The server's answer is not a chat completion.") from error
