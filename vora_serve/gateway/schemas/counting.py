"""Requests that count a prompt's tokens: vLLM's ``/tokenize``, OpenAI's ``input_tokens``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from vora_serve.gateway.schemas.base import Name, PixelBounds, Schema
from vora_serve.gateway.schemas.chat import Message, Tool
from vora_serve.gateway.schemas.parse import ParsedRequest, parse_tree, read_object
from vora_serve.gateway.settings import FieldSettings

Tree = dict[str, Any]


class TokenizePrompt(Schema):
    """Text to be tokenized as it is."""

    model: Name
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(Schema):
    """A chat, with images, to be tokenized as the model would read it."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    mm_processor_kwargs: PixelBounds | None = None


def parse_tokenize(body: bytes, settings: FieldSettings) -> ParsedRequest:
    """Validate a body of ``/tokenize``.

    Raises:
        InvalidRequestError: no JSON object, an unknown or refused field, a value out of bounds.
    """
    tree = read_object(body)
    if "messages" in tree:
        return parse_tree("chat", tree, settings, TokenizeChat)
    return parse_tree("completion", tree, settings, TokenizePrompt)


def parse_input_tokens(body: bytes, settings: FieldSettings) -> ParsedRequest:
    """Validate a body of ``/v1/responses/input_tokens``; it is sent as a chat to be tokenized.

    Raises:
        InvalidRequestError: no JSON object, an unknown or refused field, a value out of bounds.
    """
    parsed = parse_tree("response", read_object(body), settings)
    parsed.stream = False
    parsed.written = as_chat
    return parsed


def as_chat(response: Tree) -> Tree:
    """A request of the Responses API as the engine makes a chat of it, to be tokenized."""
    messages: list[Tree] = []
    if response.get("instructions"):
        messages.append({"role": "system", "content": response["instructions"]})
    given = response["input"]
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for item in given:
            _add(messages, item)
    chat: Tree = {"model": response["model"], "messages": messages}
    tools = [_tool(tool) for tool in response.get("tools") or ()]
    if tools and response.get("tool_choice") != "none":
        chat["tools"] = tools
    return chat


def _add(messages: list[Tree], item: Tree) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append({"role": item["role"], "content": _content(item["content"])})
    elif kind in ("function_call", "custom_tool_call"):
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            last = {"role": "assistant", "content": None}
            messages.append(last)
        arguments = item.get("arguments")
        if arguments is None:
            arguments = to_json({"input": item["input"]}).decode()
        function = {"name": item["name"], "arguments": arguments}
        call = {"id": item["call_id"], "type": "function", "function": function}
        last.setdefault("tool_calls", []).append(call)
    else:
        content = _content(item["output"])
        messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})


def _content(content: str | list[Tree]) -> str | list[Tree]:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content]


def _part(part: Tree) -> Tree:
    if "image_url" in part:
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part.get("text") or part.get("refusal") or ""}


def _tool(tool: Tree) -> Tree:
    """A custom tool is a function of one text."""
    function = {key: value for key, value in tool.items() if key not in ("type", "format")}
    if tool["type"] == "custom":
        text = {"type": "string"}
        function["parameters"] = {
            "type": "object",
            "properties": {"input": text},
            "required": ["input"],
        }
    return {"type": "function", "function": function}
