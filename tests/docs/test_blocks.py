"""Every code block of README and docs that claims to run is run, against the demo model.

A ``sh``, ``python`` or ``js`` block claims to run unless a comment before it says why it cannot:
``<!-- not run: why -->``. Blocks of a page run in order, in one folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.blocks import ELSEWHERE, ROOT, Block, blocks, pages
from tests.playground.conftest import DEMO
from tests.playground.engine import running_engine
from tests.playground.test_browser import gateway

RUN = [
    path
    for path in pages()
    if str(path.relative_to(ROOT)) not in ELSEWHERE
    and any(block.why_not is None for block in blocks(path))
]


def test_blocks_are_found_and_reasons_read(tmp_path: Path) -> None:
    page = ROOT / "docs" / "quickstart.md"
    found = blocks(page)
    assert [block.language for block in found].count("sh") >= 4
    assert "python" in {block.language for block in found}
    assert found[0].why_not, "make demo serves until Ctrl-C"
    assert not found[1].why_not


def test_reasons_are_given_and_pages_that_are_checked_elsewhere_say_where() -> None:
    for path in pages():
        for block in blocks(path):
            assert block.why_not is None or len(block.why_not) > 10, block.name
    for reason in ELSEWHERE.values():
        checked = re.match(r"(tests/\S+)", reason)
        assert checked is None or (ROOT / checked[1]).exists(), reason


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
