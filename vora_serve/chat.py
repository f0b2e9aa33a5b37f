"""``vora-serve chat``: a conversation with a served model in the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

from vora_core.errors import ConfigError, VoRAError
from vora_serve.chat_client import Server, choose_model, image_url

HELP = """\
/image PATH_OR_URL   send this image with the next question (repeatable)
/system TEXT         set the system prompt; without text, use the model's default
/model NAME          switch to another model; without a name, list the models
/retry               send the last question again
/new                 start a new conversation
/help                show this list
/quit                quit (or Ctrl-D); Ctrl-C stops an answer"""


@dataclass
class Conversation:
    """The messages so far, and the images of the next question."""

    model: str
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def ask(self, question: str) -> dict[str, Any]:
        """The request for a question, with the waiting images."""
        content: Any = question
        if self.images:
            content = [
                *({"type": "image_url", "image_url": {"url": url}} for url in self.images),
                {"type": "text", "text": question},
            ]
        self.images = []
        self.messages.append({"role": "user", "content": content})
        return self.body()

    def body(self) -> dict[str, Any]:
        """The request for the messages so far."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"model": self.model, "messages": [*head, *self.messages], **self.sampling}


class Terminal:
    """The conversation in a terminal, or between pipes.

    Args:
        server: receives the requests.
        conversation: to continue.
        out: stream for answers.
        notes: stream for everything else.
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
        """Print a line that is not part of an answer."""
        dim, back = ("\x1b[2m", "\x1b[0m") if self._coloured else ("", "")
        self._notes.write(f"{dim}{text}{back}\n")
        self._notes.flush()

    def answer(self, body: dict[str, Any]) -> None:
        """Stream an answer, and add it to the conversation.

        Raises:
            VoRAError: the request failed.
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
                # A model's output must not control the terminal.
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
            parts.append(f"{details['image_tokens']} image tokens")
        parts += [f"{made} tokens out", f"first after {(first - began) * 1000:.0f} ms"]
        if made > 1 and last > first:
            parts.append(f"{(made - 1) / (last - first):.0f} tokens/s")
        self.note(", ".join(parts))

    def run(self) -> None:
        """Read questions and commands until the user quits."""
        self.note(f"{self.conversation.model} at {self.server.url}; /help lists the commands")
        while True:
            waiting = len(self.conversation.images)
            prompt = f"[{waiting} image{'s' * (waiting > 1)}] > " if waiting else "> "
            try:
                line = input(prompt).strip()
            except EOFError:
                self.note("")
                return
            except KeyboardInterrupt:
                self.note("\nType /quit or press Ctrl-D to quit.")
                continue
            if line == "/quit":
                return
            if not line:
                continue
            try:
                self._line(line)
            except VoRAError as error:
                self.note(f"{error}")

    def _line(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        conversation = self.conversation
        if not line.startswith("/"):
            self.answer(conversation.ask(line))
        elif command == "/image" and rest:
            conversation.images.append(image_url(rest.strip("'\"")))
        elif command == "/system":
            conversation.system = rest or None
        elif command == "/model":
            names = self.server.models()
            if rest in names:
                conversation.model = rest
            else:
                self.note("models: " + ", ".join(names))
        elif command == "/new":
            conversation.messages, conversation.images = [], []
        elif command == "/retry":
            self._retry()
        else:
            self.note(HELP)

    def _retry(self) -> None:
        messages = self.conversation.messages
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            self.note("There is no question to repeat.")
            return
        self.answer(self.conversation.body())


def chat(
    base_url: str,
    model: str | None,
    question: str | None,
    images: list[str],
    system: str | None,
    sampling: dict[str, Any],
) -> None:
    """Start a conversation, or send a single question if one is given or piped in.

    Raises:
        VoRAError: the server is unreachable or refuses, or an image cannot be read.
    """
    urls = [image_url(where) for where in images]
    with contextlib.closing(Server(base_url, os.environ.get("VORA_API_KEY"))) as server:
        conversation = Conversation(choose_model(server, model), system, sampling, images=urls)
        _talk(Terminal(server, conversation, sys.stdout, sys.stderr), question)


def _talk(terminal: Terminal, question: str | None) -> None:
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise ConfigError("Standard input contains no question.")
    if question is not None:
        terminal.answer(terminal.conversation.ask(question))
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits and remembers lines
    terminal.run()
