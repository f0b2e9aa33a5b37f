"""pydantic-ai: an agent over OpenAI's chats."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput, capture_run_messages
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits
from tour import IMAGE, KEY, LONG, MODEL, PDF, QUESTION, V1, pieces, right, run
from tour import scene as as_scene

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=V1, api_key=KEY))
CONTENT = BinaryContent(IMAGE.read_bytes(), media_type="image/png")
SETTINGS = {"temperature": 0.0, "max_tokens": 256}


class Scene(BaseModel):
    """What the image shows."""

    color: Literal["red", "green", "blue"]
    count: int


async def image() -> str:
    agent = Agent(model, model_settings=SETTINGS)
    return right((await agent.run([QUESTION, CONTENT])).output)


async def stream() -> str:
    agent = Agent(model, model_settings=SETTINGS)
    async with agent.run_stream([LONG, CONTENT]) as result:
        return pieces([text async for text in result.stream_text(delta=True, debounce_by=None)])


async def tool() -> str:
    """Its answer is a tool's arguments, as pydantic-ai forces them."""
    agent = Agent(model, model_settings=SETTINGS, output_type=ToolOutput(Scene, name="scene"))
    with capture_run_messages() as messages:
        result = await agent.run([QUESTION, CONTENT], usage_limits=UsageLimits(request_limit=2))
    calls = [p for m in messages for p in m.parts if isinstance(p, ToolCallPart)]
    assert calls[0].tool_name == "scene"
    return as_scene(result.output)


async def structured() -> str:
    agent = Agent(model, model_settings=SETTINGS, output_type=NativeOutput(Scene))
    return as_scene((await agent.run([QUESTION, CONTENT])).output)


async def pdf() -> str:
    agent = Agent(model, model_settings=SETTINGS)
    file = BinaryContent(PDF.read_bytes(), media_type="application/pdf")
    return right((await agent.run([QUESTION, file])).output)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
