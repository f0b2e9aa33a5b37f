"""``POST /v1/responses``, without what needs stored state."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

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


OutputPart = Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]


class FunctionCallOutput(Schema):
    """What the function answered: text, or parts with images."""

    type: Literal["function_call_output"]
    call_id: ShortText
    output: str | Annotated[list[OutputPart], Field(min_length=1)]
    id: ShortText | None = None


class CustomToolCallItem(Schema):
    """A call of a custom tool that the model made."""

    type: Literal["custom_tool_call"]
    call_id: ShortText
    name: Name
    input: str
    id: ShortText | None = None


class CustomToolCallOutput(Schema):
    """What the custom tool answered."""

    type: Literal["custom_tool_call_output"]
    call_id: ShortText
    output: str | Annotated[list[OutputPart], Field(min_length=1)]
    id: ShortText | None = None


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("type") or "message")
    return getattr(value, "type", None) or "message"


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[CustomToolCallItem, Tag("custom_tool_call")]
    | Annotated[CustomToolCallOutput, Tag("custom_tool_call_output")],
    Discriminator(_kind),
]


class FunctionTool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: JSONObject | None = None
    strict: bool | None = None


class CustomFormat(Schema):
    """What a custom tool takes; free text is the only kind."""

    type: Literal["text"]


class CustomTool(Schema):
    """A tool that takes text instead of arguments."""

    type: Literal["custom"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    format: CustomFormat | None = None


def _tool_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"tagged-{kind}"  # these tags are not field names


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("tagged-function")] | Annotated[CustomTool, Tag("tagged-custom")],
    Discriminator(_tool_kind),
]


class NamedToolChoice(Schema):
    """Demand for one tool's call."""

    type: Literal["function", "custom"]
    name: Name


class TextFormat(Schema):
    """How the answer's text is formed; a JSON schema is required where it has to be followed."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: JSONObject | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _needs_schema(self) -> Self:
        if self.type == "json_schema" and self.schema_ is None:
            raise PydanticCustomError("missing_schema", "'schema' is missing")
        return self


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
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    mm_processor_kwargs: PixelBounds | None = None
    background: Literal[False] | None = None
