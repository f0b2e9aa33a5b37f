"""Functions in namespaces, as Codex offers them, for engines that know functions alone.

A function goes to the engine as ``NAMESPACE__FUNCTION``; calls in the answer get their namespace
back, and calls of earlier turns are written as the engine wrote them.
"""

from __future__ import annotations

from typing import Any

Tree = dict[str, Any]

#: Namespace and function by the name that the engine sees.
Names = dict[str, tuple[str, str]]


def flatten(tree: Tree) -> Names:
    """Bring tools, the choice among them and earlier calls of a response's request into one level.

    In place. What is no namespace of functions stays for the schema to refuse.
    """
    names: Names = {}
    tools = tree.get("tools")
    if isinstance(tools, list) and any(_is_namespace(tool) for tool in tools):
        tree["tools"] = [part for tool in tools for part in _parts(tool, names)]
    items = tree.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("type") == "function_call":
            _flatten_reference(item)
    if names and isinstance(tree.get("tool_choice"), dict):
        _flatten_reference(tree["tool_choice"])
    return names


def restore(tree: Tree, names: Names) -> None:
    """Give calls in a response, or in an event of one, their namespace back, in place."""
    response = tree.get("response", tree)
    output = response.get("output") if isinstance(response, dict) else None
    # An event about a call's arguments has the function's name itself.
    for holder in (*(output or ()), tree.get("item"), tree):
        if isinstance(holder, dict) and (found := names.get(str(holder.get("name")))) is not None:
            holder["namespace"], holder["name"] = found


def _is_namespace(tool: Any) -> bool:
    return (
        isinstance(tool, dict)
        and tool.get("type") == "namespace"
        and isinstance(tool.get("name"), str)
        and isinstance(tool.get("tools"), list)
        and all(
            isinstance(part, dict)
            and part.get("type") == "function"
            and isinstance(part.get("name"), str)
            for part in tool["tools"]
        )
    )


def _parts(tool: Any, names: Names) -> list[Any]:
    if not _is_namespace(tool):
        return [tool]
    parts = []
    for part in tool["tools"]:
        flat = _flat(tool["name"], part["name"])
        names[flat] = (tool["name"], part["name"])
        parts.append({**part, "name": flat})
    return parts


def _flatten_reference(holder: Tree) -> None:
    space, name = holder.get("namespace"), holder.get("name")
    if isinstance(space, str) and space and isinstance(name, str):
        del holder["namespace"]
        holder["name"] = _flat(space, name)


def _flat(namespace: str, name: str) -> str:
    return f"{namespace}__{name}"
