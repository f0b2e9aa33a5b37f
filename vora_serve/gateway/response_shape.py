"""Responses as OpenAI's schema has them: vLLM leaves out fields that are required there.

``/v1/responses`` answers with one object, and its events carry the same object, its items and their
parts. What vLLM does not say is said here in the schema's own way of saying nothing.
"""

from __future__ import annotations

import time
from typing import Any

#: Data of an event that holds something to complete; all other events pass as they came.
HOLDERS = (b'"response":{', b'"item":{', b'"part":{')


def complete_response(response: dict[str, Any]) -> None:
    """Complete a response object in place."""
    done = int(time.time()) if response.get("status") == "completed" else None
    response.setdefault("completed_at", done)
    for name in ("error", "safety_identifier", "prompt_cache_key"):
        response.setdefault(name, None)
    response.setdefault("store", False)  # engines behind the gateway keep no answers
    if response.get("text") is None:
        response["text"] = {"format": {"type": "text"}}
    if response.get("top_logprobs") is None:
        response["top_logprobs"] = 0
    items = response.get("output") or ()
    for item in items:
        complete_item(item)
    cut_off = response.get("status") == "incomplete"
    if cut_off and response.get("incomplete_details") is None:
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    if cut_off and items and isinstance(items[-1], dict) and "status" in items[-1]:
        items[-1]["status"] = "incomplete"


def complete_item(item: Any) -> None:
    """Complete an item of a response's output in place."""
    if not isinstance(item, dict):
        return
    if item.get("phase", "") is None:
        del item["phase"]
    for part in item.get("content") or ():
        complete_part(part)


def complete_part(part: Any) -> None:
    """Complete a part of an item's content in place."""
    if isinstance(part, dict) and part.get("logprobs", ()) is None:
        part["logprobs"] = []


def complete_event(event: dict[str, Any]) -> None:
    """Complete what the data of an event holds, in place.

    vLLM ends every stream with ``response.completed``; one whose answer was cut off at its limit
    ends with ``response.incomplete``, and the message at its end is incomplete too.
    """
    response = event.get("response")
    if isinstance(response, dict):
        complete_response(response)
        if event.get("type") == "response.completed" and response.get("status") == "incomplete":
            event["type"] = "response.incomplete"
    complete_item(event.get("item"))
    complete_part(event.get("part"))
