"""What LangChain's chat models have in common, whoever they speak to."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool as as_tool
from pydantic import BaseModel
from tour import IMAGE_BASE64, LONG, PDF_BASE64, QUESTION, called, pieces, right, run
from tour import scene as as_scene


class Scene(BaseModel):
    """What the image shows."""

    color: Literal["red", "green", "blue"]
    count: int


@as_tool
def look(close: bool) -> str:
    """Look at the image again."""
    return f"a red circle, {close}"


def shown(text: str) -> list[Any]:
    image = {
        "type": "image",
        "source_type": "base64",
        "data": IMAGE_BASE64,
        "mime_type": "image/png",
    }
    return [HumanMessage(content=[{"type": "text", "text": text}, image])]


def take(model: Any, method: str) -> None:
    """The tour of a chat model."""

    def image() -> str:
        return right(model.invoke(shown(QUESTION)).text)

    def stream() -> str:
        return pieces([str(chunk.text) for chunk in model.stream(shown(LONG))])

    def tool() -> str:
        bound = model.bind_tools([look], tool_choice="any")
        messages = shown(QUESTION)
        first = bound.invoke(messages)
        call = first.tool_calls[0]
        found = called(call["name"], call["args"])
        result = ToolMessage(content=look.invoke(call["args"]), tool_call_id=call["id"])
        model.bind_tools([look]).invoke([*messages, first, result])
        return found

    def structured() -> str:
        return as_scene(model.with_structured_output(Scene, method=method).invoke(shown(QUESTION)))

    def pdf() -> str:
        file = {
            "type": "file",
            "base64": PDF_BASE64,
            "mime_type": "application/pdf",
            "filename": "circle.pdf",
        }
        asked = HumanMessage(content=[{"type": "text", "text": QUESTION}, file])
        return right(model.invoke([asked]).text)

    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
