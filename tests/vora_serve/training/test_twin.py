"""The encoder-based twin: trained by the same pipeline, exported as LLaVA, the same model there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, LlavaForConditionalGeneration

from model_plugin import CheckpointError, ConfigError, VoRAForCausalLM, VoRAProcessor
from tests import command_line
from tests.vora_serve.training import bases
from vora_serve.training.data import Sample, Tokeniser, collate
from vora_serve.training.encoder import EncoderEmbedding, make_twin
from vora_serve.training.llava import export_llava, load_llava
from vora_serve.training.processor import load_processor
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run import run_finetune
from vora_serve.training.run_recipe import FinetuneRun
from vora_serve.training.twin import load_twin, plan_twin

KINDS = ("siglip", "clip")


def twin_recipe(folder: Path, kind: str = "siglip", **changes: Any) -> Path:
    """A fine-tune with an encoder, of tiny parts."""
    teacher = str(bases.save_teacher(folder / kind, kind, layers=3))
    return bases.pretrain_recipe(
        folder,
        teacher=None,
        encoder={"path": teacher},
        images={
            "image_size": 56,
            "patch_size": 14,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.3, 0.2, 0.1],
        },
        **changes,
    )


def recipe_of(file: Path, *overrides: str) -> FinetuneRun:
    plain = file.read_text().replace("lora_rank: 8\n", "").replace("teacher: null\n", "")
    file.write_text(plain)
    return read_recipe(FinetuneRun, file, list(overrides))


def built(folder: Path, kind: str) -> tuple[VoRAForCausalLM, VoRAProcessor]:
    recipe = recipe_of(twin_recipe(folder, kind))
    plan = plan_twin(recipe)
    processor = load_processor(recipe.model, plan.images)
    torch.manual_seed(5)
    model = load_twin(recipe, plan, processor).eval()
    model.llm.config._attn_implementation = "sdpa"
    return model, processor


def image(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    return Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8))


QUESTION = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}],
}


@torch.no_grad()
def logits_of(model: VoRAForCausalLM, processor: VoRAProcessor, shown: Image.Image) -> torch.Tensor:
    """As training computes them."""
    sample = Sample([QUESTION, {"role": "assistant", "content": "red"}], [shown])
    batch = collate([Tokeniser(processor, 200)(sample)], 0)
    embeds = model.embed(batch.input_ids, batch.pixel_values, batch.image_grid_hw)
    found: torch.Tensor = model.llm(inputs_embeds=embeds).logits
    return found


@torch.no_grad()
def exported_logits(folder: Path, shown: Image.Image) -> torch.Tensor:
    """As transformers computes them from the checkpoint alone."""
    processor = AutoProcessor.from_pretrained(folder)
    llava, found = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["mismatched_keys"]
    conversation = [QUESTION, {"role": "assistant", "content": "red"}]
    text = processor.apply_chat_template(conversation)
    inputs = processor(images=[shown], text=[text], return_tensors="pt")
    logits: torch.Tensor = llava.eval()(**inputs).logits
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(56, 56), (90, 40), (31, 77)], ids=str)
def test_the_export_is_the_model_that_was_trained(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Weights, preprocessing and prompt at once: transformers on the file gives our logits."""
    model, processor = built(tmp_path, kind)
    tensors = iter(model.state_dict().items())
    out = export_llava(tmp_path / "out", model, tensors, processor, dtype=torch.float32)
    ours, theirs = logits_of(model, processor, image(*size)), exported_logits(out, image(*size))
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    other = exported_logits(out, image(57, 56))
    assert (theirs - other).abs().max() > 0.01  # what is shown matters


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_trained_further(kind: str, tmp_path: Path) -> None:
    model, processor = built(tmp_path, kind)
    shown = image(90, 40)
    before = logits_of(model, processor, shown)
    out = export_llava(
        tmp_path / "out", model, iter(model.state_dict().items()), processor, dtype=torch.float32
    )
    recipe = recipe_of(tmp_path / "recipe.yaml", "encoder=null", "images=null", f"model.path={out}")
    plan = plan_twin(recipe)
    again = load_twin(recipe, plan, load_processor(recipe.model, plan.images)).eval()
    after = logits_of(again, load_processor(recipe.model, plan.images), shown)
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-3)


def test_the_projector_is_aligned_and_then_the_llm_trained(tmp_path: Path) -> None:
    """LLaVA-1.5's two stages, as commands."""
    file = twin_recipe(tmp_path)
    recipe_of(file)
    common = ("--config", str(file), "optimisation.steps=3", "out_dtype=float32")
    frozen = 'freeze=["llm.", "vision_embedding.tower."]'
    done = command_line.run("finetune", *common, frozen, f"out={tmp_path / 'aligned'}")
    assert done.returncode == 0, done.stderr
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm").state_dict()
    aligned = load_llava(tmp_path / "aligned")
    for name, tensor in llm.items():
        torch.testing.assert_close(aligned.llm.state_dict()[name][: len(tensor)], tensor)
    done = command_line.run(
        "finetune", *common, "encoder=null", "images=null", f"model.path={tmp_path / 'aligned'}",
        'freeze=["vision_embedding.tower."]', f"run={tmp_path / 'run2'}", f"out={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tuned = load_llava(tmp_path / "out")
    moved = {
        name
        for name, tensor in tuned.state_dict().items()
        if not torch.equal(tensor, aligned.state_dict()[name])
    }
    assert any(name.startswith("llm.") for name in moved)
    assert any("linear_1" in name for name in moved)
    assert not any("tower" in name for name in moved)
    assert "LLaVA's architecture" in (tmp_path / "aligned" / "README.md").read_text()


def test_the_attention_of_images_is_causal(tmp_path: Path) -> None:
    model, _ = built(tmp_path, "siglip")
    assert isinstance(model.vision_embedding, EncoderEmbedding)
    assert not model.config.is_mm_prefix_lm


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    file = twin_recipe(tmp_path, "dinov2")
    with pytest.raises(ConfigError, match="The encoder is a dinov2; LLaVA's are"):
        run_finetune(recipe_of(file))
    file = twin_recipe(tmp_path)
    with pytest.raises(ConfigError, match="The encoder sees 56 pixels in patches of 14"):
        run_finetune(recipe_of(file, "images.image_size=112"))
    with pytest.raises(ConfigError, match="causal attention"):
        run_finetune(recipe_of(file, "attention=bidirectional"))
    done = command_line.run("finetune", "--config", str(file), "--dry-run")
    assert done.returncode == 2
    assert done.stderr == "vora-serve: --dry-run does not cover models with an encoder.\n"


def test_broken_weights_are_neither_exported_nor_read(tmp_path: Path) -> None:
    model, processor = built(tmp_path, "siglip")
    held = model.state_dict()
    held["llm.model.norm.weight"] = torch.full((64,), torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        export_llava(tmp_path / "out", model, iter(held.items()), processor, dtype=torch.float32)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    stray = [("aux_vision.x", torch.zeros(1)), *model.state_dict().items()]
    with pytest.raises(CheckpointError, match="no place in a LLaVA checkpoint"):
        export_llava(tmp_path / "out", model, iter(stray), processor, dtype=torch.float32)
    tower = bases.save_teacher(tmp_path / "one", "siglip", layers=1)
    from transformers import SiglipVisionModel

    with pytest.raises(ConfigError, match="a single block"):
        make_twin(model, SiglipVisionModel.from_pretrained(tower))


@pytest.mark.slow
def test_two_processes_that_share_weights_give_the_losses_of_one(tmp_path: Path) -> None:
    file = twin_recipe(tmp_path)
    recipe_of(file)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", "vora_serve", "finetune", "--config", str(file)]
    freeze = 'freeze=["vision_embedding.tower."]'
    run_finetune(recipe_of(file, f"out={tmp_path / 'one'}", freeze))
    overrides = [f"run={tmp_path / 'two'}", f"out={tmp_path / 'both'}", freeze]
    done = subprocess.run(
        [*command, "optimisation.sharding=fsdp2", *overrides],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [
            json.loads(line)["lm"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("run", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    one, both = load_llava(tmp_path / "one").state_dict(), load_llava(tmp_path / "both")
    for name, tensor in both.state_dict().items():
        assert (tensor - one[name]).abs().max() < 2e-2, name  # bfloat16 on disk
