"""The page of typical mistakes: every command says what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

_BLOCK = re.compile(r"^```text\n\$ vora-serve([^\n]*)\n(.*?)\nexit code (\d)\n```", re.M | re.S)


def mistakes() -> list[tuple[str, str, int]]:
    """Arguments, message and exit code of every block."""
    text = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    return [(a.strip(), said, int(code)) for a, said, code in _BLOCK.findall(text)]


def test_there_are_twenty() -> None:
    assert len(mistakes()) == 20


@pytest.mark.parametrize(("arguments", "message", "code"), mistakes(), ids=lambda v: str(v)[:50])
def test_a_mistake_says_what_the_page_says(
    tmp_path: Path, arguments: str, message: str, code: int
) -> None:
    (tmp_path / "notes.txt").write_text("not an image\n", encoding="utf-8")
    (tmp_path / "gateway.yaml").write_text("server: {prt: 9000}\n", encoding="utf-8")
    (tmp_path / "vora_serve" / "demo").mkdir(parents=True)
    (tmp_path / "vora_serve" / "demo" / "checkpoint").symlink_to(
        ROOT / "vora_serve" / "demo" / "checkpoint"
    )
    program = tmp_path / "bin" / "vora-serve"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from vora_serve.cli import main\nmain()\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    # The shell finds the program, as where the virtual environment is activated.
    beside = Path(sys.executable).parent / "vora-serve"
    path = [str(beside.parent if beside.exists() else program.parent), os.environ["PATH"]]
    # Not the default port, which a server on this machine may hold.
    env = {**os.environ, "COLUMNS": "240", "VORA_SERVE_SERVER__PORT": "0"}
    env["PATH"] = os.pathsep.join(path)
    done = subprocess.run(
        [str(program), *shlex.split(arguments)],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
        env=env,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert done.stdout == ""
