"""A request of the Messages API as the chat that says the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from vora_serve.gateway.messages.schemas import (
    CountTokensRequest,
    DocumentBlock,
    ImageBlock,
    MessagesRequest,
    PromptFields,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    TurnMessage,
)
from vora_serve.gateway.schemas.base import explain
from vora_serve.gateway.schemas.fields import FieldPolicy
from vora_serve.gateway.schemas.parse import ParsedRequest, parse_tree, read_object, settle
from vora_serve.gateway.settings import FieldAction, FieldSettings

Tree = dict[str, Any]
Prompt = TypeVar("Prompt", bound=PromptFields)

# Beside the table of all requests: fields of this API that the model's answer does not depend on.
_DROPPED = (
    *("allowed_callers", "betas", "caller", "citations", "container", "defer_loading"),
    *("diagnostics", "eager_input_streaming", "effort", "inference_geo", "input_examples"),
    *("speed", "task_budget", "user_profile_id", "workspace_id"),
)
_REFUSED = ("fallbacks", "mcp_servers")
_ACTIONS: dict[str, FieldAction] = {
    **dict.fromkeys(_DROPPED, "drop"),
    **dict.fromkeys(_REFUSED, "refuse"),
}


def parse_messages(body: bytes, settings: FieldSettings) -> ParsedRequest:
    """Validate a body of ``/v1/messages``; the chat to forward.

    Raises:
        InvalidRequestError: no JSON object, an unknown or refused field, a value out of bounds.
    """
    request, dropped = _validated(MessagesRequest, body, settings)
    chat = _prompt(request)
    chat["max_tokens"] = request.max_tokens
    chat |= _sampling(request)
    chat |= _tools(request)
    chat |= _output(request)
    if request.stream:
        chat["stream"] = True
        # The first event names the prompt's tokens, before the last chunk does.
        chat["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return _as_chat(chat, dropped, settings)


def parse_count_tokens(body: bytes, settings: FieldSettings) -> ParsedRequest:
    """Validate a body of ``/v1/messages/count_tokens``; what to let the engine tokenize.

    Raises:
        InvalidRequestError: no JSON object, an unknown or refused field, a value out of bounds.
    """
    request, dropped = _validated(CountTokensRequest, body, settings)
    chat = _prompt(request)
    tools = _tools(request)
    if "tools" in tools:
        chat["tools"] = tools["tools"]
    return _as_chat(chat, dropped, settings)


def _validated(
    schema: type[Prompt], body: bytes, settings: FieldSettings
) -> tuple[Prompt, list[str]]:
    tree = read_object(body)
    try:
        request = schema.model_validate(tree)
    except ValidationError as error:
        raise explain(error) from None
    policy = FieldPolicy(settings, _ACTIONS)
    settle(request, policy)
    return request, policy.dropped + _thinking(request)


def _as_chat(chat: Tree, dropped: list[str], settings: FieldSettings) -> ParsedRequest:
    parsed = parse_tree("chat", chat, settings)
    parsed.dropped = dropped
    return parsed


def _thinking(request: PromptFields) -> list[str]:
    return [
        f"messages[{index}].content[{place}]"
        for index, message in enumerate(request.messages)
        for place, block in enumerate(message.content)
        if isinstance(block, ThinkingBlock)
    ][:32]


def _prompt(request: PromptFields) -> Tree:
    messages: list[Tree] = []
    if isinstance(request.system, str):
        messages.append({"role": "system", "content": request.system})
    elif request.system is not None:
        text = "\n\n".join(block.text for block in request.system)
        messages.append({"role": "system", "content": text})
    for message in request.messages:
        if message.role == "assistant":
            messages.append(_assistant(message))
        else:
            messages += _said(message)
    chat: Tree = {"model": request.model, "messages": messages}
    last = messages[-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:
        # The answer begins with these words, and the model goes on from there.
        chat |= {"continue_final_message": True, "add_generation_prompt": False}
    return chat


def _assistant(message: TurnMessage) -> Tree:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    text = "".join(block.text for block in message.content if isinstance(block, TextBlock))
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {
                "name": block.name,
                "arguments": json.dumps(block.input, ensure_ascii=False),
            },
        }
        for block in message.content
        if isinstance(block, ToolUseBlock)
    ]
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def _said(message: TurnMessage) -> Iterable[Tree]:
    """A turn of the user as messages: each tool's result, then what the user says beside them."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    rest: list[Any] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        else:
            rest.append(block)
    if rest or not message.content:
        yield {"role": message.role, "content": _content(rest)}


def _result(block: ToolResultBlock) -> str | list[Tree]:
    content = block.content or ""
    found = content if isinstance(content, str) else _content(content)
    if not block.is_error:
        return found
    if isinstance(found, str):
        return f"Error: {found}"
    return [{"type": "text", "text": "Error: "}, *found]


def _content(blocks: Iterable[Any]) -> str | list[Tree]:
    """Blocks as a chat's parts; one text, or none, as plain text."""
    parts = [part for block in blocks for part in _parts(block)]
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _parts(block: Any) -> Iterable[Tree]:
    if isinstance(block, TextBlock):
        yield _text(block.text)
    elif isinstance(block, ImageBlock):
        source = block.source
        url = source.url
        if source.type == "base64":
            url = f"data:{source.media_type};base64,{source.data}"
        yield {"type": "image_url", "image_url": {"url": url}}
    elif isinstance(block, SearchResultBlock):
        passages = [passage.text for passage in block.content]
        yield _text("\n".join([block.title, block.source, *passages]))
    elif isinstance(block, DocumentBlock):
        heads = [head for head in (block.title, block.context) if head]
        if heads:
            yield _text("\n".join([*heads, ""]))
        document = block.source
        if document.type in ("base64", "url"):
            yield {"type": "file", "file": {"file_data": document.data, "file_url": document.url}}
            return
        content = document.data if document.type == "text" else document.content
        if isinstance(content, str):
            yield _text(content)
        else:
            for passage in content or ():
                yield from _parts(passage)


def _text(text: str) -> Tree:
    return {"type": "text", "text": text}


def _sampling(request: MessagesRequest) -> Tree:
    chat: Tree = {}
    if request.temperature is not None:
        chat["temperature"] = request.temperature
    if request.top_p is not None:
        chat["top_p"] = request.top_p
    if request.top_k:
        chat["top_k"] = request.top_k
    if request.stop_sequences:
        chat["stop"] = request.stop_sequences
    return chat


def _tools(request: PromptFields) -> Tree:
    chat: Tree = {}
    if request.tools:
        chat["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "parameters": tool.input_schema,
                    **({"description": tool.description} if tool.description else {}),
                    **({"strict": tool.strict} if tool.strict is not None else {}),
                },
            }
            for tool in request.tools
        ]
    choice = request.tool_choice
    if choice is not None:
        if choice.type == "tool":
            chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            chat["tool_choice"] = "required" if choice.type == "any" else choice.type
        if choice.disable_parallel_tool_use and request.tools:
            chat["parallel_tool_calls"] = False
    return chat


def _output(request: PromptFields) -> Tree:
    wanted = request.output_format
    if request.output_config is not None and request.output_config.format is not None:
        wanted = request.output_config.format
    if wanted is None:
        return {}
    schema = {"name": "output", "schema": wanted.schema_, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
