"""What a workload is measured at, and the requests that are sent there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.checkpoints import WORDS
from loadtest.drive.images import data_url, random_image
from loadtest.settings import Workload

Size = tuple[int, int]


@dataclass(frozen=True)
class Point:
    """One setting of a workload.

    Args:
        workload: which.
        size: of its images; None for text, and where sizes are mixed.
        concurrency: requests under way at a time, in a closed loop.
        rate: requests per second, in an open loop.
    """

    workload: Workload
    size: Size | None
    concurrency: int | None = None
    rate: float | None = None

    @property
    def id(self) -> str:
        """A name for folders and tables."""
        parts = [self.workload.name]
        images = self.workload.images
        if images is not None:
            parts.append("mixed" if self.size is None else f"{self.size[0]}x{self.size[1]}")
        parts.append(f"c{self.concurrency}" if self.concurrency else f"r{self.rate:.4g}")
        return "-".join(parts)

    @property
    def is_single(self) -> bool:
        """Whether one request is under way at a time, so that requests pair one by one."""
        return self.concurrency == 1


def points_of(workload: Workload, rates: Sequence[float] = ()) -> list[Point]:
    """Every point of a workload.

    Args:
        workload: which.
        rates: what ``rates: auto`` has come to, once it is known.
    """
    images = workload.images
    sizes: list[Size | None] = [None]
    if images is not None and not images.mixed:
        sizes = list(images.sizes)
    given = rates if workload.rates == "auto" else workload.rates
    return [
        *(Point(workload, size, concurrency=n) for size in sizes for n in workload.concurrency),
        *(Point(workload, size, rate=float(rate)) for size in sizes for rate in given),
    ]


def seed_for(*parts: object) -> int:
    """A seed from what it is for, the same in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def question(random: np.random.Generator, words: int) -> str:
    """A text of so many common words, each with a space before it."""
    return "".join(f" {WORDS[at]}" for at in random.integers(len(WORDS), size=words))


def requests_for(point: Point, count: int, seed: int) -> list[list[dict[str, Any]]]:
    """The content of ``count`` user messages, images before the question.

    The same for the same seed, so that every server is asked the same.
    """
    random = np.random.default_rng(seed)
    images = point.workload.images
    held: list[dict[str, Any]] | None = None
    result = []
    for _ in range(count):
        content: list[dict[str, Any]] = []
        if images is not None:
            if held is None or not images.repeated:
                sizes = [point.size] if point.size is not None else images.sizes
                held = [
                    {
                        "type": "image_url",
                        "image_url": {
                            "url": data_url(
                                random_image(random, sizes[random.integers(len(sizes))]),
                                images.format,
                            )
                        },
                    }
                    for _ in range(images.count)
                ]
            content += held
        text = question(random, point.workload.text_tokens)
        result.append([*content, {"type": "text", "text": text}])
    return result


def write_requests(path: Path, requests: Sequence[list[dict[str, Any]]]) -> None:
    """Write them as the JSON lines that the load generator reads."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"content": content}) + "\n" for content in requests)
