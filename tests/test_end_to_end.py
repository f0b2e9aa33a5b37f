"""What this project is for: an image's URL in, a right answer out, by a model of its own making.

The checked-in demo model is served as a user serves it, by the command line, and asked by the
`openai` client over HTTP.
"""

import io
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

import vora_serve.demo
from tests.vora_serve.gateway.real_engine import Served, serving
from vora_serve.evaluation.cli import app
from vora_serve.world.questions import scene_caption
from vora_serve.world.scenes import random_scene, render
from vora_serve.world.suite import Item, build_suite, is_right

pytestmark = pytest.mark.engine

CHECKPOINT = Path(vora_serve.demo.__file__).parent / "checkpoint"
#: Images of this seed are neither trained on nor in the report.
SEED = 424_242


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model behind the gateway, which may fetch from this machine."""
    with serving(tmp_path_factory.mktemp("demo"), model=CHECKPOINT, name="vora-demo") as service:
        yield service


@pytest.fixture(scope="module")
def items() -> dict[str, list[Item]]:
    """Held-out questions by group."""
    groups: dict[str, list[Item]] = {}
    for item in build_suite(20, SEED):
        groups.setdefault(item.group, []).append(item)
    return groups


class Quiet(SimpleHTTPRequestHandler):
    """A web server that does not write to the terminal."""

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which a local web server shows it."""
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def ask(client: openai.OpenAI, url: str, question: str) -> str:
    """One question about one image, streamed."""
    content: Any = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    stream = client.chat.completions.create(
        model="vora-demo",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        stream=True,
    )
    with stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_three_images_by_url_streamed(
    served: Served, items: dict[str, list[Item]], web: tuple[Path, str]
) -> None:
    folder, address = web
    chosen = [items["colour, one shape"][0], items["count"][1], items["digit"][2]]
    for number, (item, kind) in enumerate(zip(chosen, ("png", "jpeg", "webp"), strict=True)):
        item.image.save(folder / f"{number}.{kind}", quality=95)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        for number, (item, kind) in enumerate(zip(chosen, ("png", "jpeg", "webp"), strict=True)):
            said = ask(client, f"{address}/{number}.{kind}", item.question)
            assert is_right(said, item.answer), f"{item.question} {said!r}, not {item.answer!r}"


def test_a_scene_is_described_when_nothing_was_asked_before(
    served: Served, web: tuple[Path, str]
) -> None:
    """The README's own question about the README's own image, and some more of one shape."""
    folder, address = web
    right = []
    scenes = [random_scene(7, "test", 0)]
    scenes += [random_scene(SEED, "test", index, count=1) for index in range(9)]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        for index, scene in enumerate(scenes):
            render(scene).save(folder / f"{index}.png")
            said = ask(client, f"{address}/{index}.png", "What do you see?")
            right.append(said.strip() == scene_caption(scene))
    assert right[0]
    assert sum(right) >= 8


def test_answers_are_as_right_as_the_report_says_and_blank_ones_near_chance(
    served: Served, tmp_path: Path
) -> None:
    """Other images than the report's; the bounds leave room for 60 questions of a group."""
    report = json.loads((CHECKPOINT / "report.json").read_text(encoding="utf-8"))
    reported = {row["group"]: row["accuracy"] for row in report["groups"]}
    out = tmp_path / "result.json"
    arguments = ["--base-url", served.url, "--limit", "60", "--seed", str(SEED), "--json", str(out)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    groups = json.loads(out.read_text(encoding="utf-8"))["groups"]
    assert {row["group"] for row in groups} == set(reported)
    for row in groups:
        assert row["accuracy"] >= reported[row["group"]] - 0.15, row
        assert row["blank"] <= row["chance"] + 0.2, row


def test_bad_images_are_the_callers_fault_and_the_server_stays_up(
    served: Served, items: dict[str, list[Item]], web: tuple[Path, str]
) -> None:
    folder, address = web
    item = items["colour, one shape"][3]
    item.image.save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not an image", encoding="utf-8")
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "PNG")
    (folder / "dot.png").write_bytes(dot.getvalue())
    Image.new("RGB", (3000, 3)).save(folder / "line.png")
    bad = {
        f"{address}/cut.png": "image",
        f"{address}/text.png": "image",
        f"{address}/dot.png": "1x1",
        f"{address}/line.png": "elongated",
        f"{address}/absent.png": "404",
        "http://127.0.0.1:9/refused.png": "",
        "http://10.0.0.1/private.png": "",
        "ftp://example.com/a.png": "",
    }
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        for url, sentence in bad.items():
            with pytest.raises(openai.BadRequestError) as caught:
                ask(client, url, "What is this?")
            message = str(caught.value.body["message"])  # type: ignore[index]
            assert sentence in message, message
            assert "Traceback" not in message
        with pytest.raises(openai.BadRequestError):
            ask(client, f"{address}/whole.png", "word " * 5000)
        assert is_right(ask(client, f"{address}/whole.png", item.question), item.answer)
