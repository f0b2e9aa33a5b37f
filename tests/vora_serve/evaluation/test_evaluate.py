"""The evaluation asks a real server over HTTP and counts what it says."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.vora_serve.world.emoji import fake_package
from vora_core.errors import ConfigError
from vora_serve.accuracy import sign_test
from vora_serve.evaluation import Endpoint, ask_all, draw_table, summarise
from vora_serve.evaluation.cli import evaluate
from vora_serve.evaluation.client import EvaluationError
from vora_serve.world.suite import ANSWERS, GROUPS, build_suite
from vora_serve.world.wide import FAMILIES, find_assets
from vora_serve.world.wide.suite import build_wide_suite

Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def completion(text: str) -> tuple[int, bytes]:
    message = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return 200, json.dumps(message).encode()


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback that answers chat requests with a function; and what it was sent."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, json.dumps({"data": [{"id": "little"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append(body | {"path": self.path, "auth": self.headers.get("authorization")})
            self.reply(*answer(body))

        def reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shown(body: dict[str, Any]) -> tuple[Image.Image, str]:
    image, text = body["messages"][0]["content"]
    data = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(data))), text["text"]


def test_replies_come_in_order_and_images_arrive_unharmed() -> None:
    images = [Image.new("RGB", (4 + i, 3), (i * 9, 0, 200)) for i in range(20)]

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        image, text = shown(body)
        return completion(f"{text} {image.size[0]} {image.getpixel((0, 0))[0]}")  # type: ignore[index]

    done: list[int] = []
    with serving(answer) as (url, bodies):
        questions = [(image, f"q{i}") for i, image in enumerate(images)]
        endpoint = Endpoint(url, api_key="secret", concurrency=5)
        replies = ask_all(endpoint, questions, lambda: done.append(1))
    assert replies == [f"q{i} {4 + i} {i * 9}" for i in range(20)]
    assert len(done) == 20
    assert {body["path"] for body in bodies} == {"/v1/chat/completions"}
    assert {body["auth"] for body in bodies} == {"Bearer secret"}
    assert {body["model"] for body in bodies} == {"little"}
    assert {body["temperature"] for body in bodies} == {0.0}


def test_the_command_counts_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {}
    for item in build_suite(10, seed=3):
        known[(item.image.tobytes(), item.question)] = item.answer

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        image, text = shown(body)
        return completion(known.get((image.convert("RGB").tobytes(), text), "red"))

    file = tmp_path / "result.json"
    with serving(answer) as (url, bodies):
        evaluate(url + "/v1", limit=10, seed=3, output=file, concurrency=4)
    assert len(bodies) == 2 * 10 * len(GROUPS)
    rows = {row["group"]: row for row in json.loads(file.read_text())["groups"]}
    assert set(rows) == set(GROUPS)
    assert all(row["accuracy"] == 1.0 for row in rows.values())
    # A blank image is unknown to the server, which then says "red".
    reds = sum(item.answer == "red" for item in build_suite(10, 3) if item.group == "colour")
    assert rows["colour"]["blank"] == reds / 10
    assert rows["shape"]["blank"] == 0.0
    table = capsys.readouterr().out
    assert "| digit | 10 | 100.0% | 0.0% | 10.0% |" in table


def test_the_wide_world_is_asked_about_two_images_at_once(tmp_path: Path) -> None:
    folder = fake_package(tmp_path / "emoji")
    items = build_wide_suite(find_assets(folder), 4, seed=3)
    known = {
        (*(image.tobytes() for image in item.images), item.question): item.answer for item in items
    }

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        *images, text = body["messages"][0]["content"]
        shown_images = [
            Image.open(
                io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2]))
            ).convert("RGB")
            for image in images
        ]
        key = (*(image.tobytes() for image in shown_images), text["text"])
        return completion(known.get(key, "nothing"))

    file = tmp_path / "result.json"
    with serving(answer) as (url, bodies):
        evaluate(url, suite="world", data=folder, limit=4, seed=3, output=file, concurrency=4)
    assert len(bodies) == 2 * 4 * len(FAMILIES)
    assert {len(body["messages"][0]["content"]) for body in bodies} == {2, 3}
    result = json.loads(file.read_text())
    assert result["suite"] == "world"
    rows = {row["group"]: row for row in result["groups"]}
    assert set(rows) == set(FAMILIES)
    assert all((row["accuracy"], row["blank"]) == (1.0, 0.0) for row in rows.values())


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((400, b'{"error": {"message": "Too dark."}}'), "400: Too dark."),
        ((502, b"<html>"), "502 and no JSON"),
        ((200, b'{"choices": []}'), "not a chat completion"),
    ],
)
def test_refusals_become_one_sentence(reply: tuple[int, bytes], said: str) -> None:
    with serving(lambda _: reply) as (url, _), pytest.raises(EvaluationError, match=said):
        ask_all(Endpoint(url, concurrency=1), [(Image.new("RGB", (4, 4)), "?")])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("ftp://127.0.0.1", "must begin with"),
        ("127.0.0.1:8000", "must begin with|is not a URL"),
    ],
)
def test_a_server_that_is_not_there(url: str, said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        ask_all(Endpoint(url), [(Image.new("RGB", (4, 4)), "?")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"suite": "seedbench"}, "suites.0.kind"),
        ({"suite": "vqa"}, "needs a data file"),
        ({"suite": "demo", "data": Path("x")}, "takes no data file"),
        ({"suite": "pope", "data": Path("/nowhere.json")}, "cannot be read"),
        ({"config": Path("/nowhere.yaml")}, "cannot be read"),
        ({"overrides": ["x"]}, "key=value"),
        ({"overrides": ["suites.4.limit=2"]}, "has no keys"),
        ({"overrides": ["wrong=2"]}, "there is no key wrong"),
    ],
)
def test_a_wrong_evaluation_is_refused_before_anything_is_asked(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate(**({"base_url": "http://127.0.0.1:9"} | arguments))


def test_the_table() -> None:
    groups = [("a", 0.25), ("b", 0.5), ("a", 0.25)]
    rows = summarise(groups, [True, False, False], [False, True, False])
    assert [(row.group, row.questions, row.accuracy, row.blank) for row in rows] == [
        ("a", 2, 0.5, 0.0),
        ("b", 1, 0.0, 1.0),
    ]
    assert "| b | 1 | 0.0% | – | 50.0% |" in draw_table(
        summarise(groups, [True, False, False], None)
    )
    assert set(ANSWERS) <= set(GROUPS)


def test_better_by_more_than_luck() -> None:
    assert sign_test([True] * 3, [True] * 3) == 1, "nothing differs"
    assert sign_test([True] * 8 + [False], [False] * 8 + [True]) == pytest.approx(10 / 512)
    assert sign_test([False] * 4, [True] * 4) == 1
    assert sign_test([True] * 60 + [False] * 60, [True] * 12 + [False] * 108) < 1e-9
