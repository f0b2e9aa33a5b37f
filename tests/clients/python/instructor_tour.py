"""instructor: its tool mode, which is its default, and its JSON schema mode."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel
from tour import IMAGE, KEY, MODEL, QUESTION, V1, pieces, run
from tour import scene as as_scene

client: Any = instructor.from_openai(openai.OpenAI(base_url=V1, api_key=KEY))
by_schema: Any = instructor.from_openai(
    openai.OpenAI(base_url=V1, api_key=KEY), mode=instructor.Mode.JSON_SCHEMA
)


class Scene(BaseModel):
    """What the image shows."""

    color: Literal["red", "green", "blue"]
    count: int


def asked() -> dict[str, Any]:
    content = [QUESTION, instructor.Image.from_path(IMAGE)]
    return {
        "model": MODEL,
        "max_tokens": 256,
        "temperature": 0,
        "messages": [{"role": "user", "content": content}],
    }


def image() -> str:
    return as_scene(client.chat.completions.create(response_model=Scene, **asked()))


def stream() -> str:
    parts = list(client.chat.completions.create_partial(response_model=Scene, **asked()))
    as_scene(parts[-1])
    return pieces([repr(part) for part in parts])


def tool() -> str:
    found, raw = client.chat.completions.create_with_completion(response_model=Scene, **asked())
    assert raw.choices[0].message.tool_calls
    return as_scene(found)


def structured() -> str:
    return as_scene(by_schema.chat.completions.create(response_model=Scene, **asked()))


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured)
