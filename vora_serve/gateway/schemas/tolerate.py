"""What real clients send, brought into the schemas' form before it is validated.

OpenAI's own servers answer these requests; so do most that speak their API. A value that says
nothing is left out, an odd way of saying something is put in the usual one, and what cannot change
the answer is dropped and named in ``x-vora-dropped-fields``. Everything that would change the
answer is left where it is, for the schema to check or to refuse by its name.

All of this works on the parsed JSON in place, and on values of any type: what has the wrong type is
left for the schema to refuse.
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

from vora_serve.gateway.schemas.fields import FieldPolicy
from vora_serve.gateway.schemas.tolerate_items import tolerate_input
from vora_serve.gateway.schemas.tolerate_messages import tolerate_messages
from vora_serve.gateway.schemas.tolerate_tools import tolerate_tools

Tree = dict[str, Any]

# Said with nothing inside, these say as much as if they were absent.
_EMPTY_IS_ABSENT = (
    *("function_call", "functions", "include", "logit_bias", "modalities", "response_format"),
    *("stop", "stop_token_ids", "stream_options", "structured_outputs", "suffix", "text"),
    *("bad_words", "cache_salt", "tool_choice", "tools", "user"),
)
_WHOLE_NUMBERS = (
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n", "best_of"),
    *("top_k", "top_logprobs", "seed"),
)
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Below this, vLLM takes the likeliest token and no longer samples.
_GREEDY_BELOW = 1e-5


def tolerate(
    kind: Literal["chat", "completion", "response"], tree: Tree, policy: FieldPolicy
) -> bool:
    """Bring a request into the schema's form, in place.

    Args:
        kind: Which API.
        tree: The request.
        policy: Remembers what is dropped.

    Returns:
        Whether the caller knows only the ``function_call`` that came before ``tool_calls``, so that
        the answer has to have it.

    Raises:
        InvalidRequestError: two fields contradict each other.
    """
    for name in _EMPTY_IS_ABSENT:
        if name in tree and tree[name] in ("", [], {}):
            del tree[name]
    _tolerate_numbers(tree)
    _tolerate_sampling(tree)
    _tolerate_user(tree, policy)
    legacy = False
    if kind == "response":
        _tolerate_response(tree, policy)
        tolerate_input(tree, policy)
        tolerate_tools(tree, policy, nested=False)
    else:
        _tolerate_stream_options(tree, policy)
        _tolerate_format(tree)
        if kind == "chat":
            tolerate_messages(tree, policy)
            legacy = tolerate_tools(tree, policy, nested=True)
    return legacy


def _tolerate_numbers(tree: Tree) -> None:
    """Whole numbers of languages that know only one kind; -1 for no limit."""
    for name in _WHOLE_NUMBERS:
        value = tree.get(name)
        if isinstance(value, float) and value.is_integer():
            tree[name] = int(value)
    for name in _LIMITS:
        if tree.get(name) == -1:
            del tree[name]


def _tolerate_sampling(tree: Tree) -> None:
    """Ways to ask for the likeliest tokens that vLLM refuses and OpenAI does not."""
    if is_number(tree.get("top_p")) and tree["top_p"] == 0:
        del tree["top_p"]
        tree["temperature"] = 0
    choices, temperature = tree.get("n"), tree.get("temperature")
    if (
        isinstance(choices, int)
        and choices > 1
        and is_number(temperature)
        and 0 <= temperature < _GREEDY_BELOW
    ):
        tree |= {"temperature": 1, "top_k": 1}  # the same tokens, in a way that gives several
        tree.pop("top_p", None)
        tree.pop("min_p", None)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number in JSON."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tolerate_user(tree: Tree, policy: FieldPolicy) -> None:
    user = tree.get("user")
    if user is not None and (not isinstance(user, str) or len(user) > 1024):
        del tree["user"]
        policy.note("user")


def _tolerate_stream_options(tree: Tree, policy: FieldPolicy) -> None:
    if isinstance(tree.get("stream_options"), dict) and not tree.get("stream"):
        del tree["stream_options"]
        policy.note("stream_options")


def _tolerate_format(tree: Tree) -> None:
    """A JSON schema where others than OpenAI put it, or without its name."""
    wanted = tree.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") not in ("json_object", "json_schema"):
        return
    schema = wanted.get("schema")
    if isinstance(schema, dict) and not wanted.get("json_schema"):
        tree["response_format"] = wanted = {
            "type": "json_schema",
            "json_schema": {"name": "response", "schema": schema},
        }
    _name_format(wanted.get("json_schema"))


def _name_format(wanted: Any) -> None:
    if isinstance(wanted, dict) and not wanted.get("name"):
        wanted["name"] = "response"


# What the answer could have with it; none of it can be there, as no model or tool here makes it.
_INCLUDED = "message.output_text.logprobs"


def _tolerate_response(tree: Tree, policy: FieldPolicy) -> None:
    include = tree.get("include")
    if isinstance(include, list):
        for index, wanted in enumerate(include):
            if isinstance(wanted, str) and wanted != _INCLUDED:
                policy.note(f"include[{index}]")
        tree["include"] = [x for x in include if not isinstance(x, str) or x == _INCLUDED]
        if not tree["include"]:
            del tree["include"]
    if tree.get("truncation") == "auto":  # an input that is too long is refused, not shortened
        del tree["truncation"]
        policy.note("truncation")
    text = tree.get("text")
    if isinstance(text, dict) and isinstance(text.get("format"), dict):
        wanted = text["format"]
        if wanted.get("type") == "json_schema":
            if isinstance(wanted.get("json_schema"), dict):  # as chats have it
                text["format"] = wanted = {"type": "json_schema", **wanted["json_schema"]}
            _name_format(wanted)
