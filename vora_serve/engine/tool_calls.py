"""Tool calls that come to an end.

Where a call is forced, or a tool is ``strict``, vLLM constrains the model to the call's form with a
grammar. That grammar allows blanks between JSON's tokens without end, and a small or unsure model
takes them until its tokens are used up: the call never closes, and the answer is a piece of text.
vLLM's own ``disable_any_whitespace`` is not applied to these grammars.
"""

from __future__ import annotations

from typing import Any

BLANKS = 1
"""What models put after a colon or a comma."""


def bound_blanks() -> None:
    """Let vLLM's grammar of Hermes-style calls, which ours are, allow one blank in a row."""
    from vllm.tool_parsers import structural_tag_registry as registry

    build = registry.get_hermes_structural_tag

    def bounded(*args: Any, **kwargs: Any) -> Any:
        tag = build(*args, **kwargs)
        for item in getattr(tag.format, "tags", ()):
            item.content.max_whitespace_cnt = BLANKS
        return tag

    registry.register_vllm_structural_tag("hermes")(bounded)
