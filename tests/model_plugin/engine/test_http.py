"""The engine's own HTTP server on a released fixture: what it refuses, and what it can be made to.

One engine for all of it, as `vora-serve engine` starts one; the gateway in front checks most of
this before, but an engine may be asked by others.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import noise_image
from tests.model_plugin.engine.harness import needs_vllm
from vora_serve.engine.launch import EngineLaunch

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.slow]

#: Tokens; the fixture's tokenizer makes nearly every character one, an image is 64.
CONTEXT = 700


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("engine")
    uds = folder / "engine.sock"
    engine = EngineLaunch(
        model=str(FIXTURES / "merged"),
        served_names=["tiny"],
        uds=uds,
        max_images=3,
        args=[
            *("--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(CONTEXT), "--max-num-seqs", "4"),
            # A random model would fill its answers with whitespace.
            "--structured-outputs-config",
            '{"backend": "xgrammar", "disable_any_whitespace": true}',
        ],
    )
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(engine.command(), stdout=output, stderr=output, env=os.environ) as process,
        httpx.Client(
            transport=httpx.HTTPTransport(uds=str(uds)), base_url="http://engine", timeout=120
        ) as client,
    ):
        try:
            deadline = time.monotonic() + 400
            while not answers(uds):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
            assert client.get("/health").status_code == 200
            yield client
        finally:
            process.terminate()


def answers(uds: Path) -> bool:
    """Whether somebody listens on the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(uds)) == 0


def url(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chat(client: httpx.Client, images: list[str], text: str = "What?", **fields: Any) -> Any:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": link}} for link in images]
    content = [*parts, {"type": "text", "text": text}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 30}
    return client.post("/v1/chat/completions", json=body | fields)


GOOD = url(noise_image(90, 60))
REFUSED: dict[str, tuple[list[str], str]] = {
    "single_pixel": ([url(Image.new("RGB", (1, 1)))], "1x1 pixels"),
    "elongated": ([url(Image.new("RGB", (900, 4)))], "aspect ratio must not exceed 200"),
    "empty": (["data:image/png;base64,"], ""),
    "no_image": (["data:image/png;base64," + base64.b64encode(b"text").decode()], ""),
    "too_many": ([GOOD] * 4, "3 image"),
    "beyond_the_context": ([GOOD] * 3, f"{CONTEXT}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_images_are_the_clients_fault(client: httpx.Client, name: str) -> None:
    images, limit = REFUSED[name]
    text = "a" * 600 if name == "beyond_the_context" else "What?"
    answer = chat(client, images, text)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert limit in error["message"], error
    assert " at 0x" not in error["message"]


def test_a_image_of_a_refused_request(client: httpx.Client) -> None:
    """vLLM's cache of processed images must not take it for one that the engine has."""
    image = url(noise_image(80, 64))
    refused = chat(client, [image], "a" * CONTEXT)
    assert refused.status_code == 400, refused.text
    assert chat(client, [image]).status_code == 200


def test_the_prefix_cache_knows_images(client: httpx.Client) -> None:
    """Without that shadow too: an image seen before is cached, another in its place is not."""
    seen, other = url(noise_image(100, 70)), url(noise_image(70, 100))

    def cached(image: str) -> int:
        usage = chat(client, [image], "b" * 100, max_tokens=2).json()["usage"]
        return int((usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0)

    cached(seen)
    assert cached(seen) >= 64
    assert cached(other) < 64


@pytest.mark.parametrize(("prompt", "images"), [("<image>", 0), ("<image><image>", 0)])
def test_placeholders_without_images(client: httpx.Client, prompt: str, images: int) -> None:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert "images" in answer.json()["error"]["message"]


SCHEMA = {
    "type": "object",
    "properties": {"seen": {"enum": ["circle", "square"]}, "sure": {"type": "boolean"}},
    "required": ["seen", "sure"],
    "additionalProperties": False,
}


def test_structured_outputs(client: httpx.Client) -> None:
    """Random weights say nothing, but what they say fits the schema, image or not."""
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA}}
    for images in ([GOOD], []):
        answer = chat(client, images, response_format=form, max_tokens=60, temperature=0)
        assert answer.status_code == 200, answer.text
        said = json.loads(answer.json()["choices"][0]["message"]["content"])
        assert said["seen"] in ("circle", "square")
        assert isinstance(said["sure"], bool)


def test_tool_calls(client: httpx.Client) -> None:
    """A named tool that is strict is called with arguments that fit its schema."""
    function = {"name": "look", "parameters": SCHEMA, "strict": True}
    tool = {"type": "function", "function": function}
    choice = {"type": "function", "function": {"name": "look"}}
    fields = {"tools": [tool], "tool_choice": choice, "parallel_tool_calls": False}
    answer = chat(client, [GOOD], **fields, max_tokens=120, temperature=0)
    assert answer.status_code == 200, answer.text
    [call] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"])["seen"] in ("circle", "square")


def test_sampling_goes_on_after_refusals(client: httpx.Client) -> None:
    answer = chat(client, [GOOD], temperature=0, max_tokens=4, seed=1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
