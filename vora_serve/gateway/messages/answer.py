"""A chat's answer as the Messages API gives it, at once or as a stream of events."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json, to_json

Tree = dict[str, Any]


def message_id() -> str:
    """A new message's id."""
    return f"msg_{secrets.token_hex(12)}"


def as_message(answer: Tree) -> Tree:
    """A chat completion as a message."""
    choice = answer["choices"][0]
    said = choice["message"]
    content: list[Tree] = []
    if said.get("content"):
        content.append({"type": "text", "text": said["content"]})
    for call in said.get("tool_calls") or ():
        function = call["function"]
        content.append(
            {
                "type": "tool_use",
                "id": call["id"],
                "name": function["name"],
                "input": _arguments(function.get("arguments")),
            }
        )
    reason, stop = stop_reason(choice, bool(said.get("tool_calls")))
    return {
        **_opening(answer.get("model"), answer.get("usage")),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
    }


def as_token_count(answer: Tree) -> Tree:
    """What the engine's tokenizer says, as a count."""
    return {"input_tokens": int(answer["count"])}


def _opening(model: Any, usage: Any) -> Tree:
    return {
        "id": message_id(),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _usage(usage: Any) -> Tree:
    """Tokens; there, cached tokens are not counted among the input's."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0
    return {
        "input_tokens": max(0, (usage.get("prompt_tokens") or 0) - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


def _arguments(text: Any) -> Tree:
    """A call's arguments; an answer that was cut off has none that could be read."""
    try:
        tree = from_json(text)
    except (TypeError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def stop_reason(choice: Tree, called: bool) -> tuple[str, str | None]:
    """Why the answer ended, and the stop sequence that ended it."""
    finish, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if finish == "length":
        return "max_tokens", None
    if finish == "content_filter":
        return "refusal", None
    if called:
        return "tool_use", None
    if isinstance(stop, str):
        return "stop_sequence", stop
    return "end_turn", None


class MessageStream:
    """Turns a chat's chunks into events, one after the other."""

    def __init__(self) -> None:
        self._begun = False
        self._index = -1
        self._block: str | int | None = None
        """What the open block holds: ``text``, or a call by its index in the chat."""
        self._called = False
        self._last: Tree = {}
        self._usage: Any = None

    def feed(self, chunk: Tree) -> Iterable[bytes]:
        """The events that a chunk gives."""
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        if not self._begun:
            self._begun = True
            yield _event("message_start", message=_opening(chunk.get("model"), self._usage))
            yield PING
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content"):
                if self._block != "text":
                    yield from self._open("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": delta["content"]})
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            if choice.get("finish_reason") is not None:
                self._last = choice

    def end(self) -> Iterable[bytes]:
        """The events that end the message."""
        yield from self._close()
        reason, stop = stop_reason(self._last, self._called)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        yield _event("message_delta", delta=delta, usage=_usage(self._usage))
        yield _event("message_stop")

    def _call(self, call: Tree) -> Iterable[bytes]:
        function = call.get("function") or {}
        index = call.get("index", 0)
        if self._block != index:
            self._called = True
            block: Tree = {
                "type": "tool_use",
                "id": call.get("id") or f"toolu_{secrets.token_hex(12)}",
                "name": function.get("name") or "",
                "input": {},
            }
            yield from self._open(index, block)
        if function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _open(self, what: str | int, block: Tree) -> Iterable[bytes]:
        yield from self._close()
        self._block = what
        self._index += 1
        yield _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> Iterable[bytes]:
        if self._block is not None:
            self._block = None
            yield _event("content_block_stop", index=self._index)

    def _delta(self, delta: Tree) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(name: str, **data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + to_json({"type": name, **data}) + b"\n\n"


PING = _event("ping")
