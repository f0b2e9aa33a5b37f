"""Code blocks of README and docs: which of them claim to run, and which say why they do not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = {"sh": "sh", "bash": "sh", "console": "sh", "python": "python", "js": "js"}
#: Pages whose commands need a deployment, another machine or hours, or that have a test of their
#: own; of these the tests of blocks check that commands and options exist, no more.
ELSEWHERE = {
    "docs/operations.md": "containers, a cluster, several machines",
    "docs/loadtest.md": "minutes of load on an idle machine",
    "docs/training.md": "hours of training on data that is not here",
    "docs/models.md": "checkpoints that are not here",
    "docs/tutorial.md": "run by test_tutorial.py, which compares what they print",
}
FENCE = re.compile(
    r"(?P<before><!--(?P<comment>.*?)-->\s*\n)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<code>.*?)^(?P=indent)```",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    code: str
    why_not: str | None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, and all of docs/."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *docs]


def blocks(path: Path) -> list[Block]:
    """The blocks of a page that are code of a language that could be run."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language = LANGUAGES.get(match["language"])
        if language is None:
            continue
        comment = (match["comment"] or "").strip()
        why_not = comment.removeprefix("not run:").strip() if "not run:" in comment else None
        line = text.count("\n", 0, match.start("indent")) + 1
        page = str(path.relative_to(ROOT))
        found.append(Block(page, line, language, match["code"], why_not))
    return found
