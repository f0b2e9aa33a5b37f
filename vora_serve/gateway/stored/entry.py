"""One kept response: what was asked in its turn, what was answered, and which turn came before."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

Tree = dict[str, Any]

_PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}


@dataclass(frozen=True)
class StoredResponse:
    """A response as it was answered.

    Attributes:
        response: The response object.
        input: The items of its own turn, each with an id; none of the turns before.
        previous: The response whose turn came before.
    """

    response: Tree
    input: list[Tree]
    previous: str | None

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.response["id"])

    def encode(self) -> bytes:
        """As JSON."""
        return to_json([self.response, self.input, self.previous])

    @classmethod
    def decode(cls, data: bytes) -> StoredResponse:
        """From :meth:`encode`."""
        response, items, previous = from_json(data)
        return cls(response, items, previous)

    def items(self) -> Iterator[Tree]:
        """What the turn adds to the conversation: its input, then its output."""
        yield from self.input
        yield from self.response.get("output") or ()

    def ids(self) -> list[str]:
        """The ids of the items."""
        return [item["id"] for item in self.items() if isinstance(item.get("id"), str)]

    def item(self, item_id: str) -> Tree | None:
        """The item with that id."""
        return next((item for item in self.items() if item.get("id") == item_id), None)


def with_ids(items: list[Any]) -> list[Tree]:
    """Items as OpenAI lists them: each with an id, and text as a message."""
    numbered: list[Tree] = []
    for item in items:
        item = as_item(item)
        kind = item.get("type") or "message"
        if not isinstance(item.get("id"), str):
            prefix = _PREFIXES.get(kind, "item") if isinstance(kind, str) else "item"
            item = {**item, "id": f"{prefix}_{secrets.token_hex(16)}"}
        numbered.append({**item, "type": kind})
    return numbered


def as_item(item: Any) -> Tree:
    """Plain text as the user's message."""
    return item if isinstance(item, dict) else {"role": "user", "content": item}
