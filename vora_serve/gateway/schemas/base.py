"""What the request schemas share: strictness, bounds, sampling parameters, readable errors."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from vora_core.errors import InvalidRequestError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
ShortText = Annotated[str, Field(max_length=1024)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
JSONObject = dict[str, Any]


class Schema(BaseModel):
    """Part of a request. Unknown fields are kept apart for the field policy to settle."""

    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)


class StreamOptions(Schema):
    """How a stream reports usage."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JSONSchemaFormat(Schema):
    """A named JSON schema that the answer must follow."""

    name: Name
    description: str | None = None
    schema_: JSONObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Schema):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None

    @model_validator(mode="after")
    def _needs_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing_schema", "'json_schema' is missing")
        return self


class StructuredOutputs(Schema):
    """vLLM's structured outputs: exactly one constraint."""

    json_: JSONObject | str | None = Field(default=None, alias="json")
    regex: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    choice: Annotated[list[Name], Field(min_length=1, max_length=1000)] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=32768)] | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object]
        if sum(value is not None for value in given) != 1:
            raise PydanticCustomError(
                "one_constraint",
                "exactly one of json, regex, choice, grammar, json_object is needed",
            )
        return self


class PixelBounds(Schema):
    """How large an image may be when the model sees it, in pixels; for native resolution."""

    min_pixels: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_pixels: Annotated[int, Field(ge=1, le=2**31)] | None = None


class SamplingFields(Schema):
    """Sampling parameters that chat, completions and responses have in common."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
                Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
            ],
            Field(max_length=1024),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1024)]
        | list[Annotated[str, Field(min_length=1, max_length=1024)]]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    user: ShortText | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    structured_outputs: StructuredOutputs | None = None


class CompletionSampling(SamplingFields):
    """Sampling parameters of chat and completions alone."""

    n: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    length_penalty: Finite | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=10_000)] | None = (
        None
    )
    logprob_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    bad_words: Annotated[list[Name], Field(max_length=128)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None


# Names by which pydantic distinguishes a union's members; they are not part of the request.
_TAGS = frozenset(
    (
        *("system", "developer", "user", "assistant", "tool", "message"),
        *("text", "refusal", "image_url", "input_text", "input_image", "output_text"),
        *("file", "input_file"),
        *("function_call", "function_call_output"),
        *("custom_tool_call", "custom_tool_call_output"),
        *("image", "document", "search_result", "tool_use", "tool_result"),
        *("thinking", "redacted_thinking"),
    )
)
_MEMBERS = frozenset(("str", "int", "float", "bool", "none", "NamedToolChoice"))


def _param(location: tuple[int | str, ...]) -> str | None:
    parts: list[str] = []
    after_index = False
    for part in location:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif not (
            (after_index and part in _TAGS)
            or part in _MEMBERS
            or any(char in part for char in "[](), ")
            or part.startswith(("function-", "tagged-", "constrained-", "literal"))
        ):
            parts.append(f".{part}" if parts else part)
        after_index = isinstance(part, int)
    shown = "".join(char if char.isprintable() else "?" for char in "".join(parts)[:200])
    return shown or None


_SHOULD_BE = "Input should be "
# Python's words for what JSON has others for, and what pydantic says beside the point.
_WORDS = (
    (
        re.compile(r"a valid dictionary( or instance of \w+| or object to extract fields from)?"),
        "an object",
    ),
    (re.compile(r"\ba valid (integer)\b"), r"an \1"),
    (re.compile(r"\ba valid (string|list|number|boolean)\b"), r"a \1"),
    (re.compile(r" after validation, not \d+"), ""),
    (re.compile(r"\b(True|False)\b"), lambda match: match[0].lower()),
    (re.compile(r"\bNone\b"), "null"),
)


def explain(error: ValidationError) -> InvalidRequestError:
    """One sentence and the field at fault, without echoing what was sent."""
    problems = error.errors(include_url=False, include_input=False)
    # A union reports each of its members; the deepest location is the member that was meant.
    first = max(problems, key=lambda item: len(item["loc"]))
    param = _param(first["loc"])
    if first["type"].startswith("union_tag"):
        tag = first["ctx"]["discriminator"].strip("'")
        param = _param((*first["loc"], tag if tag.isidentifier() else "type"))
    if first["type"] in ("missing", "union_tag_not_found"):
        return InvalidRequestError(
            f"The field '{param}' is required.", param=param, code="missing_required_parameter"
        )
    if first["type"] == "union_tag_invalid":
        message = "it should be one of " + first["ctx"]["expected_tags"].replace("tagged-", "")
    else:
        message = _sentence([item["msg"] for item in problems if _param(item["loc"]) == param])
    where = f"Invalid value for '{param}'" if param else "The request is invalid"
    return InvalidRequestError(f"{where}: {message}.", param=param, code="invalid_value")


def _sentence(messages: list[str]) -> str:
    """What is wrong with one value: all that it may be, where it is none of them."""
    options = [m.removeprefix(_SHOULD_BE) for m in messages if m.startswith(_SHOULD_BE)]
    if options and len(options) == len(messages):
        message = "it should be " + " or ".join(dict.fromkeys(options))
    else:
        # Of the right type for one member of a union, and wrong in another way.
        message = next(m for m in messages if not m.startswith(_SHOULD_BE))
        message = message.removeprefix("Value error, ").rstrip(".")
        message = f"{message[:1].lower()}{message[1:]}"
    for words, ours in _WORDS:
        message = words.sub(ours, message)
    return message
