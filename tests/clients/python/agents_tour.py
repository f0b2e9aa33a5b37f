"""openai-agents, over the Responses API, which is its default."""

from __future__ import annotations

from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from tour import IMAGE_URL, KEY, LONG, MODEL, PDF_URL, QUESTION, V1, called, pieces, right, run
from tour import scene as as_scene

set_tracing_disabled(True)


class Scene(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def agent(**more: Any) -> Agent[Any]:
    settings = more.pop("settings", {})
    client = AsyncOpenAI(base_url=V1, api_key=KEY)
    return Agent(
        name="looker",
        model=OpenAIResponsesModel(model=MODEL, openai_client=client),
        model_settings=ModelSettings(temperature=0, max_tokens=256, **settings),
        **more,
    )


def shown(text: str) -> Any:
    image = {"type": "input_image", "image_url": IMAGE_URL, "detail": "auto"}
    return [{"role": "user", "content": [{"type": "input_text", "text": text}, image]}]


async def image() -> str:
    return right((await Runner.run(agent(), shown(QUESTION))).final_output)


async def stream() -> str:
    texts = []
    result = Runner.run_streamed(agent(), shown(LONG))
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            texts.append(event.data.delta)
    return pieces(texts)


async def tool() -> str:
    calls: list[dict[str, Any]] = []

    @function_tool
    def look(close: bool) -> str:
        """Look at the image again."""
        calls.append({"close": close})
        return "a red circle"

    # After the first call it lets the model answer: the loop that every agent runs.
    await Runner.run(agent(tools=[look], settings={"tool_choice": "required"}), shown(QUESTION))
    return called("look", calls[0])


async def structured() -> str:
    result = await Runner.run(agent(output_type=Scene), shown(QUESTION))
    return as_scene(result.final_output)


async def pdf() -> str:
    file = {"type": "input_file", "filename": "circle.pdf", "file_data": PDF_URL}
    content = [{"type": "input_text", "text": QUESTION}, file]
    asked: Any = [{"role": "user", "content": content}]
    return right((await Runner.run(agent(), asked)).final_output)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
