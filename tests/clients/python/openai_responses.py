"""openai for Python: responses."""

from __future__ import annotations

from typing import Any, Literal

import openai
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel
from tour import IMAGE_URL, KEY, LONG, LOOK, MODEL, PDF, QUESTION, V1, called, pieces, right, run
from tour import scene as as_scene

client = openai.OpenAI(base_url=V1, api_key=KEY)


class Scene(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def shown(text: str) -> Any:
    image = {"type": "input_image", "image_url": IMAGE_URL, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": text}, image]}]


def image() -> str:
    return right(
        client.responses.create(model=MODEL, input=shown(QUESTION), temperature=0).output_text
    )


def stream() -> str:
    with client.responses.stream(model=MODEL, input=shown(LONG)) as events:
        texts = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert events.get_final_response().output_text == "".join(texts)
    return pieces(texts)


def tool() -> str:
    history = shown(QUESTION)
    tools: Any = [{"type": "function", **LOOK, "strict": True}]
    first = client.responses.create(model=MODEL, input=history, tools=tools, tool_choice="required")
    call = next(item for item in first.output if isinstance(item, ResponseFunctionToolCall))
    found = called(call.name, call.arguments)
    history += first.output
    history += [{"type": "function_call_output", "call_id": call.call_id, "output": "a red circle"}]
    second = client.responses.create(model=MODEL, input=history, tools=tools)
    assert second.status in ("completed", "incomplete")
    return found


def structured() -> str:
    answer = client.responses.parse(model=MODEL, input=shown(QUESTION), text_format=Scene)
    return as_scene(answer.output_parsed)


def pdf() -> str:
    file = client.files.create(file=PDF, purpose="user_data")
    part = {"type": "input_file", "file_id": file.id}
    content = [{"type": "input_text", "text": QUESTION}, part]
    answer = client.responses.create(
        model=MODEL, input=[{"role": "user", "content": content}], temperature=0
    )
    client.files.delete(file.id)
    return right(answer.output_text)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
