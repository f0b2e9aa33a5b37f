"""llama-index: OpenAILike."""

from __future__ import annotations

import base64
from typing import Literal

from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from tour import IMAGE_BASE64, KEY, LONG, MODEL, PDF, QUESTION, V1, called, pieces, right, run
from tour import scene as as_scene

model = OpenAILike(
    api_base=V1,
    api_key=KEY,
    model=MODEL,
    temperature=0,
    max_tokens=256,
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
)


class Scene(BaseModel):
    """What the image shows."""

    color: Literal["red", "green", "blue"]
    count: int


def look(close: bool) -> str:
    """Look at the image again."""
    return f"a red circle, {close}"


def shown(text: str) -> list[ChatMessage]:
    image = ImageBlock(image=base64.b64decode(IMAGE_BASE64), image_mimetype="image/png")
    return [ChatMessage(role="user", blocks=[TextBlock(text=text), image])]


def image() -> str:
    return right(model.chat(shown(QUESTION)).message.content)


def stream() -> str:
    return pieces([str(chunk.delta or "") for chunk in model.stream_chat(shown(LONG))])


def tool() -> str:
    tools = [FunctionTool.from_defaults(look)]
    history = shown(QUESTION)
    first = model.chat_with_tools(tools, chat_history=history, tool_required=True)
    call = model.get_tool_calls_from_response(first)[0]
    found = called(call.tool_name, call.tool_kwargs)
    result = ChatMessage(
        role="tool", content="a red circle", additional_kwargs={"tool_call_id": call.tool_id}
    )
    model.chat_with_tools(tools, chat_history=[*history, first.message, result])
    return found


def structured() -> str:
    return as_scene(model.as_structured_llm(Scene).chat(shown(QUESTION)).raw)


def pdf() -> str:
    file = DocumentBlock(path=PDF, document_mimetype="application/pdf")
    asked = ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), file])
    return right(model.chat([asked]).message.content)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
