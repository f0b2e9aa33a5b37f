"""Rows as people have them: trained rightly, skipped with the reason, or refused before the run."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from model_plugin import ConfigError
from tests.vora_serve.training import bases, files, world
from vora_serve.cli import main
from vora_serve.training.conversations import read_row
from vora_serve.training.data import Tokeniser
from vora_serve.training.data_recipe import Data
from vora_serve.training.labels import SampleError
from vora_serve.training.preflight import check_sources
from vora_serve.training.recipe import parse_recipe
from vora_serve.training.stream import Shard

PNG = files.png(0)
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
QUESTION, ANSWER = {"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}
QA = [QUESTION, ANSWER]
PLACED = [{"from": "human", "value": "<image>\nx"}, ANSWER]


def shape(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Roles and contents, images as ``#``."""
    sample = read_row(row)
    shown = []
    for message in sample.messages:
        content = message["content"]
        if isinstance(content, list):
            content = "".join("#" if p["type"] == "image" else p["text"] for p in content)
        shown.append((message["role"], content))
    assert sum(text.count("#") for _, text in shown) == len(sample.images)
    return shown


def asked(content: Any, **row: Any) -> dict[str, Any]:
    """An OpenAI-style row."""
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "y"}]
    return {"messages": said, **row}


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "x"}
UNDERSTOOD: dict[str, tuple[dict[str, Any], str]] = {
    "OpenAI, image in the content": (
        asked([{"type": "image_url", "image_url": {"url": URL}}, TEXT]), "#x"),
    "OpenAI, image_url as a string": (asked([{"type": "image_url", "image_url": URL}, TEXT]), "#x"),
    "OpenAI responses": (
        asked([{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "x"}]),
        "#x"),
    "TRL, places and a list of images": (asked([IMAGE, TEXT], images=[PNG]), "#x"),
    "TRL, nulls from Parquet": (
        asked([{"type": "image", "text": None, "image": None}, TEXT | {"image": None}],
              images=[{"bytes": PNG, "path": None}]), "#x"),
    "image inside the part": (asked([{"type": "image", "image": {"bytes": PNG}}, TEXT]), "#x"),
    "Qwen, no type": (asked([{"image": URL}, {"text": "x"}]), "#x"),
    "Anthropic": (
        asked([{"type": "image", "source": {"type": "base64", "data": URL}}, TEXT]), "#x"),
    "own and the row's": (
        asked([{"type": "image", "image": PNG}, TEXT, IMAGE], images=[files.png(3)]), "#x#"),
    "text in parts": (asked([TEXT, {"type": "text", "text": "z"}]), "xz"),
    "places in a part's text": (asked([{"type": "text", "text": "<image>x"}], images=[PNG]), "#x"),
    "base64": ({"image": base64.b64encode(PNG * 60).decode(), "conversations": QA}, "#x"),
    "chatgpt": ({"conversations": [QUESTION, {"from": "chatgpt", "value": "y"}]}, "x"),
    "Human": ({"conversations": [{"from": "Human", "value": "x"}, ANSWER]}, "x"),
    "leading answer": ({"conversations": [ANSWER, *QA]}, "x"),
    "unanswered end": ({"conversations": [*QA, {"from": "human", "value": "more?"}]}, "x"),
    "TRL prompt and completion": (
        {"prompt": [{"role": "user", "content": "x"}],
         "completion": [{"role": "assistant", "content": "y"}]}, "x"),
    "prompt and completion": ({"prompt": "x", "completion": "y"}, "x"),
    "The Cauldron": ({"images": [PNG], "texts": [{"user": "x", "assistant": "y"}]}, "#x"),
    "empty list of images": ({"images": [], "conversations": QA}, "x"),
    "null image": ({"image": None, "conversations": QA}, "x"),
    "no tools": ({"tools": "[]", "tool_calls": None, "conversations": QA}, "x"),
    "code about videos": (
        {"conversations": [{"from": "human", "value": "<video>a</video>"}, ANSWER]},
        "<video>a</video>"),
    "where it came from": ({"image": PNG, "coco_url": "https://x/y.jpg", "conversations": QA},
        "#x"),
} | {
    f"field {name}": ({name: PNG if name == "img" else [PNG], "conversations": QA}, "#x")
    for name in ("image_path", "image_paths", "img", "imgs", "image_url", "media", "picture")
}  # fmt: skip


@pytest.mark.parametrize("kind", UNDERSTOOD)
def test_forms_that_are_understood(kind: str) -> None:
    row, question = UNDERSTOOD[kind]
    assert shape(row) == [("user", question), ("assistant", "y")]


def test_images_of_an_unanswered_end_are_left_out() -> None:
    row = {"images": [PNG, files.png(5)], "conversations": [*PLACED, PLACED[0]]}
    assert [image.width for image in read_row(row).images] == [40]


SKIPPED: dict[str, tuple[dict[str, Any], str, str]] = {
    "video field": ({"video": "a.mp4", "conversations": QA}, "other media", "field video"),
    "video in media": ({"media": ["a.mp4"], "conversations": QA}, "other media", "field media"),
    "video place": (
        {"image": PNG, "conversations": [{"from": "human", "value": "<video>\nx"}, ANSWER]},
        "other media", "places a video"),
    "video part": (asked([{"type": "video", "video": "a.mp4"}, TEXT]), "other media", "'video'"),
    "field of another name": (
        {"screenshots": ["a.png"], "conversations": QA}, "image field", "field screenshots"),
    "bytes of another name": (
        {"payload": {"bytes": PNG}, "conversations": QA}, "image field", "field payload"),
    "empty image": ({"image": "", "conversations": QA}, "image missing", "holds no image"),
    "no image": ({"image": [None], "conversations": QA}, "image missing", "holds no image"),
    "empty record": (
        {"image": {"bytes": None, "path": None}, "conversations": QA}, "image missing", "no image"),
    "address": (
        {"image": "https://x/a.jpg", "conversations": QA}, "image missing", "fetches nothing"),
    "place without image": ({"conversations": PLACED}, "image missing", "places 1 images"),
    "image without place": (
        {"images": [PNG, PNG], "conversations": PLACED}, "image unplaced", "row holds 2"),
    "part without image": (asked([IMAGE, TEXT]), "image missing", "places 1 images"),
    "answer with an image": (
        {"messages": [{"role": "user", "content": "x"},
                      {"role": "assistant", "content": [TEXT, IMAGE]}]},
        "image unplaced", "not a question"),
    "tool role": (
        {"messages": [*asked("x")["messages"], {"role": "tool", "content": "z"}]},
        "role", "'tool'"),
    "function role": (
        {"conversations": [*QA, {"from": "function_call", "value": "z"}]}, "role", "function_call"),
    "tool calls": (
        {"messages": [{"role": "user", "content": "x"},
                      {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]},
        "tools", "calls tools"),
    "tools": ({"tools": [{"name": "f"}], "conversations": QA}, "tools", "field tools"),
    "two questions": ({"conversations": [QUESTION, *QA]}, "conversation", "take turns"),
    "answers alone": ({"conversations": [ANSWER]}, "conversation", "no question with an answer"),
    "no conversation": ({"caption": "x", "id": 1}, "conversation", "caption, id"),
    "broken base64": (
        {"image": "data:image/png;base64,%%", "conversations": QA}, "image unreadable", "base64"),
    "half an image": (
        {"image": PNG[:60], "conversations": QA}, "image unreadable", "broken or incomplete"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SKIPPED)
def test_what_cannot_be_trained_on_is_named(kind: str) -> None:
    row, counted, sentence = SKIPPED[kind]
    with pytest.raises(SampleError, match=sentence) as raised:
        read_row(row)
    assert raised.value.kind == counted


def test_a_tar_with_its_json_before_its_images(tmp_path: Path) -> None:
    said = {f"{n}.json": json.dumps({"image": f"{n}.png", "id": n, "conversations": files.turns(n)})
            for n in range(4)}  # fmt: skip
    members = {name: text.encode() for name, text in said.items()}
    members |= {f"{n}.png": files.png(n) for n in range(4)}
    tar = files.write_members(tmp_path / "a.tar", members)
    tokeniser = Tokeniser(world.processor(), 300)
    shard = Shard(Data(sources=[{"files": [str(tar)]}], shuffle_buffer=4), tokeniser, 0, 0)
    assert [len(next(shard).image_grid_hw) for _ in range(4)] == [1] * 4
    assert shard.skipped.count == 0


def test_what_the_datasets_library_writes_is_read(tmp_path: Path) -> None:
    import datasets

    rows = [
        {"images": [{"bytes": files.png(n), "path": None}], "conversations": files.turns(n)}
        for n in range(3)
    ]
    features = datasets.Features(
        images=[datasets.Image()],
        conversations=[{"from": datasets.Value("string"), "value": datasets.Value("string")}],
    )
    datasets.disable_progress_bars()
    file = tmp_path / "a.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))
    data = Data(sources=[{"files": [str(file)]}], shuffle_buffer=3)
    shard = Shard(data, Tokeniser(world.processor(), 300), 0, 0)
    assert [len(next(shard).image_grid_hw) for _ in range(3)] == [1] * 3


def mixed(tmp_path: Path, good: int, missing: int, long: int = 0) -> Path:
    """Rows, of which some miss their image and some are too long."""
    rows = [{"conversations": files.turns(n)} for n in range(good)]
    rows += [{"image": f"gone/{n}.png", "conversations": QA} for n in range(missing)]
    rows += [{"conversations": files.turns(n, words=400)} for n in range(long)]
    random.Random(0).shuffle(rows)
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def draw(file: Path, count: int, **limits: Any) -> Shard:
    section = {"sources": [{"files": [str(file)]}], "shuffle_buffer": 50, **limits}
    shard = Shard(parse_recipe(Data, section), Tokeniser(world.processor(), 300), 0, 0)
    for _ in range(count):
        next(shard)
    return shard


def test_skips_are_counted_by_reason_and_long_answers_are_no_fault(tmp_path: Path) -> None:
    shard = draw(mixed(tmp_path, 60, 2, 40), 60, max_skipped=10)
    assert set(shard.skipped.reasons) == {"image missing", "too long"}
    assert shard.skipped.reasons["too long"] > 10
    with pytest.raises(SampleError, match=r"image missing: \d+.*max_skipped \(1\) allows"):
        draw(mixed(tmp_path, 60, 8), 60, max_skipped=1)


def test_a_share_may_be_skipped_beyond_the_count(tmp_path: Path) -> None:
    file = mixed(tmp_path, 95, 5)
    share = draw(file, 600, max_skipped=0, max_skipped_share=0.08).skipped
    assert 20 < share.count < 40
    with pytest.raises(SampleError, match=r"max_skipped \(0\) and max_skipped_share \(0.03\)"):
        draw(file, 900, max_skipped=0, max_skipped_share=0.03)
    both = parse_recipe(Data, {"sources": [{"files": ["x"]}]})
    assert (both.max_skipped, both.skipped_share) == (1000, 0.01)
    assert parse_recipe(Data, {"sources": [{"files": ["x"]}], "max_skipped": 5}).skipped_share == 0


def test_a_source_of_nothing_but_long_answers_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vora_serve.training.stream._BARREN", 100)
    with pytest.raises(SampleError, match="None of the last 100 samples"):
        draw(mixed(tmp_path, 0, 0, 20), 1)


def test_a_run_that_skipped_too_much_is_resumed_with_a_higher_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = bases.pretrain_recipe(tmp_path)
    file = mixed(tmp_path, 60, 8)
    command = ["vora-serve", "pretrain", "--config", str(recipe), "optimisation.save_every=0"]
    command += [f"data.sources=[{{files: ['{file}']}}]", "optimisation.steps=12"]

    def run(limit: int) -> int:
        monkeypatch.setattr("sys.argv", [*command, f"data.max_skipped={limit}"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert run(3) == 1
    said = capsys.readouterr().err
    assert "image missing: 4" in said
    assert "The last good state is of step" in said
    first = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert run(100) == 0
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [json.dumps(line) for line in lines[: len(first)]] == first, "resumed, not repeated"
    assert lines[-1]["skipped_by_reason"]["image missing"] == lines[-1]["skipped"] > 3
    assert lines[-1]["images"] == 0


def test_images_of_a_step_are_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = bases.pretrain_recipe(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["vora-serve", "pretrain", "--config", str(recipe), "optimisation.steps=6"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["images"] <= 4 for line in lines)
    assert sum(line["images"] for line in lines) > 6


def test_rows_of_nothing_known_are_refused_before_the_run(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    row = {"screenshots": ["a.png"], "conversations": QA}
    file.write_text("\n".join([json.dumps(row)] * 3))
    data = Data(sources=[{"files": [str(file)]}])
    with pytest.raises(ConfigError, match="field screenshots seems to hold images"):
        check_sources(data, Tokeniser(world.processor(), 300))
