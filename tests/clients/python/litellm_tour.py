"""litellm, as a library."""

from __future__ import annotations

import os
from typing import Any, Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel
from tour import (
    IMAGE_URL,
    KEY,
    LONG,
    LOOK,
    MODEL,
    PDF_URL,
    QUESTION,
    V1,
    called,
    pieces,
    right,
    run,
)
from tour import scene as as_scene


class Scene(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def shown(text: str) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]


def ask(messages: list[Any], **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{MODEL}",
        api_base=V1,
        api_key=KEY,
        messages=messages,
        max_tokens=256,
        temperature=0,
        **more,
    )


def image() -> str:
    return right(ask(shown(QUESTION)).choices[0].message.content)


def stream() -> str:
    chunks = ask(shown(LONG), stream=True)
    return pieces([chunk.choices[0].delta.content or "" for chunk in chunks])


def tool() -> str:
    messages = shown(QUESTION)
    tools = [{"type": "function", "function": LOOK}]
    message = ask(messages, tools=tools, tool_choice="required").choices[0].message
    call = message.tool_calls[0]
    found = called(call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "name": "look", "content": "a red circle"}
    ask([*messages, message, result], tools=tools)
    return found


def structured() -> str:
    return as_scene(ask(shown(QUESTION), response_format=Scene).choices[0].message.content)


def pdf() -> str:
    file = {"type": "file", "file": {"file_data": PDF_URL, "format": "application/pdf"}}
    content = [{"type": "text", "text": QUESTION}, file]
    return right(ask([{"role": "user", "content": content}]).choices[0].message.content)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
