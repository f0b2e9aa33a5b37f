"""Answers for callers that know calls only as ``function_call``, the form before ``tool_calls``."""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]


def as_legacy(tree: Tree) -> None:
    """Rewrite the calls in a chat's answer, or in a chunk of its stream, in place.

    Such an answer holds one call: the first.
    """
    choices = tree.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        for name in ("message", "delta"):
            if isinstance(choice.get(name), dict):
                _rewrite(choice[name])
        if choice.get("finish_reason") == "tool_calls":
            choice["finish_reason"] = "function_call"


def _rewrite(message: Tree) -> None:
    calls = message.pop("tool_calls", None)
    first = calls[0] if isinstance(calls, list) and calls else None
    if not isinstance(first, dict) or first.get("index"):
        return
    if isinstance(first.get("function"), dict):
        message["function_call"] = {"arguments": "", **first["function"]}
