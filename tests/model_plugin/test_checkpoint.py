"""Reading checkpoints: every tensor used or named, LoRA merged, all files alike. And writing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoProcessor

from model_plugin.checkpoint import Checkpoint
from model_plugin.errors import CheckpointError, ConfigError, VoRAError
from model_plugin.export import export_checkpoint, merge_checkpoint
from model_plugin.tensors import merge_lora
from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import Make, noise_image
from tests.oracle import Oracle, read_weights
from tests.oracle import merge_lora as oracle_merge
from vora_core.layout import part_of

Tensors = dict[str, torch.Tensor]
PROMPT = "<image>\nWhat is it?"


def served(path: Path) -> Tensors:
    """What the oracle computes with: LoRA merged, aux_vision left out."""
    merged = oracle_merge(read_weights(path))
    return {k: v for k, v in merged.items() if not k.startswith("aux_vision.")}


def spoiled(source: Path, folder: Path, change: Callable[[Tensors], Any]) -> Path:
    """A copy of a checkpoint with its tensors changed."""
    out = shutil.copytree(source, folder / "spoiled")
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors")
    return out


@pytest.mark.parametrize("llm", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("files", ["safetensors", "sharded", "bin", "sharded-bin"])
@pytest.mark.parametrize("layout", ["merged", "pretrain", "finetuned"])
def test_tensors_of_every_layout(make_checkpoint: Make, llm: str, files: str, layout: str) -> None:
    path = make_checkpoint(llm=llm, files=files, layout=layout)
    checkpoint = Checkpoint.open(path)
    checkpoint.check()
    assert checkpoint.layout == ("pretraining" if layout == "pretrain" else "merged")
    assert len(checkpoint.extra_biases) == 2 * (4 if llm == "qwen2" else 7)
    assert checkpoint.config.image_token_id == 6
    streamed = list(checkpoint.tensors())
    got, wanted = dict(streamed), served(path)
    assert len(streamed) == len(got)
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(got[name], tensor, atol=1e-6), name


@pytest.mark.parametrize("folder", ["merged", "pretrain"])
def test_every_tensor_of_the_released_fixtures_is_used(folder: str) -> None:
    """Each one is in the model that is loaded, with its value, or is the teacher's."""
    path = FIXTURES / folder
    checkpoint = Checkpoint.open(path)
    checkpoint.check()
    model = AutoModelForCausalLM.from_pretrained(path)
    state = model.state_dict()
    wanted = served(path)
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(state[name], tensor, atol=1e-6), name
    left = {n for n in read_weights(path) if n not in wanted}
    assert {part_of(n) for n in left} <= {"lora", "aux"}
    assert len(checkpoint.extra_biases) == 8


def test_merging_is_w_plus_b_a() -> None:
    checkpoint = Checkpoint.open(FIXTURES / "pretrain")
    raw = load_file(FIXTURES / "pretrain" / "model.safetensors")
    merged = dict(checkpoint.tensors())
    assert len(checkpoint.lora_modules) == 14
    for module in checkpoint.lora_modules:
        delta = raw[f"{module}.lora_B.weight"] @ raw[f"{module}.lora_A.weight"]
        assert delta.abs().max() > 1e-3
        assert torch.allclose(
            merged[f"{module}.weight"], raw[f"{module}.weight"] + delta, atol=1e-6
        )
        if f"{module}.bias" in raw:
            assert merged[f"{module}.bias"].equal(raw[f"{module}.bias"])


def test_merging_half_precision_rounds_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((8, 6), (4, 6), (8, 4))
    )
    stream = [("m.lora_B.weight", b), ("m.weight", weight), ("x", a), ("m.lora_A.weight", a)]
    merged = dict(merge_lora(stream, ["m"]))
    assert merged.keys() == {"m.weight", "x"}
    wanted = (weight.double() + b.double() @ a.double()).bfloat16()
    assert merged["m.weight"].dtype == torch.bfloat16
    assert (merged["m.weight"] - wanted).abs().max() <= 0.01 * wanted.abs().max()


@pytest.mark.parametrize("lost", ["m.weight", "m.lora_A.weight", "m.lora_B.weight"])
def test_half_a_layer_is_refused(lost: str) -> None:
    stream = {"m.weight": torch.ones(2, 2), "m.lora_A.weight": torch.ones(1, 2)}
    stream["m.lora_B.weight"] = torch.ones(2, 1)
    del stream[lost]
    with pytest.raises(CheckpointError, match="m among them"):
        list(merge_lora(stream.items(), ["m"]))


NORM = "llm.model.layers.1.input_layernorm.weight"
SPOILS: list[tuple[str, Callable[[Tensors], Any], str]] = [
    ("unknown", lambda t: t.update({"llm.model.extra.weight": torch.ones(3)}), "1 unknown.*extra"),
    ("foreign", lambda t: t.update({"vision_tower.x": torch.ones(3)}), r"unknown.*vision_tower\.x"),
    (
        "norm bias",
        lambda t: t.update({NORM[:-6] + "bias": torch.ones(64)}),
        "unknown.*layernorm.bias",
    ),
    ("missing", lambda t: t.pop(NORM), f"1 missing.*{NORM}"),
    ("no positions", lambda t: t.pop("vision_embedding.pos_embed"), "missing.*pos_embed"),
    ("shape", lambda t: t.update({NORM: torch.ones(63)}), rf"{NORM} is \[63\], not \[64\]"),
    (
        "bias shape",
        lambda t: t.update({"llm.model.layers.0.mlp.down_proj.bias": torch.ones(5)}),
        r"down_proj\.bias is \[5\]",
    ),
    (
        "half a LoRA",
        lambda t: t.pop("llm.model.layers.0.mlp.down_proj.lora_B.weight"),
        "down_proj.lora_A.weight lacks its other half",
    ),
    ("no head", lambda t: t.pop("llm.lm_head.weight"), "missing.*lm_head"),
]


@pytest.mark.parametrize(("change", "words"), [s[1:] for s in SPOILS], ids=[s[0] for s in SPOILS])
def test_what_does_not_fit_is_named(
    tmp_path: Path, make_checkpoint: Make, change: Callable[[Tensors], Any], words: str
) -> None:
    path = spoiled(make_checkpoint(layout="pretrain"), tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(path).check()
    with pytest.raises(CheckpointError, match=words):
        AutoModelForCausalLM.from_pretrained(path)


def test_a_tied_checkpoint_may_carry_the_head_all_the_same(
    tmp_path: Path, make_checkpoint: Make
) -> None:
    def add(tensors: Tensors) -> None:
        tensors["llm.lm_head.weight"] = tensors["llm.model.embed_tokens.weight"].clone()

    path = spoiled(make_checkpoint(tied=True), tmp_path, add)
    Checkpoint.open(path).check()
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def bad_json(path: Path) -> None:
    (path / "config.json").write_text("{")


def other_model(path: Path) -> None:
    data = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(data | {"model_type": "qwen2"}))


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def cut_weights(path: Path) -> None:
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def no_shard(path: Path) -> None:
    index = {"weight_map": {"llm.lm_head.weight": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def bad_value(path: Path) -> None:
    data = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(data | {"hidden_size": "wide"}))


def no_object(path: Path) -> None:
    (path / "config.json").write_text("[1]")


def bad_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("?")


def bad_index(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (no_object, CheckpointError, "config.json does not hold a JSON object"),
        (bad_tokenizer, CheckpointError, "tokenizer.json is not valid JSON"),
        (bad_index, CheckpointError, "has no weight_map"),
        (no_config, CheckpointError, "no config.json"),
        (bad_json, CheckpointError, "not valid JSON"),
        (other_model, CheckpointError, "model_type is 'qwen2'"),
        (no_weights, CheckpointError, "no weights"),
        (cut_weights, CheckpointError, "damaged or incomplete"),
        (no_shard, CheckpointError, "lacks weight files: model-00002-of-00002"),
        (bad_value, ConfigError, "hidden_size"),
    ],
)
def test_broken_folders_get_one_sentence(
    tmp_path: Path,
    make_checkpoint: Make,
    spoil: Callable[[Path], None],
    error: type[VoRAError],
    words: str,
) -> None:
    path = shutil.copytree(make_checkpoint(), tmp_path / "broken")
    spoil(path)
    with pytest.raises(error, match=words) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no folder"):
        Checkpoint.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(tmp_path / "file")


@pytest.mark.parametrize("llm", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_merged_export_is_the_same_model(
    tmp_path: Path, make_checkpoint: Make, llm: str, tied: bool
) -> None:
    source = make_checkpoint(llm=llm, layout="pretrain", resolution="native", tied=tied)
    out = merge_checkpoint(source, tmp_path / "out")
    image = noise_image(130, 61)
    wanted = Oracle(source).logprobs(PROMPT, [image])
    assert np.abs(Oracle(out).logprobs(PROMPT, [image]) - wanted).max() < 1e-4
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "vora"
    assert config["architectures"] == ["VoRAForCausalLM"]
    assert config["lora"]["r"] == -1
    assert not config["aux_vision"]
    assert config["image_token_id"] == 6
    assert config["hidden_size"] == 64
    assert all("lora_" not in n and "aux" not in n for n in read_weights(out))
    processor = AutoProcessor.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    inputs = processor(images=image, text=PROMPT, return_tensors="pt")
    with torch.no_grad():
        got = model(**inputs).logits[0].log_softmax(-1).numpy()
    assert np.abs(got - wanted).max() < 1e-4


def test_export_in_shards_and_half_precision(tmp_path: Path, make_checkpoint: Make) -> None:
    source = Checkpoint.open(make_checkpoint(layout="pretrain"))
    out = export_checkpoint(
        tmp_path / "out",
        source.config,
        source.tensors(),
        dtype=torch.bfloat16,
        max_shard_bytes=100_000,
    )
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(s.stat().st_size < 110_000 for s in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = {n: t for s in shards for n, t in load_file(s).items()}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in tensors.values())
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    wanted = served(source.path)
    assert tensors.keys() == wanted.keys()
    assert all(tensors[n].equal(wanted[n].bfloat16()) for n in wanted)
    Checkpoint.open(out).check()


def test_export_is_whole_or_not_at_all(tmp_path: Path, make_checkpoint: Make) -> None:
    source = Checkpoint.open(make_checkpoint())
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="exists"):
        export_checkpoint(tmp_path / "taken", source.config, source.tensors())
    some = list(source.tensors())
    with pytest.raises(CheckpointError, match="1 tensors are missing"):
        export_checkpoint(tmp_path / "out", source.config, some[1:])
    with pytest.raises(CheckpointError, match="stranger"):
        export_checkpoint(tmp_path / "out", source.config, [("stranger", torch.ones(1)), *some])
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
