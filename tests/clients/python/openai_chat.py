"""openai for Python: chat completions."""

from __future__ import annotations

from typing import Any, Literal

import openai
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

client = openai.OpenAI(base_url=V1, api_key=KEY)


class Scene(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def shown(text: str) -> Any:
    image = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]


def image() -> str:
    answer = client.chat.completions.create(model=MODEL, messages=shown(QUESTION), temperature=0)
    return right(answer.choices[0].message.content)


def stream() -> str:
    with client.chat.completions.stream(model=MODEL, messages=shown(LONG)) as events:
        texts = [event.delta for event in events if event.type == "content.delta"]
        assert events.get_final_completion().choices[0].message.content == "".join(texts)
    return pieces(texts)


def tool() -> str:
    messages = shown(QUESTION)
    tools: Any = [{"type": "function", "function": LOOK}]
    first = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice="required"
    )
    message = first.choices[0].message
    assert message.tool_calls
    call: Any = message.tool_calls[0]
    found = called(call.function.name, call.function.arguments)
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "a red circle"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
    assert second.choices[0].finish_reason in ("stop", "length", "tool_calls")
    return found


def structured() -> str:
    answer = client.chat.completions.parse(
        model=MODEL, messages=shown(QUESTION), response_format=Scene
    )
    return as_scene(answer.choices[0].message.parsed)


def pdf() -> str:
    file = {"type": "file", "file": {"filename": "circle.pdf", "file_data": PDF_URL}}
    content: Any = [{"type": "text", "text": QUESTION}, file]
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], temperature=0
    )
    return right(answer.choices[0].message.content)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
