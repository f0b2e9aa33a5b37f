"""haystack: OpenAIChatGenerator."""

from __future__ import annotations

from typing import Any, Literal

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, FileContent, ImageContent
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel
from tour import IMAGE, KEY, LONG, LOOK, MODEL, PDF, QUESTION, V1, called, pieces, right, run
from tour import scene as as_scene


class Scene(BaseModel):
    color: Literal["red", "green", "blue"]
    count: int


def ask(messages: list[ChatMessage], **more: Any) -> ChatMessage:
    settings = {"temperature": 0, "max_tokens": 256, **more.pop("settings", {})}
    generator = OpenAIChatGenerator(
        api_key=Secret.from_token(KEY),
        api_base_url=V1,
        model=MODEL,
        generation_kwargs=settings,
        **more,
    )
    found: ChatMessage = generator.run(messages)["replies"][0]
    return found


def shown(text: str) -> list[ChatMessage]:
    return [ChatMessage.from_user(content_parts=[text, ImageContent.from_file_path(IMAGE)])]


def image() -> str:
    return right(ask(shown(QUESTION)).text)


def stream() -> str:
    texts: list[str] = []
    ask(shown(LONG), streaming_callback=lambda chunk: texts.append(chunk.content))
    return pieces(texts)


def tool() -> str:
    look = Tool(
        name="look",
        description=LOOK["description"],
        parameters=LOOK["parameters"],
        function=lambda close: f"a red circle, {close}",
    )
    messages = shown(QUESTION)
    first = ask(messages, tools=[look], settings={"tool_choice": "required"})
    call = first.tool_calls[0]
    found = called(call.tool_name, call.arguments)
    ask([*messages, first, ChatMessage.from_tool("a red circle", origin=call)], tools=[look])
    return found


def structured() -> str:
    return as_scene(ask(shown(QUESTION), settings={"response_format": Scene}).text)


def pdf() -> str:
    file = FileContent.from_file_path(PDF)
    return right(ask([ChatMessage.from_user(content_parts=[QUESTION, file])]).text)


if __name__ == "__main__":
    run(image=image, stream=stream, tool=tool, structured=structured, pdf=pdf)
