"""``POST /v1/responses``, without what needs stored state."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from vora_serve.gateway.schemas.base import (
    JSONObject,
    Name,
    PixelBounds,
    SamplingFields,
    Schema,
    ShortText,
)
from vora_serve.gateway.schemas.chat import RefusalPart
from vora_serve.gateway.schemas.files import InputFile


class InputText(Schema):
    """Text. Whatever it spells, it stays text."""

    type: Literal["input_text"]
    text: str


class InputImage(PixelBounds):
    """An image by its URL."""

    type: Literal["input_image"]
    image_url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high", "original"] | None = None


class OutputText(Schema):
    """Text that the model gave earlier."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


InputPart = Annotated[
    InputText | InputImage | InputFile | OutputText | RefusalPart, Field(discriminator="type")
]
InputContent = str | Annotated[list[InputPart], Field(min_length=1)]


class InputMessage(Schema):
    """A message, of the user or of an earlier turn."""

    type: Literal["message"] | None = None
    role: Literal["user", "system", "developer", "assistant"]
    content: InputContent
    id: ShortText | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCallItem(Schema):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: ShortText
    name: Name
    arguments: str
    id: ShortText | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class FunctionCallOutput(Schema):
    """What the function answered."""

    type: Literal["function_call_output"]
    call_id: ShortText
    output: str
    id: ShortText | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type") or "message")
    return getattr(value, "type", None) or "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: JSONObject | None = None
    strict: bool | None = None


class NamedFunctionChoice(Schema):
    """Demand for one function's call."""

    type: Literal["function"]
    name: Name


class TextFormat(Schema):
    """How the answer's text is formed."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: JSONObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Schema):
    """The answer's text."""

    format: TextFormat | None = None


class ResponsesRequest(SamplingFields):
    """An input to be answered, statelessly."""

    model: Name
    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    stream: bool | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    mm_processor_kwargs: PixelBounds | None = None
    background: Literal[False] | None = None
