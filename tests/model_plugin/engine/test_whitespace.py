"""The grammars of JSON schemas and forced tool calls, as vLLM builds and xgrammar reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from model_plugin.engine.whitespace import bound_in_calls, bound_in_json

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),
]

TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"close": {"type": "boolean"}, "where": {"type": "string"}},
            "required": ["close", "where"],
        },
        "strict": True,
    },
}
FORCED = {"type": "function", "function": {"name": "look"}}


@pytest.fixture
def registry() -> Iterator[Any]:
    from vllm.tool_parsers import structural_tag_registry

    before = dict(structural_tag_registry._VLLM_STRUCTURAL_TAG_REGISTRY)
    yield structural_tag_registry
    structural_tag_registry._VLLM_STRUCTURAL_TAG_REGISTRY.update(before)


def accepts(registry: Any, choice: Any) -> Callable[[str], bool]:
    """What the grammar for a tool choice lets a model say."""
    import xgrammar
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from xgrammar.testing import _is_grammar_accept_string

    messages = [{"role": "user", "content": "x"}]
    request = ChatCompletionRequest(messages=messages, tools=[TOOL], tool_choice=choice)
    tag = registry.get_model_structural_tag(
        "hermes", request.tools, request.tool_choice, reasoning=False
    )
    grammar = xgrammar.Grammar.from_structural_tag(json.dumps(tag.model_dump()))
    return lambda text: bool(_is_grammar_accept_string(grammar, text))


def call(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "look", "arguments": {arguments}}}\n</tool_call>'


COMPACT = call('{"close":true,"where":"a  b"}')
USUAL = call('{"close": true, "where": "a  b"}')
BLANKS = call('{"close":' + " \n\t" * 20 + 'true, "where": "x"}')


@pytest.mark.parametrize("choice", [FORCED, "required", "auto"])
def test_whitespace_are_bounded(registry: Any, choice: Any) -> None:
    assert accepts(registry, choice)(BLANKS), "the control: as vLLM has it"
    bound_in_calls()
    say = accepts(registry, choice)
    assert say(COMPACT)
    assert say(USUAL), "and what stands inside a string is the caller's"
    assert not say(BLANKS)
    assert not say(call('{"close": 1, "where": "x"}'))


def test_auto_still_allows_plain_text(registry: Any) -> None:
    bound_in_calls()
    assert accepts(registry, "auto")("no call  \n\n  at all")
    assert not accepts(registry, "required")("no call at all")


def test_whitespace_in_json_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import xgrammar
    from xgrammar.testing import _is_grammar_accept_string

    names = [bytes([value]).decode("latin-1") for value in range(256)]
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(names))
    schema = json.dumps(TOOL["function"]["parameters"])  # type: ignore[index]

    def accepts(text: str, **kwargs: Any) -> bool:
        compiled = compiler.compile_json_schema(schema, **kwargs)
        return bool(_is_grammar_accept_string(compiled.grammar, text))

    original: Any = xgrammar.GrammarCompiler.compile_json_schema
    original = getattr(original, "__wrapped__", original)  # an engine in this process bounds it
    monkeypatch.setattr(xgrammar.GrammarCompiler, "compile_json_schema", original)
    spaces = '{"close":' + " " * 20 + 'true, "where": "x"}'
    assert accepts(spaces), "the control: as vLLM has it"
    bound_in_json()
    assert not accepts(spaces)
    assert accepts('{"close": true, "where": "a  b"}')
    assert accepts('{"close":true,"where":"x"}', any_whitespace=False, separators=(",", ":"))
    bound_in_json()  # once is enough
    assert accepts('{"close": true, "where": "a  b"}')
