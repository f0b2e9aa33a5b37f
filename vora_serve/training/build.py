"""The weights of a run's model and teacher, by its plan."""

from typing import Any

import torch
from transformers import (
    Aimv2VisionModel,
    AutoModelForCausalLM,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    SiglipVisionModel,
)

from model_plugin import ConfigError, VoRAForCausalLM, VoRAProcessor
from model_plugin.embedder import VoRAVisionEmbedding
from vora_serve.training.attention import DOCUMENTS
from vora_serve.training.distill import Teacher
from vora_serve.training.features import PixelBridge
from vora_serve.training.plan import Plan, plan_finetune, plan_pretrain
from vora_serve.training.processor import load_processor
from vora_serve.training.run_recipe import ModelSettings, TeacherSettings

__all__ = ["load_model", "load_processor", "load_teacher", "plan_finetune", "plan_pretrain"]

_TEACHERS: dict[str, Any] = {
    "aimv2_vision_model": Aimv2VisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}


def load_teacher(settings: TeacherSettings, plan: Plan) -> Teacher:
    """The teacher with its weights."""
    if plan.teacher is None:
        raise ConfigError("There is no teacher.")
    config = plan.teacher.config
    kind = _TEACHERS[config.model_type]
    vision = kind.from_pretrained(settings.path, dtype=getattr(torch, settings.dtype))
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
    """The model with its weights; around an LLM, with a fresh embedder."""
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
    llm = AutoModelForCausalLM.from_pretrained(
        settings.path, dtype=dtype, attn_implementation=implementation
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
