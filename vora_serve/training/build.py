"""The weights of a run's model and teacher, by its plan."""

import re
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    Aimv2VisionModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipVisionModel,
)

from model_plugin import CheckpointError, ConfigError, VoRAForCausalLM, VoRAProcessor
from model_plugin.embedder import VoRAVisionEmbedding
from vora_serve.training.attention import DOCUMENTS
from vora_serve.training.distill import Teacher
from vora_serve.training.features import PixelBridge
from vora_serve.training.plan import Plan, plan_finetune, plan_pretrain
from vora_serve.training.processor import load_processor
from vora_serve.training.run_recipe import ModelSettings, TeacherSettings

__all__ = [
    "load_model",
    "load_processor",
    "load_teacher",
    "load_whole",
    "plan_finetune",
    "plan_pretrain",
]

_TEACHERS: dict[str, Any] = {
    "aimv2_vision_model": Aimv2VisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}
#: Tensors that old files carry, and that are computed anyway.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|position_ids$")
#: Other parts of the files that vision towers come in.
_BESIDE = re.compile(
    rf"{_BUFFERS.pattern}|^(text_model|text_projection|visual_projection|logit_\w+|classifier)\b"
)
#: What makes one vector of an image, after the blocks; distillation does not use it.
_POOLING = re.compile(r"(^|\.)(head|pooler|post_layernorm|mask_token)\b")


def load_teacher(settings: TeacherSettings, plan: Plan) -> Teacher:
    """The teacher with its weights.

    Raises:
        CheckpointError: its tensors are not those of its configuration.
    """
    if plan.teacher is None:
        raise ConfigError("There is no teacher.")
    config = plan.teacher.config
    kind = _TEACHERS[config.model_type]
    vision = load_whole(kind, "The teacher", settings.path, dtype=getattr(torch, settings.dtype))
    bridge = None
    if settings.image_size == "own":
        bridge = PixelBridge(
            plan.images.image_mean,
            plan.images.image_std,
            plan.teacher.mean,
            plan.teacher.std,
            int(config.image_size),
        )
    return Teacher(vision, bridge)


def load_model(settings: ModelSettings, plan: Plan, processor: VoRAProcessor) -> VoRAForCausalLM:
    """The model with its weights; around an LLM, with a fresh embedder.

    Raises:
        CheckpointError: its tensors are not those of its configuration.
    """
    dtype = getattr(torch, settings.dtype)
    chosen = settings.attn_implementation or (
        "flex_attention" if torch.cuda.is_available() else DOCUMENTS
    )
    # Ours is for training alone: the model as a whole, which is saved, knows transformers' own.
    implementation = "sdpa" if chosen == DOCUMENTS else chosen
    config = plan.config
    config.image_token_id = processor.image_token_id
    if plan.is_vora:
        model = VoRAForCausalLM.from_pretrained(
            settings.path, config=config, dtype=dtype, attn_implementation=implementation
        )
        model.llm.config._attn_implementation = chosen
        return model
    llm = load_whole(
        AutoModelForCausalLM,
        "The LLM",
        settings.path,
        dtype=dtype,
        attn_implementation=implementation,
    )
    if processor.image_token_id >= llm.config.vocab_size:
        llm.resize_token_embeddings(len(processor.tokenizer), pad_to_multiple_of=64)
        config.vocab_size = llm.config.vocab_size
    config.dtype = dtype
    config._attn_implementation = implementation
    with torch.device("meta"):
        model = VoRAForCausalLM(config)
    model.llm = llm
    llm.config._attn_implementation = chosen
    model.vision_embedding = VoRAVisionEmbedding(config)
    model.vision_embedding.apply(model._init_weights)
    return model


def load_whole(kind: Any, what: str, path: str, **settings: Any) -> Any:
    """A model of transformers', with every tensor accounted for.

    transformers fills what a file lacks with random numbers, and warns at most.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape, or cannot be read.
    """
    try:
        model, found = kind.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise CheckpointError(f"{what}, {path}, cannot be loaded: {reason}") from error
    # A vision tower's file may be a whole CLIP's; its pooled output is not used.
    beside = _BESIDE if kind in _TEACHERS.values() else _BUFFERS
    faults = {
        "missing": [name for name in found["missing_keys"] if not _POOLING.search(name)]
        if kind in _TEACHERS.values()
        else list(found["missing_keys"]),
        "unknown": [name for name in found["unexpected_keys"] if not beside.search(name)],
        "of another shape": [_name(entry) for entry in found["mismatched_keys"]],
        "unreadable": [str(entry) for entry in found.get("error_msgs", [])],
    }
    said = [
        f"{len(names)} {fault} ({', '.join(sorted(names)[:2])}{', ...' if len(names) > 2 else ''})"
        for fault, names in faults.items()
        if names
    ]
    if said:
        raise CheckpointError(
            f"{what}, {path}, does not hold the tensors that its configuration names: "
            f"{'; '.join(said)}."
        )
    return model


def _name(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, tuple | list) else entry)
