"""Built checkpoints are what their readers expect: names, shapes, tokens, sizes on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from loadtest.checkpoints import WORDS, build_llava, build_qwen2_5_vl, build_vora
from loadtest.checkpoints.writer import to_bfloat16, write_weights
from loadtest.shapes import shape
from model_plugin.checkpoint import Checkpoint
from vora_core.errors import ConfigError

TINY = shape("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    build_vora(out / "vora", TINY)
    build_vora(out / "merged", TINY, merge=2)
    build_llava(out / "llava", TINY)
    build_qwen2_5_vl(out / "qwen", TINY)
    return out


@pytest.mark.parametrize("name", ["vora", "merged"])
def test_vora_is_a_complete_released_checkpoint(folder: Path, name: str) -> None:
    checkpoint = Checkpoint.open(folder / name)
    checkpoint.check()
    assert checkpoint.config.is_merged
    assert checkpoint.config.spatial_merge_size == (2 if name == "merged" else 1)


def test_the_check_can_fail(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "vora").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(Exception, match="layers"):
        Checkpoint.open(tmp_path).check()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llava", LlavaForConditionalGeneration), ("qwen", Qwen2_5_VLForConditionalGeneration)],
)
def test_baselines_hold_every_tensor_of_their_class(folder: Path, name: str, kind: type) -> None:
    with torch.device("meta"):
        model = kind(AutoConfig.from_pretrained(folder / name))
    expected = sorted(tuple(p.shape) for n, p in model.named_parameters() if "head." not in n)
    tensors = load_file(folder / name / "model.safetensors")
    assert sorted(tuple(t.shape) for t in tensors.values()) == expected
    assert all(t.dtype == torch.bfloat16 for t in tensors.values())
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_the_llm_is_the_same(folder: Path) -> None:
    vora = load_file(folder / "vora" / "model.safetensors")
    llava = load_file(folder / "llava" / "model.safetensors")
    ours = {n.removeprefix("llm."): t.shape for n, t in vora.items() if n.startswith("llm.")}
    theirs = {
        n.removeprefix("language_model."): t.shape
        for n, t in llava.items()
        if n.startswith("language_model.")
    }
    assert ours == theirs


@pytest.mark.parametrize("name", ["vora", "llava", "qwen"])
def test_every_token_has_a_text_and_common_words_are_one(folder: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    assert len(tokenizer) == TINY.llm.vocab
    text = "".join(f" {word}" for word in WORDS)
    assert len(tokenizer(text).input_ids) == len(WORDS)
    assert all(tokenizer.decode([at]) for at in range(TINY.llm.vocab))
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " the"}]}],
        add_generation_prompt=True,
        return_dict=False,
    )
    config = json.loads((folder / name / "config.json").read_text())
    image = config.get("image_token_id", config.get("image_token_index"))
    assert ids.count(image) == 1


def test_large_weights_are_split_and_read_back(tmp_path: Path) -> None:
    shapes = [(f"layer.{at}.weight", (10, 7)) for at in range(5)] + [("norm.weight", (3,))]
    assert write_weights(tmp_path, shapes, seed=1, max_shard_bytes=300) == 5 * 70 + 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    for name, file in index["weight_map"].items():
        assert tuple(load_file(tmp_path / file)[name].shape) == dict(shapes)[name]
    again = tmp_path / "again"
    again.mkdir()
    write_weights(again, shapes, seed=1, max_shard_bytes=300)
    for file in sorted(tmp_path.glob("*.safetensors")):
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_rounding_to_bfloat16_is_torchs() -> None:
    values = np.random.default_rng(0).standard_normal(4096, dtype=np.float32)
    ours = torch.from_numpy(to_bfloat16(values).view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(values).to(torch.bfloat16))


def test_what_is_there_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        build_vora(folder / "vora", TINY)
    with pytest.raises(ConfigError, match="cannot be merged 3 x 3"):
        build_vora(folder / "new", TINY, merge=3)
    assert not (folder / "new").exists()
    with pytest.raises(ConfigError, match="Unknown shape '9b'"):
        shape("9b")
