"""JSON and tool calls that come to an end.

Where an answer must fit a JSON schema, a call is forced, or a tool is ``strict``, vLLM constrains
the model with a grammar. That grammar allows unlimited whitespace between JSON's tokens, and a
small or unsure model generates it until its token limit: the answer never closes. vLLM's own
``disable_any_whitespace`` does not apply to calls, ties the engine to one backend, and removes the
space that larger models are used to.
"""

from __future__ import annotations

from functools import wraps
from importlib.util import find_spec
from typing import Any

SPACES = 1
"""What models put after a colon or a comma."""


def bound_in_calls() -> None:
    """Let vLLM's grammar of Hermes-style calls, which ours are, allow one space in a row.

    For the process that answers HTTP, where requests become grammars.
    """
    from vllm.tool_parsers import structural_tag_registry as registry

    build = registry.get_hermes_structural_tag

    def bounded(*args: Any, **kwargs: Any) -> Any:
        tag = build(*args, **kwargs)
        for item in getattr(tag.format, "tags", ()):
            item.content.max_whitespace_cnt = SPACES
        return tag

    registry.register_vllm_structural_tag("hermes")(bounded)


def bound_in_json() -> None:
    """Let xgrammar's grammar of a JSON schema allow one space in a row.

    For the process that compiles grammars.
    """
    if find_spec("xgrammar") is None:  # not on every platform; vLLM then has other backends
        return
    from xgrammar import GrammarCompiler

    compile_schema: Any = GrammarCompiler.compile_json_schema
    if getattr(compile_schema, "bounded", False):
        return

    @wraps(compile_schema)
    def bounded(self: Any, schema: Any, **kwargs: Any) -> Any:
        if kwargs.get("any_whitespace", True):
            kwargs.setdefault("max_whitespace_cnt", SPACES)
        return compile_schema(self, schema, **kwargs)

    bounded.bounded = True  # type: ignore[attr-defined]
    GrammarCompiler.compile_json_schema = bounded  # type: ignore[method-assign]
