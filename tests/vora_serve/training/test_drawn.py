"""Samples that are drawn while training: always the same ones, and none of the test split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from model_plugin import ConfigError
from tests.vora_serve.training import files, world
from tests.vora_serve.world.emoji import fake_package
from vora_serve.training.conversations import read_row
from vora_serve.training.data import Tokeniser
from vora_serve.training.data_recipe import Data, Source
from vora_serve.training.preflight import check_sources
from vora_serve.training.recipe import parse_recipe
from vora_serve.training.sources import units_of
from vora_serve.training.stream import Shard
from vora_serve.world.wide import FAMILIES
from vora_serve.world.wide.rows import draw_rows


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_package(tmp_path_factory.mktemp("emoji") / "package")


@pytest.fixture(scope="module")
def tokeniser() -> Tokeniser:
    return Tokeniser(world.processor(), max_length=600)


def drawn(emoji: Path, *more: dict[str, Any], **settings: Any) -> Data:
    sources = [{"files": [str(emoji)], "format": "world"}, *more]
    return parse_recipe(Data, {"sources": sources, "shuffle_buffer": 6} | settings)


def pixels(row: dict[str, Any]) -> bytes:
    return b"".join(image.tobytes() for image in row["images"])


def test_a_number_gives_the_same_row_and_splits_never_meet(emoji: Path) -> None:
    rows = list(draw_rows(emoji, "train", 0, 60))
    again = list(draw_rows(emoji, "train", 20, 30))
    assert [pixels(row) for row in rows[20:30]] == [pixels(row) for row in again]
    tested = {pixels(row) for row in draw_rows(emoji, "test", 0, 60)}
    assert tested.isdisjoint(pixels(row) for row in rows)
    kinds = Counter(len(row["images"]) for row in rows)
    assert set(kinds) == {1, 2}
    for row in rows:
        assert len(read_row(row).images) == len(row["images"])
    assert any(len(row["messages"]) > 2 for row in rows), "scenes are asked about more than once"


def test_families_are_drawn_as_often_as_is_said(emoji: Path) -> None:
    none = dict.fromkeys((*FAMILIES, "shapes", "digits"), 0.0)
    rows = draw_rows(emoji, "train", 0, 400, {**none, "digits": 3.0, "pair": 1.0})
    images = Counter(len(row["images"]) for row in rows)
    assert 240 < images[1] < 350, "three in four are digits"
    assert images[2] == 400 - images[1]
    source = parse_recipe(
        Source, {"files": [str(emoji)], "format": "world", "families": {**none, "clock": 0.5}}
    )
    drawn = units_of(source).units[0].read(0, 20)
    assert all(":" in row["messages"][-1]["content"] for row in drawn), "the time, as 3:05"


@pytest.mark.parametrize("pack", [False, True])
def test_a_shard_is_resumed_exactly_beside_a_file(
    tmp_path: Path, emoji: Path, tokeniser: Tokeniser, pack: bool
) -> None:
    text = files.write_text(tmp_path / "text.jsonl", 30)
    settings = drawn(emoji, {"files": [str(text)]}, pack=pack, pack_window=3, shards=2)
    whole = Shard(settings, tokeniser, seed=4, number=1)
    examples, states = [], []
    for _ in range(9):
        examples.append(next(whole))
        states.append(json.loads(json.dumps(whole.state)))
    assert whole.skipped.count == 0
    resumed = Shard(settings, tokeniser, seed=4, number=1, state=states[4])
    for example in examples[5:]:
        other = next(resumed)
        assert torch.equal(example.input_ids, other.input_ids)
        assert torch.equal(example.pixel_values, other.pixel_values)
    first = Shard(settings, tokeniser, seed=4, number=0)
    assert not torch.equal(next(first).pixel_values, examples[0].pixel_values), "other rows"


def test_the_first_rows_are_looked_at(emoji: Path, tokeniser: Tokeniser) -> None:
    assert check_sources(drawn(emoji), tokeniser) > 64  # tokens: an image is among them


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, emoji: Path) -> None:
    with pytest.raises(ConfigError, match="npm install"):
        Source(files=(str(tmp_path),), format="world").resolve()
    with pytest.raises(ConfigError, match="one entry in files"):
        Source(files=(str(emoji), str(emoji)), format="world").resolve()
    with pytest.raises(ConfigError, match="split"):
        parse_recipe(Source, {"files": [str(emoji)], "format": "world", "split": "all"})
    none = dict.fromkeys((*FAMILIES, "shapes", "digits"), 0.0)
    for families, said in (
        ({"cats": 1.0}, "cats"),
        ({"clock": -1.0}, "greater than or equal to 0"),
        (none, "nothing to draw"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_recipe(Source, {"files": [str(emoji)], "format": "world", "families": families})
    with pytest.raises(ConfigError, match="format world"):
        parse_recipe(Source, {"files": ["a.jsonl"], "families": {"clock": 1.0}})
