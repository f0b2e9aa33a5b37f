"""Items of a response's input as agents send and replay them, brought into the schema's form."""

from __future__ import annotations

import json
from typing import Any

from vora_core.errors import InvalidRequestError
from vora_serve.gateway.schemas.fields import FieldPolicy
from vora_serve.gateway.schemas.tolerate_messages import THOUGHTS

Tree = dict[str, Any]

# Items of earlier answers that say nothing which a model here would read.
_DROPPED = frozenset(
    ("reasoning", "web_search_call", "file_search_call", "tool_search_call", "mcp_list_tools")
)
_OUTPUTS = frozenset(("function_call_output", "custom_tool_call_output"))
_KINDS = {"text": "input_text", "image_url": "input_image"}


def tolerate_input(tree: Tree, policy: FieldPolicy) -> None:
    """Bring ``input`` into form, in place.

    Raises:
        InvalidRequestError: an image is given as a file that would have to be kept here.
    """
    items = tree.get("input")
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list):
        return
    kept: list[Any] = []
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if isinstance(item, str):
            kept.append({"role": "user", "content": item})
        elif not isinstance(item, dict):
            kept.append(item)
        elif _is_dropped(item):
            policy.note(where)
        else:
            kept.append(_item(item, where, last=index == len(items) - 1, policy=policy))
    tree["input"] = [item for item in kept if item is not None]


def _is_dropped(item: Tree) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and kind in _DROPPED


def _item(item: Tree, where: str, *, last: bool, policy: FieldPolicy) -> Tree | None:
    kind = item.get("type")
    if kind is None:
        kind = _kind_of(item)
    if kind == "message":
        return _message(item, where, last, policy)
    if kind == "function_call":
        arguments = item.get("arguments")
        if not arguments:
            item["arguments"] = "{}"
        elif isinstance(arguments, dict):
            item["arguments"] = json.dumps(arguments, ensure_ascii=False)
        if not item.get("call_id") and isinstance(item.get("id"), str):
            item["call_id"] = item["id"]
        item.pop("status", None)
    elif isinstance(kind, str) and kind in _OUTPUTS:
        output = item.get("output")
        if output in (None, []):
            item["output"] = ""
        elif isinstance(output, list):
            item["output"] = _parts(output, f"{where}.output")
        elif isinstance(output, dict) and output.get("type") is not None:
            item["output"] = _parts([output], f"{where}.output")
        elif isinstance(output, (dict, int, float)):
            item["output"] = json.dumps(output, ensure_ascii=False)
        item.pop("status", None)
    return item


def _kind_of(item: Tree) -> str | None:
    """What an item without a type is."""
    if "role" in item:
        return "message"
    if "call_id" in item and "output" in item:
        item["type"] = "function_call_output"
    elif "call_id" in item and "name" in item:
        item["type"] = "function_call"
    elif set(item) == {"id"}:
        item["type"] = "item_reference"
    return item.get("type")


def _message(item: Tree, where: str, last: bool, policy: FieldPolicy) -> Tree | None:
    item["type"] = "message"
    content = item.get("content")
    if item.get("role") == "assistant":
        return _assistant(item, where, last, policy)
    for name in ("id", "status"):
        item.pop(name, None)
    if isinstance(content, list):
        item["content"] = _parts(content, f"{where}.content")
    elif isinstance(content, dict):
        item["content"] = _parts([content], f"{where}.content")
    return item


def _assistant(item: Tree, where: str, last: bool, policy: FieldPolicy) -> Tree | None:
    """What the model said, as one text: engines read the first part alone, or none without ids."""
    content = item.get("content")
    if content in (None, []):
        return None
    if not isinstance(content, list):
        return item if isinstance(content, str) else {**item, "content": [content]}
    texts: list[str] = []
    for place, part in enumerate(content):
        text = _text(part)
        if text is None:
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str) or kind not in THOUGHTS:
                return item  # for the schema to refuse
            policy.note(f"{where}.content[{place}]")
        else:
            texts.append(text)
    said = "".join(texts)
    kept = {name: value for name, value in item.items() if name not in ("content", "id", "status")}
    if last and item.get("status") in ("in_progress", "incomplete"):
        # The answer goes on from these words; engines want the whole item then.
        part = {"type": "output_text", "text": said, "annotations": []}
        whole = {"id": item.get("id") or "msg_0", "status": item["status"]}
        return {**kept, **whole, "content": [part]}
    return {**kept, "content": said}


def _text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return None
    kind = part.get("type", "output_text")
    if kind in ("output_text", "text", "input_text"):
        text = part.get("text")
    else:
        text = part.get("refusal") if kind == "refusal" else None
    return text if isinstance(text, str) else None


def _parts(parts: list[Any], where: str) -> list[Any]:
    """The parts of what a user says or a tool gives back."""
    return [_part(part, f"{where}[{place}]") for place, part in enumerate(parts)]


def _part(part: Any, where: str) -> Any:
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in _KINDS if name in part), None)
    if isinstance(kind, str) and kind in _KINDS:
        part["type"] = kind = _KINDS[kind]
    if kind == "output_text":
        part["type"] = "input_text"
        part.pop("annotations", None)
        part.pop("logprobs", None)
    if kind == "input_image":
        holder = part.get("image_url")
        if isinstance(holder, dict):  # as chats have it
            part["image_url"] = holder.get("url")
            part.setdefault("detail", holder.get("detail"))
        if not part.get("detail"):
            part.pop("detail", None)
        if part.get("image_url") is None and part.get("file_id") is not None:
            raise InvalidRequestError(
                f"Files are not kept here; give '{where}.image_url' instead of 'file_id'.",
                param=f"{where}.file_id",
                code="unsupported_parameter",
            )
    return part
