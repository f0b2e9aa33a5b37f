"""Enough of a Dockerfile's reading to look at its stages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from tests.deploy.compose import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("gateway", "engine-cpu", "engine-cuda", "training", "loadtest")


@dataclass
class Stage:
    """One stage: what it is built on, and its instructions, continued lines joined."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str | None:
        """The argument of the last such instruction."""
        return next((text for word, text in reversed(self.instructions) if word == keyword), None)

    @property
    def entrypoint(self) -> list[str]:
        return json.loads(self.last("ENTRYPOINT") or "[]")

    @property
    def command(self) -> list[str]:
        return json.loads(self.last("CMD") or "[]")

    @property
    def healthcheck(self) -> list[str]:
        text = self.last("HEALTHCHECK") or "NONE"
        return [] if text == "NONE" else json.loads(text[text.index("CMD") + 3 :])


def instructions() -> list[tuple[str, str]]:
    """All instructions, in order."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, text.strip()) for word, _, text in pairs]


def stages() -> dict[str, Stage]:
    """All stages by name."""
    result: dict[str, Stage] = {}
    current: Stage | None = None
    for word, text in instructions():
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            current = result[name] = Stage(name, base)
        elif current is not None:
            current.instructions.append((word, text))
    return result


def targets() -> dict[str, Stage]:
    """The images."""
    found = stages()
    return {name: found[name] for name in TARGETS}


def arguments() -> dict[str, str]:
    """Build arguments with their defaults."""
    pairs = [text.partition("=") for word, text in instructions() if word == "ARG"]
    return {name: value.strip('"') for name, _, value in pairs}
