"""Every code block of README and docs that claims to run is run, against the demo model.

A ``sh``, ``python`` or ``js`` block claims to run unless a comment before it says why it cannot:
``<!-- not run: why -->``. Blocks of a page run in order, in one folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tests.docs.blocks import ELSEWHERE, ROOT, Block, blocks, pages
from tests.playground.conftest import DEMO
from tests.playground.engine import running_engine
from tests.playground.test_browser import gateway
from vora_serve.cli import app

RUN = [
    path
    for path in pages()
    if str(path.relative_to(ROOT)) not in ELSEWHERE
    and any(block.why_not is None for block in blocks(path))
]


def test_blocks_are_found_and_reasons_read() -> None:
    page = ROOT / "docs" / "quickstart.md"
    found = blocks(page)
    assert [block.language for block in found].count("sh") >= 4
    assert "python" in {block.language for block in found}
    assert found[0].why_not, "make demo serves until Ctrl-C"
    assert not found[1].why_not


def test_reasons_are_given() -> None:
    for path in pages():
        for block in blocks(path):
            assert block.why_not is None or len(block.why_not) > 10, block.name


def commands() -> dict[str, Any]:
    """Every command of ``vora-serve`` by its words."""
    found: dict[str, Any] = {}

    def add(name: str, command: Any) -> None:
        found[name] = command
        for child, inner in getattr(command, "commands", {}).items():
            add(f"{name} {child}", inner)

    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        add(name, command)
    return found


def used(text: str) -> Iterator[list[str]]:
    """The arguments of each ``vora-serve`` in a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|\s|/)vora-serve (.*)", line.split(" #")[0])
        if found:
            yield shlex.split(found[1].split("|")[0])


def wrong(arguments: list[str], known: dict[str, Any]) -> str | None:
    """What of a command line does not exist."""
    words = [word for word in arguments if re.fullmatch(r"[a-z][a-z-]*", word)]
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
    if name is None:
        return f"no command {' '.join(arguments)}"
    if name in ("engine", "loadtest"):
        return None  # the rest belongs to vLLM, or to a parser of its own
    options = {option for parameter in known[name].params for option in parameter.opts}
    options |= {option for parameter in known[name].params for option in parameter.secondary_opts}
    until = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:until]:
        option = argument.split("=")[0]
        if option.startswith("--") and option not in {*options, "--help"}:
            return f"vora-serve {name} has no {option}"
    return None


def test_commands_in_all_pages_exist() -> None:
    known = commands()
    seen = 0
    for path in pages():
        for block in blocks(path):
            if block.language == "sh":
                for arguments in used(block.code):
                    assert not (fault := wrong(arguments, known)), f"{block.name}: {fault}"
                    seen += 1
    assert seen > 8
    assert wrong(["serve", "--modle", "x"], known)
    assert wrong(["sevre"], known)


#: Programs of the virtual environment that ``make demo`` and ``make setup`` make.
_OURS = re.compile(r"^ *(?:vora-serve|python3?|pip|torchrun|accelerate)\b.*", re.M)


def test_programs_are_typed_in_one_way() -> None:
    """As the set-up leaves them: nothing activates the virtual environment."""
    bare = [
        f"{block.name}: {line}"
        for path in pages()
        for block in blocks(path)
        if block.language == "sh"
        for line in _OURS.findall(block.code)
    ]
    assert bare == []
    assert _OURS.findall("a\n  vora-serve doctor\n.venv/bin/pip") == ["  vora-serve doctor"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("blocks")
        yield gateway(stack, stack.enter_context(running_engine(folder, DEMO, "vora-demo")))


def run(block: Block, server: str, folder: Path) -> None:
    code = block.code.replace("http://127.0.0.1:8000", server)
    code = code.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    name, command = {
        "sh": ("block.sh", ["bash", "-euo", "pipefail"]),
        "python": ("block.py", [sys.executable]),
        "js": ("block.mjs", ["node"]),
    }[block.language]
    (folder / name).write_text(code, encoding="utf-8")
    env = {**os.environ, "VORA_BASE_URL": server}
    result = subprocess.run(
        [*command, name], cwd=folder, env=env, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, f"{block.name}\n{result.stdout}\n{result.stderr}"
    assert '"error"' not in result.stdout, f"{block.name}\n{result.stdout}"
    assert result.stdout.strip(), f"{block.name} says nothing"


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("page", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_run(page: Path, server: str, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "vora_serve" / "demo" / "checkpoint")
    for block in blocks(page):
        if block.why_not is None:
            run(block, server, tmp_path)
