"""Tools and the choice among them in all the forms that clients send, brought into one."""

from __future__ import annotations

import re
from typing import Any

from vora_core.errors import InvalidRequestError
from vora_serve.gateway.schemas.fields import FieldPolicy

Tree = dict[str, Any]

_FUNCTION = ("name", "description", "parameters", "strict")
_WORDS = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
_FORCED_ONE = frozenset(("function", "tool", "custom"))
# They run on OpenAI's servers: a client that offers functions beside them can do without.
_HOSTED = frozenset(
    (
        *("web_search", "web_search_preview", "web_search_2025_08_26", "file_search"),
        *("web_search_preview_2025_03_11", "image_generation", "code_interpreter", "tool_search"),
    )
)


def tolerate_tools(tree: Tree, policy: FieldPolicy, *, nested: bool) -> bool:
    """Bring ``tools`` and ``tool_choice`` into form, in place.

    Args:
        tree: The request.
        policy: Remembers what is dropped.
        nested: Whether a function is the ``function`` of its tool, as in chats, or is the
            tool itself, as in responses.

    Returns:
        Whether the caller used ``functions``, the older form.

    Raises:
        InvalidRequestError: both forms are used, or the choice names no tool.
    """
    legacy = nested and _from_functions(tree)
    tools = tree.get("tools")
    if not isinstance(tools, list):
        if nested and isinstance(tree.get("tool_choice"), dict):
            _word_of(tree)
        return legacy
    tools = tree["tools"] = [_tool(tool, nested) for tool in tools]
    if not nested:
        _drop_hosted(tree, policy)
    _choose(tree, nested)
    if _is_forced(tree.get("tool_choice")):
        if any(isinstance(tool, dict) and tool.get("type") == "custom" for tool in tree["tools"]):
            raise InvalidRequestError(
                "A call cannot be forced where there are custom tools, as engines cannot hold its "
                "text to any form; use functions.",
                param="tool_choice",
            )
        tree["tools"] = [_bound(tool, nested) for tool in tree["tools"]]
    return legacy


def _from_functions(tree: Tree) -> bool:
    functions, choice = tree.pop("functions", None), tree.pop("function_call", None)
    if functions is None:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError("'function_call' needs 'functions'.", param="function_call")
        return False
    if tree.get("tools"):
        raise InvalidRequestError(
            "'functions' is the older form of 'tools'; give one of them.", param="functions"
        )
    if not isinstance(functions, list):
        raise InvalidRequestError(
            "Invalid value for 'functions': it should be a list.", param="functions"
        )
    tree["tools"] = [{"type": "function", "function": function} for function in functions]
    if isinstance(choice, dict):
        tree["tool_choice"] = {"type": "function", "function": choice}
    elif choice in ("none", "auto"):
        tree["tool_choice"] = choice
    elif choice is not None:
        raise InvalidRequestError(
            "Invalid value for 'function_call': it should be 'none', 'auto' or "
            "an object with a function's name.",
            param="function_call",
        )
    tree["parallel_tool_calls"] = False  # an answer of this form holds one call
    return True


def in_older_words(refusal: InvalidRequestError) -> InvalidRequestError:
    """A refusal that names ``functions``, for a caller who did not write ``tools``."""

    def older(text: str) -> str:
        text = re.sub(r"\btools(\[\d+\])\.function\b", r"functions\1", text)
        return text.replace("tool_choice.function", "function_call")

    param = older(refusal.param) if refusal.param is not None else None
    return InvalidRequestError(older(refusal.message), param=param, code=refusal.code)


def _tool(tool: Any, nested: bool) -> Any:
    if not isinstance(tool, dict) or tool.get("type", "function") not in (None, "function"):
        return tool
    inner = tool.get("function")
    if nested and inner is None and "name" in tool:
        rest = {name: value for name, value in tool.items() if name not in _FUNCTION}
        inner = {name: tool[name] for name in _FUNCTION if name in tool}
        return {**rest, "type": "function", "function": inner}
    if not nested and isinstance(inner, dict):
        rest = {name: value for name, value in tool.items() if name != "function"}
        tool = {**rest, **inner}
    return {**tool, "type": "function"}


def _drop_hosted(tree: Tree, policy: FieldPolicy) -> None:
    """Leave out tools that run elsewhere, where there are others to choose from."""
    tools = tree["tools"]
    kinds = [tool.get("type") if isinstance(tool, dict) else None for tool in tools]
    hosted = [isinstance(kind, str) and kind in _HOSTED for kind in kinds]
    if not any(hosted) or "function" not in kinds:
        return
    for index, drop in enumerate(hosted):
        if drop:
            policy.note(f"tools[{index}]")
    tree["tools"] = [tool for tool, drop in zip(tools, hosted, strict=True) if not drop]


def _name(tool: Any) -> Any:
    """The name in a tool, or in a reference to one, of either form."""
    if not isinstance(tool, dict):
        return None
    inner = tool.get("function", tool.get("custom"))
    return inner.get("name") if isinstance(inner, dict) else tool.get("name")


def _word_of(tree: Tree) -> None:
    """``{"type": "auto"}`` and the like as the word."""
    kind = tree["tool_choice"].get("type")
    if isinstance(kind, str) and kind in _WORDS:
        tree["tool_choice"] = _WORDS[kind]


def _choose(tree: Tree, nested: bool) -> None:
    choice = tree.get("tool_choice")
    names = [name for tool in tree["tools"] if isinstance(name := _name(tool), str)]
    if isinstance(choice, str):
        if choice in _WORDS:
            tree["tool_choice"] = _WORDS[choice]
        elif choice in names:
            tree["tool_choice"] = _one(choice, "function", nested)
        return
    if not isinstance(choice, dict):
        return
    _word_of(tree)
    kind = choice.get("type", "function" if "function" in choice else None)
    if kind == "allowed_tools":
        _allow(tree, choice)
    elif isinstance(kind, str) and kind in _FORCED_ONE:
        wanted = _name(choice)
        if isinstance(wanted, str) and wanted not in names:
            raise InvalidRequestError(
                "'tool_choice' names a tool that is not among 'tools'.", param="tool_choice"
            )
        if isinstance(wanted, str) and (kind != "custom" or not nested):
            tree["tool_choice"] = _one(wanted, "custom" if kind == "custom" else "function", nested)


def _one(name: str, kind: str, nested: bool) -> Tree:
    return {"type": kind, kind: {"name": name}} if nested else {"type": kind, "name": name}


def _allow(tree: Tree, choice: Tree) -> None:
    """A choice among some of the tools: offer these alone."""
    inner = choice.get("allowed_tools")
    allowed = inner if isinstance(inner, dict) else choice
    wanted, mode = allowed.get("tools"), allowed.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise InvalidRequestError(
            "Invalid value for 'tool_choice.mode': it should be 'auto' or 'required'.",
            param="tool_choice.mode",
        )
    if not isinstance(wanted, list) or not wanted:
        raise InvalidRequestError(
            "Invalid value for 'tool_choice.tools': it should be a list of tools.",
            param="tool_choice.tools",
        )
    names = [_name(tool) for tool in wanted]
    offered = [_name(tool) for tool in tree["tools"]]
    if any(name is None or name not in offered for name in names):
        raise InvalidRequestError(
            "'tool_choice' names a tool that is not among 'tools'.", param="tool_choice"
        )
    tree["tools"] = [
        tool for tool, name in zip(tree["tools"], offered, strict=True) if name in names
    ]
    tree["tool_choice"] = mode


def _is_forced(choice: Any) -> bool:
    return choice == "required" or isinstance(choice, dict)


def _bound(tool: Any, nested: bool) -> Any:
    """A tool whose arguments follow its schema when its call is forced.

    Engines let arguments be anything, ``null`` too, unless a tool is strict; clients leave that
    out.
    """
    holder = tool.get("function") if nested and isinstance(tool, dict) else tool
    if not isinstance(holder, dict) or tool.get("type") != "function":
        return tool
    parameters = holder.get("parameters")
    if not parameters:  # as OpenAI has it, a function without any
        parameters = {"type": "object", "properties": {}}
    elif isinstance(parameters, dict) and "type" not in parameters:
        parameters = {"type": "object", **parameters}
    holder = {**holder, "strict": True, "parameters": parameters}
    return {**tool, "function": holder} if nested else holder
