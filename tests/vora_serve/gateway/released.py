"""The released fixtures' answers, asked for over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np

from tests.vora_serve.gateway.real_engine import MODEL
from tests.vora_serve.gateway.test_chat import data_url

EXPECTED = MODEL.parent / "expected"
VOCABULARY = 352
TOLERANCE = 1e-4
#: The engine computes as the released implementation did, and names every token's probability.
ENGINE = ["--dtype", "float32", "--max-logprobs", str(VOCABULARY)]
#: Of the gateway.
SETTINGS = f"fields: {{max_top_logprobs: {VOCABULARY}}}\n"


def check_released(url: str, name: str, image: str) -> None:
    """A chat with a fixture's prompt and image gives what the released implementation gave."""
    expected = json.loads((EXPECTED / f"{name}.json").read_text())
    logprobs = np.load(EXPECTED / f"{name}.npz")["logprobs"]
    system, user = (
        part.split("<|im_end|>")[0] for part in expected["prompt"].split("<|im_start|>")[1:3]
    )
    text = user.removeprefix("user\n").removeprefix("<image>")
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if expected["vision_tokens"]:
        file = data_url((MODEL.parent / image).read_bytes())
        content.insert(0, {"type": "image_url", "image_url": {"url": file}})
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        timeout=300,
        json={
            "model": "tiny",
            "messages": [
                {"role": "system", "content": system.removeprefix("system\n")},
                {"role": "user", "content": content},
            ],
            "temperature": 0,
            "ignore_eos": True,
            "max_tokens": len(expected["greedy"]),
            "logprobs": True,
            "top_logprobs": VOCABULARY,
            "prompt_logprobs": VOCABULARY,
            "return_tokens_as_token_ids": True,
        },
    )
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["usage"]["prompt_tokens"] == expected["prompt_len"]
    generated = said["choices"][0]["logprobs"]["content"]
    assert [_token(entry) for entry in generated] == expected["greedy"]
    got = np.full((expected["prompt_len"], VOCABULARY), np.nan, np.float32)
    for place, row in enumerate(said["prompt_logprobs"][1:]):
        for token, entry in row.items():
            got[place, int(token)] = entry["logprob"]
    for entry in generated[0]["top_logprobs"]:
        got[-1, _token(entry)] = entry["logprob"]
    # JSON has no infinity: vLLM writes what is below -9999 so.
    assert np.abs(got - np.maximum(logprobs, -9999.0)).max() < TOLERANCE


def _token(entry: dict[str, Any]) -> int:
    return int(entry["token"].removeprefix("token_id:"))
