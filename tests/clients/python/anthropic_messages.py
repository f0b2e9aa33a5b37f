"""anthropic for Python."""

from __future__ import annotations

from typing import Any, Literal

import anthropic
from pydantic import BaseModel
from tour import (
    BASE,
    IMAGE_BASE64,
    KEY,
    LONG,
    LOOK,
    MODEL,
    PDF_BASE64,
    QUESTION,
    called,
    pieces,
    right,
    run,
)
from tour import scene as as_scene

client = anthropic.Anthropic(base_url=BASE, api_key=KEY)
TOOLS: Any = [
    {"name": "look", "description": LOOK["description"], "input_schema": LOOK["parameters"]}
]


class Scene(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def shown(text: str) -> Any:
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE_BASE64}
    return [
        {
            "role": "user",
            "content": [{"type": "image", "source": source}, {"type": "text", "text": text}],
        }
    ]


def image() -> str:
    answer = client.messages.create(
        model=MODEL, messages=shown(QUESTION), max_tokens=30, extra_body={"temperature": 0}
    )
    return right("".join(block.text for block in answer.content if block.type == "text"))


def stream() -> str:
    with client.messages.stream(model=MODEL, messages=shown(LONG), max_tokens=256) as events:
        texts = list(events.text_stream)
        assert events.get_final_text() == "".join(texts)
    return pieces(texts)


def tool() -> str:
    messages = shown(QUESTION)
    first = client.messages.create(
        model=MODEL, messages=messages, max_tokens=256, tools=TOOLS, tool_choice={"type": "any"}
    )
    assert first.stop_reason == "tool_use"
    call = next(block for block in first.content if block.type == "tool_use")
    found = called(call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "a red circle"}
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    client.messages.create(model=MODEL, messages=messages, max_tokens=20, tools=TOOLS)
    return found


def structured() -> str:
    answer = client.messages.parse(
        model=MODEL, messages=shown(QUESTION), max_tokens=256, output_format=Scene
    )
    return as_scene(answer.parsed_output)


def pdf() -> str:
    source = {"type": "base64", "media_type": "application/pdf", "data": PDF_BASE64}
    content: Any = [{"type": "document", "source": source}, {"type": "text", "text": QUESTION}]
    answer = client.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        extra_body={"temperature": 0},
    )
    return right("".join(block.text for block in answer.content if block.type == "text"))


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
