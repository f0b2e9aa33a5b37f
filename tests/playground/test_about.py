"""What the page tells of a model before the first question: from its card, and nothing besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.playground.conftest import DEMO
from tests.vora_serve.gateway.conftest import Start
from tests.vora_serve.gateway.fake_engine import FakeEngine
from vora_serve.gateway.admission import hash_key
from vora_serve.gateway.playground.card import NOTHING, describe_card

PNG = (DEMO / "examples" / "colour.png").read_bytes()


def card(folder: Path, text: str) -> dict[str, Any]:
    (folder / "README.md").write_text(text, encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    describe_card.cache_clear()
    return describe_card(str(folder))


def test_the_demo_says_what_it_knows(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url, playground={"checkpoints": {"vora-test": str(DEMO)}})
    told = gateway.client.get("/playground/about", params={"model": "vora-test"}).json()
    assert "shapes and digits" in told["about"]
    assert told["examples"][0]["question"] == "How many shapes are there?"
    assert all(
        example["image"].startswith("data:image/png;base64,") for example in told["examples"]
    )
    assert gateway.client.get("/playground/about?model=none").status_code == 404


def test_only_for_models_that_the_key_may_use(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    entry = f"{{name: a, sha256: {hash_key('sk-secret')}, models: [other]}}"
    keys.write_text(f"keys:\n  - {entry}\n", encoding="utf-8")
    gateway = start_gateway(engine.url, auth={"keys_file": str(keys)})
    path = "/playground/about?model=vora-test"
    assert gateway.client.get(path).status_code == 401
    headers = {"authorization": "Bearer sk-secret"}
    assert gateway.client.get(path, headers=headers).status_code == 404


def test_a_card_in_the_hubs_form(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    told = card(
        tmp_path,
        "---\nwidget:\n- text: What?\n  src: a.png\n- text: Plain\n- src: a.png\n---\n"
        "# Name\n\n![badge](x)\n\n- list\n\n"
        "Reads [charts](https://x.example) and **text**.\n\nMore.\n",
    )
    assert told["about"] == "Reads charts and text."
    assert [(e["question"], e["name"]) for e in told["examples"]] == [
        ("What?", "a.png"),
        ("Plain", None),
    ]


@pytest.mark.parametrize(
    "source",
    ["../secret.png", "/etc/passwd", "sub/../../secret.png", "https://x.example/a.png", "text.png",
     "large.png", "absent.png", "sub"],
)  # fmt: skip
def test_a_card_reaches_no_file_but_small_images_of_its_folder(tmp_path: Path, source: str) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "text.png").write_text("root:x:0", encoding="utf-8")
    (folder / "large.png").write_bytes(PNG + bytes(300_000))
    told = card(folder, f"---\nwidget: [{{text: q, src: '{source}'}}]\n---\nText.\n")
    assert told["examples"] == [{"question": "q", "name": None, "image": None}]


@pytest.mark.parametrize(
    "text",
    ["", "---\n: [\n---\n", "---\nwidget: 3\n---\n", "---\n- a\n---\n", "# Only a heading\n",
     "---\nwidget: [1, {text: 2}]\n---\n"],
)  # fmt: skip
def test_cards_that_say_nothing(tmp_path: Path, text: str) -> None:
    assert card(tmp_path, text) == NOTHING
