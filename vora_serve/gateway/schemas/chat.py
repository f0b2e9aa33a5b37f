"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vora_serve.gateway.schemas.base import (
    CompletionSampling,
    JSONObject,
    Name,
    PixelBounds,
    Schema,
    ShortText,
)
from vora_serve.gateway.schemas.files import FilePart


class TextPart(Schema):
    """Text. Whatever it spells, it stays text."""

    type: Literal["text"]
    text: str


class RefusalPart(Schema):
    """A refusal that the assistant gave earlier."""

    type: Literal["refusal"]
    refusal: str


class ImageURLValue(PixelBounds):
    """Where an image is: an https, http or data URL."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high", "original"] | None = None


def _url_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(PixelBounds):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURLValue, BeforeValidator(_url_object)]


ContentPart = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Content = str | Annotated[list[ContentPart], Field(min_length=1)]


class FunctionCall(Schema):
    """A function's name and its arguments as JSON text."""

    name: Name
    arguments: str


class ToolCall(Schema):
    """A call that the assistant made."""

    id: ShortText
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(Schema):
    """Instructions."""

    role: Literal["system", "developer"]
    content: Content
    name: ShortText | None = None


class UserMessage(Schema):
    """What the user says and shows."""

    role: Literal["user"]
    content: Content
    name: ShortText | None = None


class AssistantMessage(Schema):
    """What the model said earlier."""

    role: Literal["assistant"]
    content: str | list[AssistantPart] | None = None
    refusal: str | None = None
    name: ShortText | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Schema):
    """What a tool answered."""

    role: Literal["tool"]
    content: Content
    tool_call_id: ShortText


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionDefinition(Schema):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: JSONObject | None = None
    strict: bool | None = None


class Tool(Schema):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Schema):
    """The name of a function."""

    name: Name


class NamedToolChoice(Schema):
    """Demand for one function's call."""

    type: Literal["function"]
    function: NamedFunction


class ChatCompletionRequest(CompletionSampling):
    """A chat, with images, to be continued by the model."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    echo: bool | None = None
    mm_processor_kwargs: PixelBounds | None = None
    """For all images that have no bounds of their own; nothing else may be set here."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
