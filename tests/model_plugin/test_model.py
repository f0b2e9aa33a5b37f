"""The Hugging Face side against the released outputs and the oracle, cached and in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

import model_plugin
from model_plugin.errors import PlaceholderError
from tests.checkpoints import FIXTURES
from tests.model_plugin.conftest import Make, noise_image, open_image
from tests.oracle import Oracle

TOLERANCE = 1e-4
CASES: dict[str, tuple[list[str], str | None]] = {
    "text_only": ([], None),
    "one_image": (["a.png"], None),
    "native_large": (["native_large.png"], "native"),
}
PROMPTS: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "text": ("<|im_start|>user\nIs it so?<|im_end|>\n", []),
    "one": ("Look: <image>\nWhat is it?", [(70, 56)]),
    "first": ("<image>What is it?", [(130, 61)]),
    "last": ("What is this?<image>", [(61, 130)]),
    "only": ("<image>", [(112, 112)]),
    "two": ("<image> or <image>, say", [(70, 42), (99, 200)]),
    "adjacent": ("Which? <image><image>.", [(84, 56), (56, 84)]),
    "three": ("<image>a<image><image>\nb", [(40, 30), (150, 90), (28, 28)]),
}


def load(path: Path, **options: Any) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    return model, AutoProcessor.from_pretrained(path)


def case(name: str) -> tuple[str, list[Image.Image]]:
    prompt, sizes = PROMPTS[name]
    return prompt, [noise_image(*size) for size in sizes]


@torch.no_grad()
def logprobs(model: Any, inputs: Any) -> np.ndarray:
    return model(**inputs).logits.float().log_softmax(-1).numpy()


def generate(model: Any, inputs: Any, tokens: int = 8, **options: Any) -> list[list[int]]:
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", CASES)
def test_released_outputs(tmp_path: Path, name: str) -> None:
    files, resolution = CASES[name]
    folder = FIXTURES / "merged"
    if resolution:
        data = json.loads((folder / "preprocessor_config.json").read_text())
        for file in folder.iterdir():
            (tmp_path / file.name).symlink_to(file)
        (tmp_path / "preprocessor_config.json").unlink()
        changed = json.dumps(data | {"resolution": resolution})
        (tmp_path / "preprocessor_config.json").write_text(changed)
        folder = tmp_path
    facts = json.loads((FIXTURES / "expected" / f"{name}.json").read_text())
    with np.load(FIXTURES / "expected" / f"{name}.npz") as arrays:
        expected = arrays["logprobs"]
    model, processor = load(folder)
    images = [open_image(file) for file in files]
    inputs = processor(images=images or None, text=facts["prompt"], return_tensors="pt")
    got = logprobs(model, inputs)[0]
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < TOLERANCE
    assert generate(model, inputs, len(facts["greedy"])) == [facts["greedy"]]


def test_auto_classes_give_ours() -> None:
    assert isinstance(AutoConfig.from_pretrained(FIXTURES / "merged"), model_plugin.VoRAConfig)
    model, processor = load(FIXTURES / "merged")
    assert isinstance(model, model_plugin.VoRAForCausalLM)
    assert isinstance(processor, model_plugin.VoRAProcessor)
    assert model.dtype == torch.float32


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"layout": "pretrain"},
    {"layout": "finetuned", "biases": False},
    {"files": "sharded"},
    {"files": "bin"},
    {"files": "sharded-bin", "layout": "pretrain"},
    {"tied": True},
    {"spatial_merge_size": 2, "resolution": "native"},
    {"style": "ours", "resolution": "native"},
    {"style": "ours", "spatial_merge_size": 2},
    {"image_size": 64, "patch_size": 8, "resolution": "native"},
    {"image_size": 120},
    {"config": {"vision_attention_mask": "default"}},
]


@pytest.mark.parametrize("llm", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize(
    "options", LAYOUTS, ids=lambda o: ",".join(map(str, o.values())) or "plain"
)
def test_every_layout_and_llm(make_checkpoint: Make, llm: str, options: dict[str, Any]) -> None:
    path = make_checkpoint(llm=llm, **options)
    model, processor = load(path)
    oracle = Oracle(path)
    prompt, images = case("two")
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    wanted = oracle.logprobs(prompt, images)
    got = logprobs(model, inputs)[0]
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < TOLERANCE
    assert generate(model, inputs) == [oracle.greedy(prompt, images, 8)]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("resolution", ["fixed", "native"])
def test_images_anywhere(make_checkpoint: Make, name: str, resolution: str) -> None:
    path = make_checkpoint(resolution=resolution)
    model, processor = load(path)
    oracle = Oracle(path)
    prompt, images = case(name)
    inputs = processor(images=images or None, text=prompt, return_tensors="pt")
    assert np.abs(logprobs(model, inputs)[0] - oracle.logprobs(prompt, images)).max() < TOLERANCE
    assert generate(model, inputs) == [oracle.greedy(prompt, images, 8)]
    assert generate(model, inputs, use_cache=False) == generate(model, inputs)


def batch(processor: Any, names: Sequence[str], side: str) -> Any:
    cases = [case(name) for name in names]
    return processor(
        images=[images for _, images in cases],
        text=[prompt for prompt, _ in cases],
        padding=True,
        padding_side=side,
        return_tensors="pt",
    )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_batch_of_mixed_prompts(make_checkpoint: Make, side: str, implementation: str) -> None:
    path = make_checkpoint(resolution="native")
    model, processor = load(path, attn_implementation=implementation)
    oracle = Oracle(path)
    names = list(PROMPTS)
    inputs = batch(processor, names, side)
    got = logprobs(model, inputs)
    assert np.isfinite(got).all()
    for name, row, present in zip(names, got, inputs["attention_mask"].bool().numpy(), strict=True):
        wanted = oracle.logprobs(*case(name))
        assert present.sum() == len(wanted)
        assert np.abs(row[present] - wanted).max() < TOLERANCE, name


def test_generation_of_a_left_padded_batch(make_checkpoint: Make) -> None:
    path = make_checkpoint(resolution="native")
    model, processor = load(path)
    oracle = Oracle(path)
    names = list(PROMPTS)
    got = generate(model, batch(processor, names, "left"))
    for name, tokens in zip(names, got, strict=True):
        assert tokens == oracle.greedy(*case(name), 8), name


def test_generation_of_a_text_only_batch(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    model, processor = load(path)
    oracle = Oracle(path)
    prompts = ["Hello", "What is a circle, and what is it not?"]
    inputs = processor(text=prompts, padding=True, return_tensors="pt")
    assert "pixel_values" not in inputs
    assert generate(model, inputs) == [oracle.greedy(prompt, [], 8) for prompt in prompts]


FLIPS: list[tuple[dict[str, Any], str]] = [
    ({"biases": False}, "extra biases dropped"),
    ({"causal": True}, "causal attention"),
    ({"position_mode": "interpolate"}, "positions of the other mode"),
    ({"resolution": "native"}, "native instead of fixed"),
    ({"padding": "corner"}, "padding in the corner"),
    ({"padding": "white"}, "padding in white"),
    ({"lora": False}, "LoRA dropped"),
]


@pytest.mark.parametrize(("flip", "what"), FLIPS, ids=[what for _, what in FLIPS])
def test_the_comparison_fails_when_a_quirk_is_flipped(
    make_checkpoint: Make, flip: dict[str, Any], what: str
) -> None:
    """The model agrees with the oracle, and not with one that gets a single thing wrong."""
    fixed = flip.keys() & {"resolution", "padding"}
    path = make_checkpoint(layout="pretrain", resolution="fixed" if fixed else "native")
    model, processor = load(path)
    prompt, images = case("one")
    got = logprobs(model, processor(images=images, text=prompt, return_tensors="pt"))[0]
    assert np.abs(got - Oracle(path).logprobs(prompt, images)).max() < TOLERANCE
    wrong = Oracle(path, **flip).logprobs(prompt, images)
    last = slice(-8, None)  # lengths differ between resolutions; the text at the end does not
    assert np.abs(got[last] - wrong[last]).max() > 100 * TOLERANCE


def test_a_dropped_bias_changes_the_outputs_of_ours_too(make_checkpoint: Make) -> None:
    path = make_checkpoint()
    model, processor = load(path)
    prompt, images = case("one")
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    before = logprobs(model, inputs)
    assert len(model.config.extra_biases) == 8
    for name in model.config.extra_biases:
        torch.nn.init.zeros_(model.llm.get_submodule(name).bias)
    wanted = Oracle(path, biases=False).logprobs(prompt, images)
    assert np.abs(logprobs(model, inputs)[0] - wanted).max() < TOLERANCE
    assert np.abs(logprobs(model, inputs) - before).max() > 100 * TOLERANCE


def test_loss_is_the_cross_entropy_of_the_targets(make_checkpoint: Make) -> None:
    path = make_checkpoint(resolution="native")
    model, processor = load(path)
    names = ["one", "text", "adjacent"]
    inputs = batch(processor, names, "right")
    labels = inputs["input_ids"].clone()
    labels[(labels == model.config.image_token_id) | (inputs["attention_mask"] == 0)] = -100
    loss = model(**inputs, labels=labels).loss
    oracle = Oracle(path)
    losses: list[float] = []
    for name, row in zip(names, labels.numpy(), strict=True):
        wanted = oracle.logprobs(*case(name))
        losses += [-wanted[i - 1, row[i]] for i in range(1, len(wanted)) if row[i] >= 0]
    assert loss.item() == pytest.approx(np.mean(losses), abs=TOLERANCE)


def test_half_precision_and_gradient_checkpointing_run(make_checkpoint: Make) -> None:
    model, processor = load(make_checkpoint(resolution="native"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.train()
    model.gradient_checkpointing_enable()
    inputs = batch(processor, ["two", "text"], "left")
    model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    missing = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == []


def test_saving_and_loading_again(tmp_path: Path, make_checkpoint: Make) -> None:
    path = make_checkpoint(layout="pretrain", resolution="native")
    model, processor = load(path)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    prompt, images = case("two")
    again, its_processor = load(tmp_path)
    wanted = Oracle(path).logprobs(prompt, images)
    inputs = its_processor(images=images, text=prompt, return_tensors="pt")
    assert np.abs(logprobs(again, inputs)[0] - wanted).max() < TOLERANCE
    assert np.abs(Oracle(tmp_path).logprobs(prompt, images) - wanted).max() < TOLERANCE


def test_image_tokens_and_placeholders_must_agree(make_checkpoint: Make) -> None:
    model, processor = load(make_checkpoint(resolution="native"))
    prompt, images = case("one")
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    ids = inputs["input_ids"]
    place = int((ids[0] == 6).nonzero()[0])
    fewer = torch.cat([ids[:, :place], ids[:, place + 1 :]], dim=1)
    with pytest.raises(PlaceholderError, match="image tokens"):
        model(
            input_ids=fewer,
            pixel_values=inputs["pixel_values"],
            image_grid_hw=inputs["image_grid_hw"],
        )


def test_several_answers_to_one_image_are_refused_in_words(make_checkpoint: Make) -> None:
    model, processor = load(make_checkpoint(resolution="native"))
    prompt, images = case("one")
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    with pytest.raises(ValueError, match="num_return_sequences"):
        model.generate(**inputs, do_sample=True, num_return_sequences=2, max_new_tokens=2)
