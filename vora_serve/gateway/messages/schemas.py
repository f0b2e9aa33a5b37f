"""``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from vora_serve.gateway.schemas.base import JSONObject, Name, Schema, ShortText

Text = Annotated[str, Field(min_length=1)]


class TextBlock(Schema):
    """Text. Whatever it spells, it stays text."""

    type: Literal["text"]
    text: str


class ImageSource(Schema):
    """An image's bytes in base64, or its URL."""

    type: Literal["base64", "url"]
    media_type: Annotated[str, Field(pattern=r"^image/[A-Za-z0-9.+-]{1,64}$")] | None = None
    data: Text | None = None
    url: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = ("media_type", "data") if self.type == "base64" else ("url",)
        for name in needed:
            if getattr(self, name) is None:
                raise PydanticCustomError("incomplete_source", f"'{name}' is missing")
        return self


class ImageBlock(Schema):
    """An image."""

    type: Literal["image"]
    source: ImageSource


class SearchResultBlock(Schema):
    """A passage that a search found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


Passage = Annotated[TextBlock | ImageBlock | SearchResultBlock, Field(discriminator="type")]


class DocumentSource(Schema):
    """A document's text, or its blocks, or a PDF's bytes in base64 or its URL."""

    type: Literal["text", "content", "base64", "url"]
    media_type: Literal["text/plain", "application/pdf"] | None = None
    data: str | None = None
    content: str | list[Passage] | None = None
    url: Text | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        name = {"content": "content", "url": "url"}.get(self.type, "data")
        if getattr(self, name) is None:
            raise PydanticCustomError("incomplete_source", f"'{name}' is missing")
        return self


class DocumentBlock(Schema):
    """A document: text, or a PDF."""

    type: Literal["document"]
    source: DocumentSource
    title: str | None = None
    context: str | None = None


ResultBlock = Annotated[
    TextBlock | ImageBlock | SearchResultBlock | DocumentBlock, Field(discriminator="type")
]


class ToolUseBlock(Schema):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: ShortText
    name: Name
    input: JSONObject


class ToolResultBlock(Schema):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: ShortText
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(Schema):
    """Reasoning of an earlier turn; not shown to the model."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


Block = Annotated[
    TextBlock
    | ImageBlock
    | SearchResultBlock
    | DocumentBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock,
    Field(discriminator="type"),
]

_ONLY_IN: dict[str, str] = {
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_result": "user",
    "image": "user",
    "document": "user",
    "search_result": "user",
}


class TurnMessage(Schema):
    """One turn; ``system`` in between is an instruction for what follows."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @model_validator(mode="after")
    def _blocks_of_the_role(self) -> Self:
        for block in self.content if isinstance(self.content, list) else ():
            role = _ONLY_IN.get(block.type)
            if role is not None and role != self.role:
                raise PydanticCustomError(
                    "misplaced_block", f"a {block.type} block belongs in a message of the {role}"
                )
        return self


class ClientTool(Schema):
    """A tool that the caller runs; tools that run on Anthropic's servers are not supported."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: JSONObject
    strict: bool | None = None


class ToolChoice(Schema):
    """Whether and which tool is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise PydanticCustomError("missing_name", "'name' is missing")
        return self


class OutputFormat(Schema):
    """The JSON schema that the answer must follow."""

    type: Literal["json_schema"]
    schema_: JSONObject = Field(alias="schema")


class OutputConfig(Schema):
    """How the answer is formed."""

    format: OutputFormat | None = None


def _blocks_or_text(value: Any) -> Any:
    return None if value == [] else value


class PromptFields(Schema):
    """What makes the prompt."""

    model: Name
    messages: Annotated[list[TurnMessage], Field(min_length=1)]
    system: Annotated[str | list[TextBlock] | None, BeforeValidator(_blocks_or_text)] = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class CountTokensRequest(PromptFields):
    """A prompt whose tokens are to be counted."""


class MessagesRequest(PromptFields):
    """A conversation, with images, to be continued by the model."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
