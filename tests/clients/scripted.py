"""A fake engine that makes the tool calls which the prompt lists, for agents.

Agents never force a call, and a model as small as the demo's makes none of its own accord. What is
under test lies around it: the agent, which runs the tools and sends its history back, and the
gateway between the two.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tests.vora_serve.gateway.fake_engine import FakeEngine, sse_event

Tree = dict[str, Any]
MARK = "Make these calls: "


class ScriptedEngine(FakeEngine):
    """Makes the calls one after the other, then answers with what the tools said and showed."""

    async def generate(self, request: Request) -> Response:
        payload = json.loads(await request.body())
        messages = payload.get("messages") or payload.get("input")
        wanted = _wanted(messages)
        results = [_result(message) for message in messages if _is_result(message)]
        self.calls, self.output = [], None
        if len(results) < len(wanted):
            call = wanted[len(results)]
            name, arguments = call["name"], json.dumps(call["arguments"])
            self.words, self.calls = [], [(name, arguments)]
            self.first_call = len(results)
            self.finish = {"finish_reason": "tool_calls"}
            self.output = [_THOUGHT, _function_call(name, arguments, len(results))]
        else:
            told = " ".join(" ".join(results).split())
            self.words = ["The tools ", "said: ", f"{told}. ", f"Images: {_images(messages)}."]
            self.finish = {"finish_reason": "stop"}
        return await super().generate(request)

    async def _response_events(
        self, payload: Tree, path: str, image_tokens: int
    ) -> AsyncIterator[bytes]:
        """The events of vLLM's streams, item by item."""
        response = self.non_streaming(payload, path, image_tokens)
        started = {**response, "status": "in_progress", "output": [], "usage": None}
        events = [("created", {"response": started}), ("in_progress", {"response": started})]
        for index, item in enumerate(response["output"]):
            events += [
                (kind, {"output_index": index, **body}) for kind, body in self._of_item(item)
            ]
        events.append(("completed", {"response": response}))
        for number, (kind, body) in enumerate(events):
            name = f"response.{kind}"
            data = {"type": name, "sequence_number": number, **body}
            yield f"event: {name}\n".encode() + sse_event(data)

    def _of_item(self, item: Tree) -> Iterator[tuple[str, Tree]]:
        place = {"item_id": item["id"]}
        kind = item["type"]
        if kind == "function_call":
            begun = {**item, "arguments": "", "status": "in_progress"}
            yield "output_item.added", {"item": begun}
            yield "function_call_arguments.delta", {**place, "delta": item["arguments"]}
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield "function_call_arguments.done", {**place, **told}
        else:
            yield "output_item.added", {"item": {**item, "content": [], "status": "in_progress"}}
            [part] = item["content"]
            name = "output_text" if kind == "message" else "reasoning_text"
            place["content_index"] = 0
            yield "content_part.added", {**place, "part": {**part, "text": ""}}
            for word in self.words if kind == "message" else [part["text"]]:
                yield f"{name}.delta", {**place, "delta": word, "logprobs": []}
            yield f"{name}.done", {**place, "text": part["text"], "logprobs": []}
            yield "content_part.done", {**place, "part": part}
        yield "output_item.done", {"item": item}


_THOUGHT: Tree = {
    "type": "reasoning",
    "id": "rs_1",
    "status": "completed",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "The prompt lists a call."}],
}


def _function_call(name: str, arguments: str, number: int) -> Tree:
    call = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}"}
    return {**call, "name": name, "arguments": arguments, "status": "completed"}


def _wanted(messages: list[Tree]) -> list[Tree]:
    """The calls that the prompt lists last."""
    for message in reversed(messages):
        for text in reversed(_texts(message.get("content"))):
            if MARK in text:
                calls, _ = json.JSONDecoder().raw_decode(text.split(MARK)[-1])
                return list(calls)
    return []


def _is_result(message: Tree) -> bool:
    return message.get("role") == "tool" or message.get("type") == "function_call_output"


def _result(message: Tree) -> str:
    return " ".join(_texts(message.get("content", message.get("output"))))


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if isinstance(part.get("text"), str)]


def _images(messages: list[Tree]) -> int:
    contents = [message.get("content", message.get("output")) for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum("image_url" in part for part in parts)
