"""A random LLM of a given size with random vision adapters, and one of them merged."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import Qwen2Config

from model_plugin import VoRAConfig, VoRAForCausalLM, VoRAProcessor
from model_plugin.adapter_export import export_adapter, export_llm
from model_plugin.export import export_checkpoint, merge_checkpoint
from vora_core.layout import LINEAR_LAYERS, LORA_A, LORA_B

ROOT = Path(__file__).resolve().parents[2]
#: Its tokenizer, and its image settings of native resolution.
DEMO = ROOT / "vora_serve" / "demo" / "checkpoint"


def write_llm(folder: Path, hidden: int, layers: int) -> VoRAForCausalLM:
    """Write a random Qwen2 to ``folder/llm``, and return it with an embedder.

    Args:
        folder: of the measurement.
        hidden: its width; heads of 64, an MLP of four times the width.
        layers: its depth.
    """
    processor = VoRAProcessor.from_pretrained(DEMO)
    llm = Qwen2Config(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    config = VoRAConfig.from_llm_config(
        llm,
        image_size=64,
        patch_size=8,
        vision_embedding_intermediate_size=hidden,
        position_mode="interpolate",
        image_token_id=processor.image_token_id,
    )
    model = VoRAForCausalLM(config)
    source = folder / "source"
    export_checkpoint(source, config, iter(model.state_dict().items()), processor)
    export_llm(source, folder / "llm")
    shutil.rmtree(source)
    return model


def write_adapter(model: VoRAForCausalLM, folder: Path, rank: int, seed: int) -> None:
    """Write a random adapter of the LLM, with an embedder of its own."""
    random = torch.Generator().manual_seed(seed)
    processor = VoRAProcessor.from_pretrained(DEMO)
    config = VoRAConfig(**model.config.to_dict())
    config.lora = {"r": rank, "layers": "all", "target_modules": [*LINEAR_LAYERS]}
    tensors = dict(model.state_dict())
    for name in [n for n in tensors if n.startswith("vision_embedding.")]:
        tensors[name] = tensors[name] + 0.01 * torch.randn(tensors[name].shape, generator=random)
    for module in config.lora_modules:
        outputs, inputs = tensors[f"{module}.weight"].shape
        tensors[module + LORA_A] = torch.randn(rank, inputs, generator=random) / inputs**0.5
        tensors[module + LORA_B] = 0.01 * torch.randn(outputs, rank, generator=random)
    source = folder.with_name(folder.name + "-source")
    export_checkpoint(source, config, iter(tensors.items()), processor, merged=False)
    export_adapter(source, folder, base_name="llm")
    shutil.rmtree(source)


def merge(folder: Path, adapter: Path) -> None:
    """Write an adapter merged into the LLM to ``folder/merged``."""
    merge_checkpoint(adapter, folder / "merged", base=folder / "llm")
