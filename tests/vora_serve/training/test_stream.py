"""Data files become examples: every format, no sample twice, broken ones named, resumed exactly."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from model_plugin import ConfigError
from tests.vora_serve.training import files, world
from vora_serve.training import SampleError
from vora_serve.training.conversations import read_row, shorten
from vora_serve.training.data import IGNORE, Example, Tokeniser
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.preflight import check_sources
from vora_serve.training.recipe import parse_recipe
from vora_serve.training.rows import count_json, read_json
from vora_serve.training.stream import Shard


@pytest.fixture(scope="module")
def tokeniser() -> Tokeniser:
    return Tokeniser(world.processor(), max_length=200)


def data(*sources: Path | dict[str, Any], **settings: Any) -> Data:
    given = [s if isinstance(s, dict) else {"files": [str(s)]} for s in sources]
    return parse_recipe(Data, {"sources": given, "shuffle_buffer": 8} | settings)


def numbers(tokeniser: Tokeniser, examples: list[Example]) -> list[int]:
    """Which samples of :mod:`files` these are, by their questions; packs hold several."""
    found = []
    for example in examples:
        text = tokeniser.processor.tokenizer.decode(example.input_ids)
        found += [int(n) for n in re.findall(r"Colour (\d+)\?", text)]
    return found


@pytest.mark.parametrize("kind", ["jsonl", "json array", "parquet", "nested parquet", "tar"])
def test_every_format_gives_images_and_answers(
    tmp_path: Path, tokeniser: Tokeniser, kind: str
) -> None:
    if kind == "jsonl":
        file = files.write_jsonl(tmp_path, 8)
    elif kind == "json array":
        records = [
            {"id": i, "image": f"{i}.png", "conversations": files.turns(i)} for i in range(8)
        ]
        for i in range(8):
            (tmp_path / f"{i}.png").write_bytes(files.png(i))
        file = tmp_path / "llava.json"
        file.write_text(json.dumps(records, indent=1))
    elif kind == "tar":
        file = files.write_tar(tmp_path / "shard.tar", 8)
    else:
        file = files.write_parquet(tmp_path / "a.parquet", 8, nested=kind.startswith("nested"))
    shard = Shard(data(file), tokeniser, seed=1, number=0)
    examples = [next(shard) for _ in range(8)]
    assert sorted(numbers(tokeniser, examples)) == list(range(8))
    for example in examples:
        number = numbers(tokeniser, [example])[0]
        assert int((example.image_ids == 0).sum()) == 64
        answer = tokeniser.processor.tokenizer.decode(example.labels[example.labels != IGNORE])
        assert answer == f"{list(files.RGB)[number % 3]}<|im_end|>"
    assert shard.skipped.count == 0


def test_shards_share_a_source_without_overlap(tmp_path: Path, tokeniser: Tokeniser) -> None:
    single = files.write_jsonl(tmp_path / "one", 12)
    shards = [files.write_parquet(tmp_path / f"{i}.parquet", 4, first=4 * i) for i in range(3)]
    many = {"files": [str(shard) for shard in shards]}
    for source in (single, many):
        settings = data(source, shards=3, shuffle_buffer=4)
        seen = []
        for number in range(3):
            shard = Shard(settings, tokeniser, seed=2, number=number)
            seen += numbers(tokeniser, [next(shard) for _ in range(4)])
        assert sorted(seen) == list(range(12))


def test_sources_mix_by_weight_and_epochs_differ(tmp_path: Path, tokeniser: Tokeniser) -> None:
    images = files.write_jsonl(tmp_path, 6)
    text = files.write_text(tmp_path / "text.jsonl", 50)
    sources = ({"files": [str(images)], "weight": 3}, {"files": [str(text)], "weight": 1})
    shard = Shard(data(*sources), tokeniser, seed=3, number=0)
    examples = [next(shard) for _ in range(120)]
    share = sum(len(e.image_grid_hw) for e in examples) / len(examples)
    assert 0.6 < share < 0.9
    with_images = [e for e in examples if len(e.image_grid_hw)]
    order = numbers(tokeniser, with_images)
    epochs = [tuple(order[i : i + 6]) for i in range(0, 60, 6)]
    assert len(set(epochs)) > 5, "the order should change from epoch to epoch"


@pytest.mark.parametrize("pack", [False, True])
def test_a_shard_is_resumed_exactly(tmp_path: Path, tokeniser: Tokeniser, pack: bool) -> None:
    first = files.write_parquet(tmp_path / "a.parquet", 10)
    second = files.write_text(tmp_path / "text.jsonl", 30)
    tar = files.write_tar(tmp_path / "c.tar", 7, first=20)
    settings = data(first, second, tar, pack=pack, pack_window=4, shards=2)
    whole = Shard(settings, tokeniser, seed=4, number=1)
    examples, states = [], []
    for _ in range(30):
        examples.append(next(whole))
        states.append(json.loads(json.dumps(whole.state)))
    for place in (0, 3, 7, 8, 17, 28):
        resumed = Shard(settings, tokeniser, seed=4, number=1, state=states[place])
        for example in examples[place + 1 :]:
            other = next(resumed)
            for name, tensor in vars(example).items():
                assert tensor is None or torch.equal(tensor, vars(other)[name]), (place, name)
    elsewhere = Shard(settings, tokeniser, seed=4, number=1, state=states[3])
    assert not torch.equal(next(elsewhere).input_ids, examples[9].input_ids)


QA = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
BROKEN = {
    "no JSON": '{"id": 1, "conv',
    "no object": "[1",
    "no conversation": '{"id": 1}',
    "empty answer": {"conversations": [QA[0], {"from": "gpt", "value": " "}]},
    "no answer": {"conversations": QA[:1]},
    "unknown speaker": {"conversations": [{"from": "cat", "value": "x"}]},
    "missing image": {"frames": ["gone.png"], "conversations": QA},
    "empty field": {"image": "", "conversations": QA},
    "no image": {"frames": ["text.png"], "conversations": QA},
    "place without image": {"conversations": [{"from": "human", "value": "<image>?"}, QA[1]]},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_samples_are_skipped_and_named(
    tmp_path: Path, tokeniser: Tokeniser, kind: str
) -> None:
    file = files.write_jsonl(tmp_path, 7)
    (tmp_path / "text.png").write_text("not an image")
    lines = file.read_text().splitlines()
    broken = BROKEN[kind]
    lines.insert(3, broken if isinstance(broken, str) else json.dumps(broken))
    file.write_text("\n".join(lines))
    shard = Shard(data(file, shuffle_buffer=8), tokeniser, seed=1, number=0)
    examples = [next(shard) for _ in range(7)]
    assert sorted(numbers(tokeniser, examples)) == list(range(7))
    assert shard.skipped.count == 1
    ((name, _, reason),) = shard.skipped.report()
    assert name == f"{file}:4"
    assert reason.endswith((".", ")", "'", "3", "4"))
    assert shard.skipped.report() == [], "each is reported once"
    impatient = Shard(data(file, shuffle_buffer=8, max_skipped=2), tokeniser, seed=1, number=0)
    with pytest.raises(SampleError, match=r"max_skipped \(2\).*:4"):
        numbers(tokeniser, [next(impatient) for _ in range(40)])


def test_a_tar_that_breaks_off_is_named(tmp_path: Path, tokeniser: Tokeniser) -> None:
    file = files.write_tar(tmp_path / "a.tar", 6)
    file.write_bytes(file.read_bytes()[:5000])
    shard = Shard(data(file, shuffle_buffer=4), tokeniser, seed=1, number=0)
    for _ in range(4):
        next(shard)
    assert any("breaks off" in reason for _, _, reason in shard.skipped.report())


def test_arrays_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"id": i, "text": 'a "[{' * (i % 9), "nested": [[i], {}]} for i in range(60)]
    file = tmp_path / "array.json"
    file.write_text("\n " + json.dumps(records))
    monkeypatch.setattr("vora_serve.training.rows._CHUNK", 50)
    rows = list(read_json(str(file), 0, 100))
    assert count_json(str(file)) == 60
    assert [{k: v for k, v in row.items() if k != "__name__"} for row in rows] == records
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(records)[:-30])
    assert "breaks off" in list(read_json(str(cut), 0, 100))[-1]["__fault__"]


def test_long_conversations_lose_their_last_questions(tokeniser: Tokeniser) -> None:
    row = {"conversations": files.turns(1) + files.turns(2, words=150), "frames": [files.png(1)]}
    sample = read_row(row)
    with pytest.raises(SampleError, match="max_length is 200"):
        tokeniser(sample)
    shorter = shorten(sample)
    assert shorter is not None
    assert [m["role"] for m in shorter.messages] == ["user", "assistant"]
    assert len(shorter.images) == 1
    tokeniser(shorter)
    assert shorten(shorter) is None


def test_places_of_images_are_kept() -> None:
    row = {
        "images": [files.png(0), {"bytes": files.png(1), "path": None}],
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "<image>\nand <image>?"},
            {"role": "assistant", "content": "yes <image>"},
        ],
    }
    sample = read_row(row)
    assert [image.size[0] for image in sample.images] == [40, 41]
    parts = sample.messages[1]["content"]
    assert [part["type"] for part in parts] == ["image", "text", "image", "text"]
    assert sample.messages[2]["content"] == "yes <image>", "an answer's text is only text"
    with pytest.raises(SampleError, match="places 2 images, but the row holds 1"):
        read_row(row | {"images": [files.png(0)]})


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [{"files": ["x.jsonl"], "wieght": 2}]}, "wieght"),
        ({"sources": [{"files": ["x"], "weight": 0}]}, "weight"),
        ({"sources": [{"files": ["x"]}], "pack": True, "shuffle_buffer": 8}, "pack_window"),
    ],
)
def test_a_wrong_section_is_refused(section: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_recipe(Data, section)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data file .*gone\*\.jsonl"):
        Source(files=(str(tmp_path / "gone*.jsonl"),)).resolve()
    (tmp_path / "data.bin").write_text("")
    with pytest.raises(ConfigError, match="is not clear from the names"):
        Source(files=(str(tmp_path / "data.bin"),)).resolve()
    file = files.write_jsonl(tmp_path, 1)
    with pytest.raises(ConfigError, match="no folder of images"):
        Source(files=(str(file),), image_dir=str(tmp_path / "nowhere")).resolve()


def test_images_elsewhere_are_found(tmp_path: Path, tokeniser: Tokeniser) -> None:
    data = files.write_jsonl(tmp_path / "images", 3)
    moved = data.rename(tmp_path / "data.jsonl")
    images = str(tmp_path / "images")
    source = Data(sources=(Source(files=(str(moved),), image_dir=images),), shuffle_buffer=4)
    assert check_sources(source, tokeniser) > 0
    beside = Data(sources=(Source(files=(str(moved),)),), shuffle_buffer=4)
    with pytest.raises(ConfigError, match="is not there"):
        check_sources(beside, tokeniser)
