"""The table of the tour's results, as a page of the documentation."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.clients.roster import CHECKS, CLIENTS, Fault

_HEAD = """# Clients

Public clients against the gateway and a real engine with the demo's model, each with these checks:
a question about an image, a stream, a forced tool call whose result goes back to the model, an
answer by a JSON schema, and, where the client can send one, a question about a PDF.
`make test-clients` installs the newest release of each client, runs the checks and writes this
page; with `VORA_CLIENTS_REFRESH=1` it installs them anew.

Codex and Claude Code choose for themselves which tools to call, which a model this small does not.
Their tool checks, and Claude Code's structured answer and PDF, run against a scripted engine behind
the same gateway: it makes the calls that the prompt lists, and repeats what came back. A yes there
says that the agent, with all the instructions and tools that it always sends, understood the call,
ran the tool and sent its result, text or image, through the gateway, in this turn and in the next.
Their other checks ask the demo's model, with short instructions and next to no tools, and take any
answer of Codex as one: its prompts lie outside what that model has learnt. A dash: not
checked.

"""


@dataclass(frozen=True)
class Outcome:
    """What came of one check."""

    ok: bool
    detail: str


def page(
    outcomes: Mapping[tuple[str, str], Outcome],
    versions: Mapping[str, str],
    faults: Mapping[tuple[str, str], Fault],
) -> str:
    """The page in Markdown.

    Args:
        outcomes: by client and check.
        versions: by client.
        faults: why checks fail, by client and check.
    """
    lines = [
        f"| Client | Version | API | {' | '.join(CHECKS)} |",
        "|---|---|---|" + "---|" * len(CHECKS),
    ]
    notes: list[str] = []
    for client in CLIENTS:
        if client.id not in versions:
            continue
        cells = []
        for check in CHECKS:
            if check in client.without:
                cells.append("–")
                continue
            if outcomes[client.id, check].ok:
                cells.append("yes")
                continue
            fault = faults.get((client.id, check))
            reason = (
                f"{fault.why} Whose fault: {fault.whose}."
                if fault is not None
                else f"Not explained yet: `{outcomes[client.id, check].detail[:160]}`"
            )
            if reason not in notes:
                notes.append(reason)
            cells.append(f"no ({notes.index(reason) + 1})")
        name = f"{client.name} ({'Java' if client.language == 'java' else client.language})"
        name = name.replace("(python)", "(Python)")
        lines.append(f"| {name} | {versions[client.id]} | {client.api} | {' | '.join(cells)} |")
    told = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    node = shutil.which("node")
    with_node = subprocess.check_output([node, "--version"], text=True).strip() if node else "none"
    measured = (
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, node {with_node}. "
        "The npm clients are the newest that run on this node."
    )
    return _HEAD + "\n".join(lines) + "\n\n" + (told + "\n\n" if told else "") + measured + "\n"


def write(path: Path, text: str) -> None:
    """Replace the page."""
    path.write_text(text, encoding="utf-8")
