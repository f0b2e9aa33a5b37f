"""Tiny random VoRA checkpoints in every layout, the same bytes for the same arguments.

Written without ``model_plugin``, so that reading them proves something. Values are chosen so that
nothing can be dropped unnoticed: every bias, norm and position is random, ``rope_theta`` and
``rms_norm_eps`` are not the defaults, and LoRA moves its layers a lot.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

FIXTURES = Path(__file__).parent / "fixtures" / "released_vora_tiny"
TARGETS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.gate_proj",
    "mlp.down_proj",
)
VOCAB = 352  # of the fixture's byte-level tokenizer
IMAGE_PAD = 6  # id of <|image_pad|> in it
WIDTH = 48  # C, of the patch embedding
HIDDEN = 64

LLM = Literal["qwen2", "llama", "qwen3"]
Layout = Literal["merged", "pretrain", "finetuned"]
Files = Literal["safetensors", "sharded", "bin", "sharded-bin"]


def write_checkpoint(
    path: str | Path,
    *,
    seed: int = 0,
    llm: LLM = "qwen2",
    layout: Layout = "merged",
    files: Files = "safetensors",
    biases: bool = True,
    tied: bool = False,
    lora_layers: int = 2,
    rank: int = 8,
    image_size: int = 112,
    patch_size: int = 14,
    spatial_merge_size: int = 1,
    resolution: Literal["fixed", "native"] | None = None,
    position_mode: Literal["released", "interpolate"] | None = None,
    style: Literal["released", "ours"] = "released",
    config: dict[str, Any] | None = None,
    preprocessor: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint folder and return its path.

    Args:
        path: the folder, made if need be.
        seed: decides every weight.
        llm: family of the LLM; Qwen2 has q/k/v biases of its own, Qwen3 query and key norms.
        layout: "merged"; "pretrain" with lora_A/lora_B and aux_vision; "finetuned" (LoRA r -1).
        files: one safetensors file, three shards with an index, or the same as pickled ``.bin``.
        biases: whether the first ``lora_layers`` have the released extra biases.
        tied: no ``lm_head.weight``; ``tie_word_embeddings`` in the config.
        image_size: side of the square that positions are learned on, in pixels.
        resolution, position_mode: written only when given, as released files have neither.
        style: "ours" adds what this project's own export writes beside the released keys.
        config, preprocessor: keys to add to or change in the two JSON files.
        dtype: of the stored weights.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    settings = _config(
        llm, layout, tied, lora_layers, rank, image_size, patch_size, spatial_merge_size, dtype
    )
    if position_mode is not None:
        settings["position_mode"] = position_mode
    pixels: dict[str, Any] = {
        "crop_size": {"height": image_size, "width": image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": image_size},
    }
    if resolution is not None:
        pixels["resolution"] = resolution
    if style == "ours":
        settings |= {"image_token_id": IMAGE_PAD, "position_mode": position_mode or "interpolate"}
        settings["llm_model_type"] = llm
        del settings["auto_map"], settings["llm"]
        pixels |= {
            "image_processor_type": "VoRAImageProcessor",
            "image_size": image_size,
            "patch_size": patch_size,
            "merge_size": spatial_merge_size,
            "resolution": resolution or "fixed",
        }
    elif spatial_merge_size > 1:
        pixels["merge_size"] = spatial_merge_size
    if patch_size != 14:
        pixels["patch_size"] = patch_size
    settings |= config or {}
    pixels |= preprocessor or {}
    _write_json(path / "config.json", settings)
    _write_json(path / "preprocessor_config.json", pixels)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(FIXTURES / "merged" / name, path / name)
    tensors = random_tensors(settings, seed=seed, biases=biases)
    write_weights(path, {k: v.to(dtype) for k, v in tensors.items()}, files)
    return path


def _config(
    llm: LLM,
    layout: Layout,
    tied: bool,
    lora_layers: int,
    rank: int,
    image_size: int,
    patch_size: int,
    spatial_merge_size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "architectures": ["VoRAForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_vora.VoRAConfig",
            "AutoModelForCausalLM": "modeling_vora.VoRAForCausalLM",
        },
        "attention_dropout": 0.0,
        "aux_vision": "clip-tiny" if layout == "pretrain" else "",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "image_size": image_size,
        "initializer_range": 0.15,
        "intermediate_size": 96,
        "llm": "llm",
        "lora": {
            "layers": lora_layers,
            "r": rank if layout == "pretrain" else -1,
            "target_modules": list(TARGETS),
        },
        "max_position_embeddings": 2048,
        "model_type": "vora",
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "patch_size": patch_size,
        "reuse_aux_vision_embedding_layers": "",
        "rms_norm_eps": 1e-4,
        "rope_scaling": None,
        "rope_theta": 20000.0,
        "skip_aux_cls": layout == "pretrain",
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.50.3",
        "use_cache": True,
        "vision_attention_mask": "bidirectional",
        "vision_embedding": "AIMv2Embedding",
        "vision_embedding_intermediate_size": WIDTH,
        "vocab_size": VOCAB,
    }
    if llm == "qwen2":
        settings |= {"max_window_layers": 28, "sliding_window": 4096, "use_sliding_window": False}
    else:
        settings |= {"llm_model_type": llm, "head_dim": 32, "attention_bias": False}
    if spatial_merge_size > 1:
        settings["spatial_merge_size"] = spatial_merge_size
    return settings


def random_tensors(
    config: dict[str, Any], *, seed: int = 0, biases: bool = True
) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint with this ``config.json``, float32, random by ``seed``."""
    shapes = _llm_shapes(config)
    lora = config["lora"] or {}
    rank = lora.get("r", -1)
    for layer in range(lora.get("layers", 0)):
        for target in lora["target_modules"]:
            name = f"llm.model.layers.{layer}.{target}"
            rows, columns = shapes[f"{name}.weight"]
            if biases:
                shapes[f"{name}.bias"] = (rows,)
            if rank > 0:
                shapes[f"{name}.lora_A.weight"] = (rank, columns)
                shapes[f"{name}.lora_B.weight"] = (rows, rank)
    width, patch = config["vision_embedding_intermediate_size"], config["patch_size"]
    grid = config["image_size"] // patch
    merged_width = width * config.get("spatial_merge_size", 1) ** 2
    shapes |= {
        "vision_embedding.patchifier.proj.weight": (width, 3, patch, patch),
        "vision_embedding.patchifier.proj.bias": (width,),
        "vision_embedding.patchifier.norm.weight": (width,),
        "vision_embedding.pos_embed": (1, grid * grid, width),
        "vision_embedding.out_proj.weight": (config["hidden_size"], merged_width),
    }
    if config["aux_vision"]:
        shapes |= _aux_shapes(config, layers=lora["layers"])
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _random(name, shapes[name], generator, config["initializer_range"])
        for name in sorted(shapes)
    }


def _llm_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kind = config.get("llm_model_type", "qwen2")
    own = {"architectures", "auto_map", "model_type", "torch_dtype", "llm", "lora"}
    plain = {k: v for k, v in config.items() if k not in own}
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **plain))
    shapes = {f"llm.{name}": tuple(tensor.shape) for name, tensor in llm.state_dict().items()}
    if config["tie_word_embeddings"]:
        shapes.pop("llm.lm_head.weight", None)
    return shapes


def _aux_shapes(config: dict[str, Any], layers: int) -> dict[str, tuple[int, ...]]:
    width = 32
    with torch.device("meta"):
        teacher = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=2,
                image_size=config["image_size"],
                patch_size=config["patch_size"],
            )
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in teacher.state_dict().items():
        plain = name.removeprefix("vision_model.")
        shapes[f"aux_vision.aux_model.vision_model.{plain}"] = tuple(tensor.shape)
    for layer in range(layers):
        shapes[f"aux_vision.aux_layer_{layer}.0.weight"] = (config["hidden_size"],)
        shapes[f"aux_vision.aux_layer_{layer}.1.weight"] = (width, config["hidden_size"])
    return shapes


def _random(
    name: str, shape: tuple[int, ...], generator: torch.Generator, spread: float
) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return 0.3 * noise
    if len(shape) == 1:  # a norm
        return 1 + 0.2 * noise
    if ".lora_" in name:
        return 0.2 * noise
    if "pos_embed" in name:
        return 0.5 * noise
    if "patchifier.proj" in name:
        return noise * (3 * shape[-1] ** 2) ** -0.5
    return spread * noise


def write_weights(path: Path, tensors: dict[str, torch.Tensor], files: Files) -> None:
    """Write the tensors as one file or as three shards with their index."""
    binary = files.endswith("bin")
    stem, suffix = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    names = sorted(tensors)
    parts = [names[i::3] for i in range(3)] if files.startswith("sharded") else [names]
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}-{number:05d}-of-00003.{suffix}" if len(parts) > 1 else f"{stem}.{suffix}"
        weight_map |= dict.fromkeys(part, file)
        state = {name: tensors[name].contiguous() for name in part}
        if binary:
            torch.save(state, path / file)
        else:
            save_file(state, path / file, metadata={"format": "pt"})
    if len(parts) > 1:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        listing = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(path / f"{stem}.{suffix}.index.json", listing)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
