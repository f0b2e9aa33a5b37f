"""Mixed requests whose right answer is known: each can only be answered with its own name.

Whole answers and streams, with and without images, clients that leave, and requests that are
wrong on purpose. What becomes of each is tallied; an answer that belongs to another request, or
that is broken in a way not announced, shows at once.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

PATH = "/v1/chat/completions"

MALFORMED: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b'{"model": "tiny"}',
    b'{"model": "tiny", "messages": []}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "n": 1000}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "chat_template": "x"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url",'
    b' "image_url": {"url": "http://10.0.0.1/x.png"}}]}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url",'
    b' "image_url": {"url": "data:image/png;base64,aGVsbG8="}}]}]}',
)


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Answers that were another request's, or none that a client could take for right."""

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(self.outcomes.values())

    def report(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "requests": self.requests,
            "outcomes": dict(sorted(self.outcomes.items())),
            "slowest_s": round(self.slowest_s, 1),
            "wrong": len(self.wrong),
        }


def image_url(number: int) -> str:
    """A small image, another one for each of 16 numbers."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (16 * (number % 16), 90, 30)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def body(model: str, name: str, stream: bool, image: str | None) -> dict[str, Any]:
    """A request whose only possible answer is its own name."""
    content: Any = f"say {name}"
    if image is not None:
        content = [
            {"type": "text", "text": content},
            {"type": "image_url", "image_url": {"url": image}},
        ]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 64,
        "stream": stream,
        "structured_outputs": {"choice": [name]},
    }


def _stream_text(raw: str) -> tuple[str, bool]:
    """The text of a stream, and whether it ended as a whole one does."""
    said, done = "", False
    for line in raw.splitlines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            done = True
            continue
        event = json.loads(data)
        if "error" in event:
            return said, False
        said += "".join(c["delta"].get("content") or "" for c in event["choices"])
    return said, done


async def one(
    client: httpx.AsyncClient,
    model: str,
    name: str,
    chance: random.Random,
    tally: Tally,
    images: Sequence[str | Callable[[], str]] = (),
    malformed: float = 0.0,
) -> None:
    """One request: by chance a stream, with an image, left early, or malformed.

    Args:
        client: Where to ask.
        model: The served model's name.
        name: What only this request may be answered with.
        chance: Decides.
        tally: Told what became of it.
        images: URLs, or what makes one, to choose from beside small data URLs.
        malformed: Share of requests that are wrong on purpose.
    """
    headers = {"content-type": "application/json"}
    if chance.random() < malformed:
        answer = await client.post(PATH, content=chance.choice(MALFORMED), headers=headers)
        tally.outcomes[f"malformed: {answer.status_code}"] += 1
        if answer.status_code not in (400, 404, 429, 503) or not answer.json()["error"]["message"]:
            tally.wrong.append(f"malformed: {answer.status_code} {answer.text[:200]}")
        return
    stream, leaves = chance.random() < 0.5, chance.random() < 0.15
    image = None
    if chance.random() < 0.3:
        chosen = chance.choice([image_url(chance.randrange(16)), *images])
        image = chosen if isinstance(chosen, str) else chosen()
    payload = body(model, name, stream, image)
    began = time.monotonic()
    try:
        async with client.stream("POST", PATH, json=payload) as answer:
            if leaves:
                await asyncio.sleep(chance.random() * 0.5)
                tally.outcomes["left"] += 1
                return
            text = (await answer.aread()).decode()
    except httpx.HTTPError as error:
        tally.outcomes[type(error).__name__] += 1
        return
    finally:
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
    if answer.status_code != 200:
        tally.outcomes[str(answer.status_code)] += 1
        if not json.loads(text)["error"]["message"]:
            tally.wrong.append(f"{name}: {answer.status_code} without a reason")
        return
    if stream:
        said, done = _stream_text(text)
        tally.outcomes["stream" if done else "stream that ended with an error"] += 1
        if (said != name) if done else (not name.startswith(said) or '"error"' not in text):
            tally.wrong.append(f"{name}: {text[-300:]}")
    else:
        said = json.loads(text)["choices"][0]["message"]["content"]
        tally.outcomes["whole"] += 1
        if said != name:
            tally.wrong.append(f"{name}: {said}")
