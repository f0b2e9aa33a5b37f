"""Responses get what OpenAI's schema requires, and keep what engines said."""

from __future__ import annotations

from typing import Any

from vora_serve.gateway.response_shape import complete_event, complete_response


def message() -> dict[str, Any]:
    part = {"type": "output_text", "text": "red", "annotations": [], "logprobs": None}
    return {"type": "message", "id": "msg_1", "phase": None, "content": [part]}


def test_what_is_missing_is_said_the_schemas_way() -> None:
    response: dict[str, Any] = {
        "id": "resp_1", "status": "completed", "text": None, "top_logprobs": None,
        "output": [message(), {"type": "function_call", "name": "look"}],
    }  # fmt: skip
    complete_response(response)
    assert isinstance(response.pop("completed_at"), int)
    done = message() | {"content": [message()["content"][0] | {"logprobs": []}]}
    del done["phase"]
    assert response == {
        "id": "resp_1", "status": "completed", "error": None, "store": False,
        "safety_identifier": None, "prompt_cache_key": None,
        "text": {"format": {"type": "text"}}, "top_logprobs": 0,
        "output": [done, {"type": "function_call", "name": "look"}],
    }  # fmt: skip


def test_what_engines_say_is_kept() -> None:
    said: dict[str, Any] = {
        "status": "failed", "error": {"message": "x"}, "completed_at": 5, "store": True,
        "safety_identifier": "a", "prompt_cache_key": "b", "top_logprobs": 3,
        "text": {"format": {"type": "json_object"}}, "output": None,
    }  # fmt: skip
    kept = dict(said)
    complete_response(kept)
    assert kept == said
    unfinished: dict[str, Any] = {"status": "in_progress"}
    complete_response(unfinished)
    assert unfinished["completed_at"] is None


def test_events_are_completed_wherever_they_hold_something() -> None:
    events: list[dict[str, Any]] = [
        {"response": {"status": "in_progress"}},
        {"item": message()},
        {"part": message()["content"][0]},
        {"delta": "red", "item": None},
    ]
    for event in events:
        complete_event(event)
    assert events[0]["response"]["error"] is None
    assert "phase" not in events[1]["item"]
    assert events[2]["part"]["logprobs"] == []
    assert events[3] == {"delta": "red", "item": None}


def test_a_response_that_was_cut_off_says_so() -> None:
    cut: dict[str, Any] = {
        "type": "response.completed",
        "response": {"status": "incomplete", "output": [message(), message() | {"status": "x"}]},
    }
    complete_event(cut)
    assert cut["type"] == "response.incomplete"
    assert cut["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item.get("status") for item in cut["response"]["output"]] == [None, "incomplete"]
    done: dict[str, Any] = {"type": "response.completed", "response": {"status": "completed"}}
    complete_event(done)
    assert done["type"] == "response.completed"
    assert "incomplete_details" not in done["response"]
