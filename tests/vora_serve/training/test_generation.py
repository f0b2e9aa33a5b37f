"""What training exports stops, batches and pads rightly in ``generate`` and pipelines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor, pipeline

import vora_serve.demo
from model_plugin import VoRAForCausalLM, VoRAProcessor
from model_plugin.export import merge_checkpoint
from vora_serve.demo.samples import Images
from vora_serve.training import (
    Distillation,
    FinetuneRecipe,
    Optimisation,
    PretrainRecipe,
    finetune,
    pretrain,
)
from vora_serve.world.scenes import random_scene, render

DEMO = Path(vora_serve.demo.__file__).parent / "checkpoint"
STAGES = ("demo", "merged", "whole LLM", "fine-tuned")
MOST = 40


def exported(stage: str, work: Path) -> Path:
    """The checkpoint of a stage; of a trained model, so that its answers end."""
    if stage == "demo":
        return DEMO
    model = VoRAForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    settings = Optimisation(steps=1, batch_size=2, lr=1e-6)
    if stage == "fine-tuned":
        recipe = FinetuneRecipe(optimisation=settings, max_length=512)
        return finetune(
            model, VoRAProcessor.from_pretrained(DEMO), Images(1), recipe, work, work / "out"
        )
    out = pretrain(
        model,
        VoRAProcessor.from_pretrained(DEMO),
        None,
        Images(1),
        PretrainRecipe(
            optimisation=settings,
            distillation=Distillation(mode="none"),
            trains="llm" if stage == "whole LLM" else "lora",
            lora_rank=4,
            max_length=512,
        ),
        work,
        work / "out",
    )
    return merge_checkpoint(out, work / "merged") if stage == "merged" else out


def question(text: str, seed: int | None = None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if seed is not None:
        parts.insert(0, {"type": "image", "image": render(random_scene(seed, "test", 0))})
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("stage", STAGES)
def test_answers_stop_batch_and_pad(tmp_path: Path, stage: str) -> None:
    folder = exported(stage, tmp_path)
    generation = json.loads((folder / "generation_config.json").read_text())
    processor = AutoProcessor.from_pretrained(folder)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation["eos_token_id"] == end
    assert generation["pad_token_id"] == processor.tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = [
        question("How many shapes are there?", 7),
        question("Describe the picture.", 8),
        question("How many shapes are there?", 9),
    ]

    def answers(conversations: list[Any]) -> list[list[int]]:
        inputs = processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            add_generation_prompt=True,
        )
        rows = model.generate(**inputs, max_new_tokens=MOST)[:, inputs["input_ids"].shape[1] :]
        found = []
        for row in rows.tolist():
            assert end in row, "every answer ends"
            length = row.index(end) + 1
            assert set(row[length:]) <= {generation["pad_token_id"]}, "and is padded after that"
            found.append(row[:length])
        return found

    alone = [answers([conversation])[0] for conversation in asked]
    assert answers(asked) == alone
    assert len({len(row) for row in alone}) > 1, "of different lengths"
    assert all(len(row) < MOST for row in alone)

    ask = pipeline("text-generation", model=model, tokenizer=processor.tokenizer)
    prompt = processor.apply_chat_template(question("Say hello."), add_generation_prompt=True)
    said = ask([prompt, prompt], batch_size=2, max_new_tokens=MOST, return_full_text=False)
    assert len({row[0]["generated_text"] for row in said}) == 1
