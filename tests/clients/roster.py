"""Which clients take the tour, how each starts, and which checks fail by whose fault."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
CHECKS = ("image", "stream", "tool", "structured", "pdf")

Language = Literal["python", "npm", "java"]


@dataclass(frozen=True)
class Client:
    """One client, over one API.

    Attributes:
        name: of its package.
        api: which of the gateway's APIs it speaks.
        language: what it is written for.
        program: the script that takes the tour.
        arguments: further ones for the script.
        environment: of Python clients, the requirements that they are installed from.
        without: checks of what the client has nothing for.
        packages: whose versions the table shows; its name where empty.
    """

    name: str
    api: str
    language: Language
    program: str
    arguments: tuple[str, ...] = ()
    environment: str = "current"
    without: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Its name in tests, results and faults."""
        return f"{self.name} ({self.language}, {self.api})"


CLIENTS = (
    Client("openai", "chat", "python", "openai_chat.py", environment="openai"),
    Client("openai", "responses", "python", "openai_responses.py", environment="openai"),
    Client("openai", "chat", "npm", "openai.mjs"),
    Client("anthropic", "messages", "python", "anthropic_messages.py", environment="openai"),
    Client("@anthropic-ai/sdk", "messages", "npm", "anthropic.mjs"),
    Client("langchain-openai", "chat", "python", "langchain_openai_tour.py"),
    Client("langchain-anthropic", "messages", "python", "langchain_anthropic_tour.py"),
    Client("@langchain/openai", "chat", "npm", "langchain.mjs"),
    Client(
        "llama-index-llms-openai-like", "chat", "python", "llama_index_tour.py",
        environment="openai-2",
    ),
    Client("instructor", "chat", "python", "instructor_tour.py", without=("pdf",)),
    Client(
        "pydantic-ai", "chat", "python", "pydantic_ai_tour.py", packages=("pydantic-ai-slim",)
    ),
    Client("litellm", "chat", "python", "litellm_tour.py"),
    Client("haystack-ai", "chat", "python", "haystack_tour.py"),
    Client("openai-agents", "responses", "python", "agents_tour.py", environment="openai-2"),
    Client(
        "@ai-sdk/openai", "responses", "npm", "ai-sdk.mjs", ("openai",),
        packages=("ai", "@ai-sdk/openai"),
    ),
    Client(
        "@ai-sdk/openai", "chat", "npm", "ai-sdk.mjs", ("openai-chat",),
        packages=("ai", "@ai-sdk/openai"),
    ),
    Client(
        "@ai-sdk/openai-compatible", "chat", "npm", "ai-sdk.mjs", ("openai-compatible",),
        packages=("ai", "@ai-sdk/openai-compatible"),
    ),
    Client(
        "@ai-sdk/anthropic", "messages", "npm", "ai-sdk.mjs", ("anthropic",),
        packages=("ai", "@ai-sdk/anthropic"),
    ),
    Client(
        "@openai/codex", "responses", "npm", "codex.mjs", without=("structured", "pdf"),
    ),
    Client("@anthropic-ai/claude-code", "messages", "npm", "claude-code.mjs"),
    Client("java.net.http", "chat", "java", "Tour.java", without=("pdf",)),
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Why a check fails.

    Attributes:
        whose: the client's, the model's, the engine's, the gateway's.
        why: one sentence.
    """

    whose: str
    why: str


def faults() -> dict[tuple[str, str], Fault]:
    """The known ones, by client and check."""
    table = tomllib.loads((HERE / "faults.toml").read_text())
    return {
        (client, check): Fault(**about)
        for client, checks in table.items()
        for check, about in checks.items()
    }
