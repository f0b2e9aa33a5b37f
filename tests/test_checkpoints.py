"""The checkpoint writer: deterministic, readable by the oracle, and every layout the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import FIXTURES, write_checkpoint
from tests.oracle import Oracle, read_weights

PROMPT = "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n"


@pytest.fixture(scope="module")
def image() -> Image.Image:
    with Image.open(FIXTURES / "b.png") as image:
        return image.convert("RGB")


@pytest.mark.parametrize("llm", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "pretrain"},
        {"layout": "finetuned", "biases": False},
        {"tied": True, "spatial_merge_size": 2, "style": "ours", "resolution": "native"},
    ],
)
def test_oracle_reads_what_is_written(
    tmp_path: Path, image: Image.Image, llm: Any, options: dict[str, Any]
) -> None:
    oracle = Oracle(write_checkpoint(tmp_path, llm=llm, **options))
    out = oracle.logprobs(PROMPT, [image])
    assert np.isfinite(out).all()
    if "tied" not in options:  # a tied random model repeats its last token, of course
        greedy = oracle.greedy(PROMPT, [image], 6)
        assert len(set(greedy)) > 2, "a degenerate model would hide mistakes"


def test_file_kinds_hold_the_same_tensors(tmp_path: Path) -> None:
    kinds: tuple[Any, ...] = ("safetensors", "sharded", "bin", "sharded-bin")
    first, *others = (
        read_weights(write_checkpoint(tmp_path / kind, layout="pretrain", files=kind))
        for kind in kinds
    )
    for other in others:
        assert other.keys() == first.keys()
        assert all((other[name] == first[name]).all() for name in first)


def test_seed_decides(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=1)
    write_checkpoint(tmp_path / "c", seed=2)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c


def test_names_are_those_of_the_released_fixtures(tmp_path: Path) -> None:
    for layout, folder in (("merged", "merged"), ("pretrain", "pretrain")):
        ours = read_weights(write_checkpoint(tmp_path / layout, layout=layout))  # type: ignore[arg-type]
        assert ours.keys() == read_weights(FIXTURES / folder).keys()


@pytest.mark.parametrize(
    ("options", "flip"),
    [
        ({}, {"biases": False}),
        ({}, {"causal": True}),
        ({"layout": "pretrain"}, {"lora": False}),
        ({"resolution": "native"}, {"position_mode": "interpolate"}),
    ],
)
def test_flipped_quirks_change_the_outputs(
    tmp_path: Path, image: Image.Image, options: dict[str, Any], flip: dict[str, Any]
) -> None:
    path = write_checkpoint(tmp_path, **options)
    small = image.resize((70, 42))
    right = Oracle(path).logprobs(PROMPT, [small])
    assert np.abs(Oracle(path, **flip).logprobs(PROMPT, [small]) - right).max() > 0.01
