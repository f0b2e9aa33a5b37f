"""What an example says where something is missing: one sentence, and no traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.lean import dev_only, environment

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Nothing listens on the discard port.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment after ``make demo``, and no server."""
    return {**environment(tmp_path_factory.mktemp("lean"), dev_only()), "VORA_BASE_URL": NOWHERE}


def said(env: dict[str, str], folder: Path, *command: str) -> str:
    """The sentence on standard error of a command that fails."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode not in (0, -11), done.stdout
    assert "Traceback" not in done.stderr
    assert "    at " not in done.stderr  # JavaScript's
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("finetune_own.py", ["."], "Run: "),
        ("langchain_chat.py", ["scene.png"], "is not installed. Run: make setup"),
        ("llamaindex_chat.py", ["scene.png"], "pip install llama-index-llms-openai-like"),
        ("ask.py", ["none.png"], "none.png cannot be read: No such file or directory."),
        ("ask.py", ["scene.png"], f"No server answers at {NOWHERE}/v1. Start one with: make demo"),
        pytest.param(  # half a minute: it tries again, as it should over a night
            "caption_folder.py",
            [".", "out.jsonl"],
            "Start one with: make demo",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_is_said_in_a_sentence(
    lean: dict[str, str], tmp_path: Path, name: str, arguments: list[str], sentence: str
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "scene.png")
    assert sentence in said(lean, tmp_path, sys.executable, str(EXAMPLES / name), *arguments)
    if name == "finetune_own.py":
        assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]


def test_javascript_without_its_package(lean: dict[str, str], tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    shutil.copy(EXAMPLES / "ask.mjs", tmp_path)
    assert "Run: npm install openai" in said(lean, tmp_path, node, "ask.mjs", "scene.png")


def test_labels_need_folders(tmp_path: Path) -> None:
    """In the developers' environment, which can train."""
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "cat" / "1.png")
    env = {"PYTHONPATH": str(EXAMPLES.parent), "PATH": ""}
    command = [sys.executable, str(EXAMPLES / "finetune_own.py")]
    assert "at least two folders" in said(env, tmp_path, *command, ".")
    assert "There is no folder none." in said(env, tmp_path, *command, "none")
