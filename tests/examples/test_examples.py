"""Every example, as a user runs it, against a live server with the demo model.

``make test-examples``. LlamaIndex lives in an environment of its own, whose Python
``VORA_LLAMAINDEX_PYTHON`` names; without it that example is skipped, and said to be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.playground.conftest import DEMO, modules, node
from tests.playground.engine import running_engine
from tests.playground.test_browser import NUMBERS, gateway
from vora_serve.world.scenes import random_scene, render

__all__ = ["modules", "node"]
pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("examples")
    with ExitStack() as stack:
        engine = stack.enter_context(running_engine(folder, DEMO, "vora-demo"))
        yield gateway(stack, engine)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An image and the number of its shapes."""
    drawn = random_scene(7, "test", 0)  # a single shape, which leaves the model no doubt
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    render(drawn).save(path)
    return path, NUMBERS[len(drawn.things)]


def run(server: str, *command: str, cwd: Path = EXAMPLES, timeout: float = 900) -> str:
    env = {**os.environ, "VORA_BASE_URL": server, "PYTHONPATH": str(EXAMPLES.parent)}
    result = subprocess.run(
        [*command], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_curl(server: str, scene: tuple[Path, str]) -> None:
    question = "How many shapes are there?"
    told = json.loads(run(server, "./ask.sh", str(scene[0]), question))
    assert told["choices"][0]["message"]["content"].strip() == scene[1]
    quoted = run(server, "./ask.sh", str(scene[0]), 'It\'s "quoted" $HOME `id` \\ ?')
    assert json.loads(quoted)["usage"]["completion_tokens"] > 0


def test_curl_streams(server: str) -> None:
    assert run(server, "./stream.sh", "How many shapes are there?").strip()


def test_openai_python(server: str, scene: tuple[Path, str]) -> None:
    asked = ["--question", "How many shapes are there?"]
    said = run(server, sys.executable, "ask.py", str(scene[0]), *asked)
    assert said.startswith(scene[1])
    assert re.search(r"64 of images", said)
    two = run(server, sys.executable, "ask.py", str(scene[0]), str(scene[0]), *asked)
    assert "128 of images" in two


def test_openai_javascript(
    server: str, scene: tuple[Path, str], node: str, modules: Path, tmp_path: Path
) -> None:
    shutil.copy(EXAMPLES / "ask.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)
    asked = [str(scene[0]), "How many shapes are there?"]
    said = run(server, node, "ask.mjs", *asked, cwd=tmp_path)
    assert said.startswith(scene[1])
    assert "64 of images" in said


def test_structured_output(server: str, scene: tuple[Path, str]) -> None:
    told = json.loads(run(server, sys.executable, "structured.py", str(scene[0])))
    assert told["shapes"] in ("one", "two", "three", "four")


def test_tools(server: str, scene: tuple[Path, str]) -> None:
    said = run(server, sys.executable, "tools.py", str(scene[0]))
    assert re.match(r"price_of\(\{'count': '(one|two|three|four)'\}\) = \d+\n", said)


def test_langchain(server: str, scene: tuple[Path, str]) -> None:
    pytest.importorskip("langchain_openai")
    assert run(server, sys.executable, "langchain_chat.py", str(scene[0])).strip() == scene[1]


def test_llamaindex(server: str, scene: tuple[Path, str]) -> None:
    python = os.environ.get("VORA_LLAMAINDEX_PYTHON")
    if not python:
        pytest.skip("VORA_LLAMAINDEX_PYTHON names no environment with LlamaIndex")
    assert run(server, python, "llamaindex_chat.py", str(scene[0])).strip() == scene[1]


def test_captions_go_on_where_they_were_cut_off(server: str, tmp_path: Path) -> None:
    folder, result = tmp_path / "images", tmp_path / "captions.jsonl"
    (folder / "deeper").mkdir(parents=True)
    for index in range(12):
        where = folder / "deeper" if index % 2 else folder
        render(random_scene(index, "test", 0)).save(where / f"{index:02}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG not really")
    command = [sys.executable, "caption_folder.py", str(folder), str(result)]
    env = {**os.environ, "VORA_BASE_URL": server}
    process = subprocess.Popen(
        [*command, "--concurrency", "1"], cwd=EXAMPLES, env=env, stderr=subprocess.PIPE
    )
    began = time.monotonic()
    while not result.exists() or len(result.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None
        assert time.monotonic() - began < 120
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    before = result.read_text(encoding="utf-8").splitlines()
    assert 3 <= len(before) < 13, "it was cut off"
    with result.open("a", encoding="utf-8") as out:
        out.write('{"image": "cut')  # as a crash leaves it
    run(server, *command)
    entries = []
    for line in result.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            assert line == '{"image": "cut'
    captioned = [entry["image"] for entry in entries if "caption" in entry]
    assert len(captioned) == len(set(captioned)) == 12, "each one once"
    assert any("error" in entry for entry in entries if entry["image"] == "broken.png")
    already = int(re.search(r"(\d+) have a caption", run(server, *command))[1])  # type: ignore[index]
    assert already == 12


def test_the_notebooks_cells(server: str, tmp_path: Path) -> None:
    """In order and in one Python, as a kernel runs them, without Jupyter around it."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    (tmp_path / "cells.py").write_text("\n\n".join(code), encoding="utf-8")
    said = run(server, sys.executable, "cells.py", cwd=tmp_path)
    assert "70 image tokens" in said
    assert "'resolution': 'native'" in said


def stripes(across: bool, seed: int) -> Image.Image:
    """Something that the demo model has never seen: stripes, across or down."""
    draw = np.random.default_rng(seed)
    period = int(draw.integers(16, 30))
    lines = ((np.arange(64) + draw.integers(period)) // (period // 2)) % 2
    pixels = np.tile(lines[:, None] if across else lines[None, :], (1, 64) if across else (64, 1))
    low, high = np.sort(draw.integers(0, 256, (2, 3)), axis=0)
    high = np.maximum(high, low + 60).clip(0, 255)
    coloured = low + pixels[..., None] * (high - low)
    return Image.fromarray(coloured.astype(np.uint8))


def test_fine_tuning_on_own_images_and_serving_the_result(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for label in ("across", "down"):
        (images / label).mkdir(parents=True)
        for seed in range(80):
            stripes(label == "across", seed).save(images / label / f"{seed}.png")
    out = tmp_path / "striped"
    command = [sys.executable, str(EXAMPLES / "finetune_own.py"), str(images)]
    question = "Which way do the stripes run?"
    run("", *command, "--out", str(out), "--steps", "60", "--question", question, timeout=1500)
    given, os.environ["VORA_TEST_ENGINE"] = os.environ.pop("VORA_TEST_ENGINE", None), ""
    try:
        with ExitStack() as stack:
            url = gateway(stack, stack.enter_context(running_engine(tmp_path, out, "vora-demo")))
            right = 0
            for seed in range(1000, 1010):
                for label in ("across", "down"):
                    stripes(label == "across", seed).save(tmp_path / "held-out.png")
                    asked = [str(tmp_path / "held-out.png"), "--question", question]
                    said = run(url, sys.executable, "ask.py", *asked)
                    right += said.split()[0].strip(".") == label
            assert right >= 18, f"{right} of 20"
    finally:
        if given is not None:
            os.environ["VORA_TEST_ENGINE"] = given


def test_every_example_is_in_the_table_and_in_a_test() -> None:
    table = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        if path.is_file() and path.name not in ("README.md", "images.py"):
            assert f"`{path.name}`" in table
            assert path.name in tests, f"{path.name} is not run"
