"""The HTTP side of ``vora-serve chat``: models, and streamed answers.

Why not the ``openai`` package: the base installation would grow by 30 MB (the gateway's image has
88 MB), and every ``vora-serve chat`` would start 1.4 s of CPU time later (1.7 s against 0.3 s for
httpx, measured with openai 3.54 on the development machine). This module is what is needed of it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from vora_core.errors import ConfigError, VoRAError
from vora_core.installation import program

_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}


def image_url(where: str) -> str:
    """A URL to send: a URL unchanged, a file as a ``data:`` URL.

    Raises:
        ConfigError: the file does not exist, or is not an image.
    """
    if where.startswith(("http://", "https://", "data:")):
        return where
    path = Path(where).expanduser()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"The image {where} does not exist.") from None
    except OSError as error:
        raise ConfigError(f"The image {where} cannot be read: {error.strerror}.") from None
    kind = next((kind for sign, kind in _SIGNATURES.items() if content.startswith(sign)), None)
    if kind is None:
        raise ConfigError(f"{where} is not an image. Use JPEG, PNG, WebP, GIF, BMP or TIFF.")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass
class Piece:
    """Part of a streamed answer."""

    text: str = ""
    usage: dict[str, Any] | None = None


class Server:
    """A gateway, or any other server with OpenAI's HTTP API.

    Args:
        base_url: With or without ``/v1``.
        key: API key, if the server requires one.
    """

    def __init__(self, base_url: str, key: str | None) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(
                base_url=self.url, headers=headers, timeout=httpx.Timeout(10, read=600)
            )
        except (httpx.InvalidURL, UnicodeError):
            raise ConfigError(f"{base_url} is not a URL.") from None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _failed(self, response: httpx.Response) -> VoRAError:
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"The server returned status {response.status_code}."
        if response.status_code == 401:
            message += " Set the environment variable VORA_API_KEY to your key."
        return VoRAError(message)

    def _away(self) -> VoRAError:
        return VoRAError(
            f"No server answers at {self.url}. Start one with 'make demo' or "
            f"'{program()} serve PATH_OR_HUB_ID', or pass --base-url URL."
        )

    def models(self) -> list[str]:
        """Names of the served models.

        Raises:
            VoRAError: the server is unreachable or refuses.
        """
        try:
            response = self._client.get("/v1/models")
        except httpx.UnsupportedProtocol:
            raise ConfigError(f"{self.url} is not the URL of an HTTP server.") from None
        except httpx.TransportError:
            raise self._away() from None
        if response.status_code != 200:
            raise self._failed(response)
        return [str(card["id"]) for card in response.json()["data"]]

    def stream(self, body: dict[str, Any]) -> Iterator[Piece]:
        """The answer, piece by piece.

        Raises:
            VoRAError: the server is unreachable, refuses, or closes the connection early.
        """
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        done = False
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=asked) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._failed(response)
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or not data:
                        continue
                    if data == "[DONE]":
                        done = True
                        break
                    event = json.loads(data)
                    if event.get("error"):
                        raise VoRAError(str(event["error"]["message"]))
                    choices = event.get("choices") or [{}]
                    text = (choices[0].get("delta") or {}).get("content") or ""
                    yield Piece(text, event.get("usage"))
        except httpx.TransportError:
            raise self._away() from None
        if not done:
            raise VoRAError("The server closed the connection before the answer was complete.")


def choose_model(server: Server, wanted: str | None) -> str:
    """The model to use.

    Raises:
        VoRAError: the server has no model, or not this one.
    """
    names = server.models()
    if not names:
        raise VoRAError("The server has no model yet. Its engine is still starting.")
    if wanted is not None and wanted not in names:
        raise ConfigError(f"The server has no model {wanted}. Available: {', '.join(names)}.")
    return wanted or names[0]
