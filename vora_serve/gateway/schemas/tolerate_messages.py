"""Messages of a chat as clients send and replay them, brought into the schema's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from vora_serve.gateway.schemas.fields import FieldPolicy

Tree = dict[str, Any]

# What a model thought: nothing here was trained to read it again.
THOUGHTS = frozenset(("thinking", "redacted_thinking", "reasoning", "reasoning_content"))
# Calls among the parts of an assistant's content, where they stand beside `tool_calls`.
_CALLS = frozenset(("tool_use", "tool_call", "function_call"))
_TEXTS = frozenset(("input_text", "output_text"))


def tolerate_messages(tree: Tree, policy: FieldPolicy) -> None:
    """Bring ``messages`` into form, in place."""
    messages = tree.get("messages")
    if not isinstance(messages, list):
        return
    pending: list[str] = []
    for index, message in enumerate(messages):
        if isinstance(message, dict) and not _is_plain(message):
            _message(message, f"messages[{index}]", index, pending, policy)


def _is_plain(message: Tree) -> bool:
    """Whether it is text and nothing else, as most messages are: then there is nothing to do."""
    return (
        len(message) == 2
        and type(message.get("content")) is str
        and message.get("role") in ("user", "assistant", "system")
    )


def _message(
    message: Tree, where: str, index: int, pending: list[str], policy: FieldPolicy
) -> None:
    role = message.get("role")
    if role == "function":
        message["role"] = role = "tool"
    if role == "assistant":
        _calls(message, where, index, policy)
        pending[:] = _ids(message)
    elif role == "tool":
        _result(message, pending)
    name = message.get("name")
    if "name" in message and role != "tool" and (not isinstance(name, str) or not name):
        del message["name"]
        if name not in (None, ""):
            policy.note(f"{where}.name")
    if isinstance(message.get("content"), list):
        _content(message, where, policy)
    if role == "tool" and message.get("content", "") in (None, []):
        message["content"] = ""  # the tool gave nothing back


def _calls(message: Tree, where: str, index: int, policy: FieldPolicy) -> None:
    """Calls that the assistant made, as streams and the older API leave them."""
    calls = message.get("tool_calls")
    if calls == [] or calls == {}:
        del message["tool_calls"]
        calls = None
    legacy = message.pop("function_call", None)
    if legacy and not calls:
        message["tool_calls"] = calls = [{"function": legacy}]
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if not isinstance(call, dict):
            continue
        if not call.get("type"):
            call["type"] = "function"
        if call.get("id") is None:
            call["id"] = f"call_{index}_{place}"
        function = call.get("function")
        if isinstance(function, dict):
            function["arguments"] = _arguments(function.get("arguments"))
    if message.get("content") == []:
        message["content"] = None


def _arguments(value: Any) -> Any:
    """Arguments as JSON text; some clients replay them parsed, or leave out that there are none."""
    if value is None or value == "":
        return "{}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _ids(message: Tree) -> list[str]:
    calls = message.get("tool_calls")
    return [
        call["id"]
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict) and isinstance(call.get("id"), str)
    ]


def _result(message: Tree, pending: list[str]) -> None:
    """Which call a result belongs to: the next one that has none, where it does not say."""
    call_id = message.get("tool_call_id")
    if call_id is None and pending:
        message["tool_call_id"] = pending.pop(0)
    elif isinstance(call_id, str) and call_id in pending:
        pending.remove(call_id)


def _content(message: Tree, where: str, policy: FieldPolicy) -> None:
    parts: list[Any] = []
    assistant = message.get("role") == "assistant"
    for place, part in enumerate(message["content"]):
        at = f"{where}.content[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if assistant and isinstance(kind, str) and _is_dropped(kind, message):
            policy.note(at)
        else:
            parts.append(part_in_form(part))
    if parts or not message["content"]:
        message["content"] = parts
    else:
        message["content"] = None if message.get("tool_calls") else ""


def _is_dropped(kind: str, message: Tree) -> bool:
    return kind in THOUGHTS or (kind in _CALLS and bool(message.get("tool_calls")))


def part_in_form(part: Any) -> Any:
    """A part of a chat's content in the schema's form; what is unknown stays as it is."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in ("text", "image_url") if name in part), None)
        if kind is None:
            return part
        part["type"] = kind
    if not isinstance(kind, str):
        return part
    if kind in _TEXTS:
        part["type"] = "text"
    reader = _IMAGES.get(kind)
    return _image(part, reader(part)) if reader is not None else part


def _image(part: Tree, url: Any) -> Tree:
    """An image part; what says how to look at it is put inside, where OpenAI has it."""
    if url is None:
        return part
    holder = url if isinstance(url, dict) else {"url": url}
    if not holder.get("detail"):
        holder.pop("detail", None)
        if part.get("detail"):
            holder["detail"] = part["detail"]
    used = ("type", "image_url", "detail", *_SOURCES)
    kept = {name: value for name, value in part.items() if name not in used}
    return {"type": "image_url", "image_url": holder, **kept}


_SOURCES = ("image", "source", "data", "mimeType", "mime_type")


def _plain_image(part: Tree) -> Any:
    """The URL in ``{"type": "image"}``: of the Qwen models, of MCP, or of Anthropic."""
    if "image" in part:
        return part["image"]
    source = part.get("source")
    if isinstance(source, dict):
        if source.get("type") == "url":
            return source.get("url")
        return _data_url(source.get("media_type"), source.get("data"))
    return _data_url(part.get("mimeType", part.get("mime_type")), part.get("data"))


def _data_url(kind: Any, data: Any) -> str | None:
    if not isinstance(data, str) or not isinstance(kind, str):
        return None
    return f"data:{kind};base64,{data}"


_IMAGES: dict[str, Callable[[Tree], Any]] = {
    "image_url": lambda part: part.get("image_url"),
    "input_image": lambda part: part.get("image_url"),
    "image": _plain_image,
}
