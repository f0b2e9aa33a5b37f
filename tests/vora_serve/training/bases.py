"""A tiny LLM, a tiny teacher and data files on disk, as a recipe finds them."""

from pathlib import Path

import torch
import yaml
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.vora_serve.training import files, world

TEACHERS = ("aimv2", "clip", "siglip", "dinov2")


def save_llm(folder: Path, layers: int = 3) -> Path:
    """A random Qwen2 with the fixture's tokenizer, as transformers saves it."""
    torch.manual_seed(0)
    llm = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=128,
            vocab_size=352,
        )
    )
    llm.save_pretrained(folder)
    world.processor().tokenizer.save_pretrained(str(folder))
    return folder


def save_teacher(
    folder: Path, kind: str = "aimv2", image_size: int = 56, patch_size: int = 14, layers: int = 2
) -> Path:
    """A random teacher, 48 wide."""
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    make = {
        "aimv2": lambda: Aimv2VisionModel(
            Aimv2VisionConfig(**sizes, intermediate_size=96, use_head=False)
        ),
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**sizes, intermediate_size=96)),
        "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=96)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)),
    }[kind]
    make().save_pretrained(folder)
    return folder


def pretrain_recipe(folder: Path, **changes: object) -> Path:
    """A pretraining recipe of the tiny parts, all written to ``folder``."""
    recipe: dict[str, object] = {
        "model": {"path": str(save_llm(folder / "llm"))},
        "teacher": {"path": str(save_teacher(folder / "teacher"))},
        "images": {"image_size": 56, "patch_size": 14},
        "data": {
            "sources": [
                {"files": [str(files.write_jsonl(folder / "data", 24))], "weight": 2},
                {"files": [str(files.write_text(folder / "text.jsonl", 20))]},
            ],
            "shuffle_buffer": 8,
            "shards": 2,
        },
        "optimisation": {
            "steps": 8,
            "batch_size": 4,
            "micro_batch_size": 2,
            "lr": 3e-3,
            "log_every": 1,
            "save_every": 2,
        },
        "lora_rank": 8,
        "max_length": 160,
        "run": str(folder / "run"),
        "out": str(folder / "pretrained"),
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return file
