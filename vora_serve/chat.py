"""``vora-serve chat``: talk to a served model in the terminal, pictures included."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx

from vora_serve.errors import ConfigurationError, VoRAServeError

HELP = """\
/image PATH_OR_URL   send this picture with the next question (repeatable)
/system TEXT         set the system prompt; without text, the model's own
/model NAME          talk to another model; without a name, list them
/retry               ask the last question again
/new                 begin a new conversation
/help                this
/quit                leave (or Ctrl-D); Ctrl-C stops an answer"""
_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}


def picture_url(where: str) -> str:
    """A URL to send: an address as it is, a file as a ``data:`` URL.

    Raises:
        ConfigurationError: there is no such file, or it is no picture.
    """
    if where.startswith(("http://", "https://", "data:")):
        return where
    path = Path(where).expanduser()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"The picture {where} does not exist.") from None
    except OSError as error:
        raise ConfigurationError(f"The picture {where} cannot be read: {error.strerror}.") from None
    kind = next((kind for sign, kind in _SIGNATURES.items() if content.startswith(sign)), None)
    if kind is None:
        raise ConfigurationError(f"{where} is no picture that is known here (PNG, JPEG, WebP, …).")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@dataclass
class Piece:
    """Part of a streamed answer."""

    text: str = ""
    usage: dict[str, Any] | None = None


class Server:
    """A gateway, or anything else that speaks OpenAI's HTTP.

    Args:
        base_url: With or without ``/v1``.
        key: API key, if one is asked for.
    """

    def __init__(self, base_url: str, key: str | None) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(
                base_url=self.url, headers=headers, timeout=httpx.Timeout(10, read=600)
            )
        except (httpx.InvalidURL, UnicodeError):
            raise ConfigurationError(f"{base_url} is no URL.") from None

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def _failed(self, response: httpx.Response) -> VoRAServeError:
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"The server answered {response.status_code}."
        if response.status_code == 401:
            message += " Give the key in the environment variable VORA_API_KEY."
        return VoRAServeError(message)

    def _away(self) -> VoRAServeError:
        return VoRAServeError(
            f"There is no server at {self.url}: start one with 'make demo' or "
            "'vora-serve serve --model PATH_OR_HUB_ID', or name it with --base-url."
        )

    def models(self) -> list[str]:
        """Names of the served models.

        Raises:
            VoRAServeError: the server is away or refuses.
        """
        try:
            response = self._client.get("/v1/models")
        except httpx.UnsupportedProtocol:
            raise ConfigurationError(f"{self.url} is no URL of a server.") from None
        except httpx.TransportError:
            raise self._away() from None
        if response.status_code != 200:
            raise self._failed(response)
        return [str(card["id"]) for card in response.json()["data"]]

    def stream(self, body: dict[str, Any]) -> Iterator[Piece]:
        """The answer as it comes.

        Raises:
            VoRAServeError: the server is away, refuses or breaks off.
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
                        raise VoRAServeError(str(event["error"]["message"]))
                    choices = event.get("choices") or [{}]
                    text = (choices[0].get("delta") or {}).get("content") or ""
                    yield Piece(text, event.get("usage"))
        except httpx.TransportError:
            raise self._away() from None
        if not done:
            raise VoRAServeError("The answer broke off before its end.")


@dataclass
class Conversation:
    """What has been said, and what the next question carries."""

    model: str
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def ask(self, question: str) -> dict[str, Any]:
        """The request for a question; the pictures that were waiting go with it."""
        content: Any = question
        if self.pictures:
            content = [
                *({"type": "image_url", "image_url": {"url": url}} for url in self.pictures),
                {"type": "text", "text": question},
            ]
        self.pictures = []
        self.messages.append({"role": "user", "content": content})
        return self.body()

    def body(self) -> dict[str, Any]:
        """The request as it stands."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"model": self.model, "messages": [*head, *self.messages], **self.sampling}


class Terminal:
    """The conversation in a terminal, or between pipes.

    Args:
        server: Who is asked.
        conversation: Where it begins.
        out: Where answers go.
        notes: Where everything else goes.
    """

    def __init__(
        self, server: Server, conversation: Conversation, out: TextIO, notes: TextIO
    ) -> None:
        self.server = server
        self.conversation = conversation
        self._out = out
        self._notes = notes
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self._coloured = notes.isatty() and not plain

    def note(self, text: str) -> None:
        """Something that is no answer."""
        dim, back = ("\x1b[2m", "\x1b[0m") if self._coloured else ("", "")
        self._notes.write(f"{dim}{text}{back}\n")
        self._notes.flush()

    def answer(self, body: dict[str, Any]) -> None:
        """Stream an answer, and keep it.

        Raises:
            VoRAServeError: there is none.
        """
        began = time.perf_counter()
        first = last = None
        usage: dict[str, Any] = {}
        said = ""
        try:
            for piece in self.server.stream(body):
                usage = piece.usage or usage
                if not piece.text:
                    continue
                last = time.perf_counter()
                first = first or last
                said += piece.text
                # Nothing that a model writes may steer the terminal.
                self._out.write("".join(c for c in piece.text if c in "\n\t" or c.isprintable()))
                self._out.flush()
        except KeyboardInterrupt:
            self.note("\n(stopped)")
        finally:
            if said:
                self._out.write("\n")
                self._out.flush()
                self.conversation.messages.append({"role": "assistant", "content": said})
            else:
                self.conversation.messages.pop()
        self._measures(began, first, last, usage)

    def _measures(
        self, began: float, first: float | None, last: float | None, usage: dict[str, Any]
    ) -> None:
        if not usage or first is None or last is None:
            return
        details = usage.get("prompt_tokens_details") or {}
        made = int(usage.get("completion_tokens") or 0)
        parts = [f"{usage.get('prompt_tokens')} tokens in"]
        if details.get("image_tokens"):
            parts.append(f"{details['image_tokens']} of pictures")
        parts += [f"{made} out", f"first after {(first - began) * 1000:.0f} ms"]
        if made > 1 and last > first:
            parts.append(f"{(made - 1) / (last - first):.0f} tokens/s")
        self.note(", ".join(parts))

    def run(self) -> None:
        """Read questions and commands until the end."""
        self.note(f"{self.conversation.model} at {self.server.url}; /help lists what you can do")
        while True:
            waiting = len(self.conversation.pictures)
            prompt = f"[{waiting} picture{'s' * (waiting > 1)}] > " if waiting else "> "
            try:
                line = input(prompt).strip()
            except EOFError:
                self.note("")
                return
            except KeyboardInterrupt:
                self.note("\nCtrl-D or /quit leaves.")
                continue
            if line == "/quit":
                return
            if not line:
                continue
            try:
                self._line(line)
            except VoRAServeError as error:
                self.note(f"{error}")

    def _line(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        conversation = self.conversation
        if not line.startswith("/"):
            self.answer(conversation.ask(line))
        elif command == "/image" and rest:
            conversation.pictures.append(picture_url(rest.strip("'\"")))
        elif command == "/system":
            conversation.system = rest or None
        elif command == "/model":
            names = self.server.models()
            if rest in names:
                conversation.model = rest
            else:
                self.note("models: " + ", ".join(names))
        elif command == "/new":
            conversation.messages, conversation.pictures = [], []
        elif command == "/retry":
            self._retry()
        else:
            self.note(HELP)

    def _retry(self) -> None:
        messages = self.conversation.messages
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            self.note("Nothing has been asked yet.")
            return
        self.answer(self.conversation.body())


def choose_model(server: Server, wanted: str | None) -> str:
    """The model to talk to.

    Raises:
        VoRAServeError: there is none, or not this one.
    """
    names = server.models()
    if not names:
        raise VoRAServeError("The server has no model yet: its engine is still starting.")
    if wanted is not None and wanted not in names:
        raise ConfigurationError(f"{wanted} is not served here; served: {', '.join(names)}.")
    return wanted or names[0]


def chat(
    base_url: str,
    model: str | None,
    question: str | None,
    images: list[str],
    system: str | None,
    sampling: dict[str, Any],
) -> None:
    """Talk, or ask a single question when one is given or piped in.

    Raises:
        VoRAServeError
    """
    pictures = [picture_url(where) for where in images]
    with contextlib.closing(Server(base_url, os.environ.get("VORA_API_KEY"))) as server:
        conversation = Conversation(
            choose_model(server, model), system, sampling, pictures=pictures
        )
        _talk(Terminal(server, conversation, sys.stdout, sys.stderr), question)


def _talk(terminal: Terminal, question: str | None) -> None:
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise ConfigurationError("There is no question on standard input.")
    if question is not None:
        terminal.answer(terminal.conversation.ask(question))
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits and remembers lines
    terminal.run()
