"""A fine-tune with a vision tower, put together from its recipe."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, LlavaConfig

from model_plugin import ConfigError, VoRAForCausalLM, VoRAProcessor
from vora_core.checkpoint import CONFIG_FILE, CheckpointHeader
from vora_serve.training.blocks import Blocks
from vora_serve.training.build import load_model, load_teacher
from vora_serve.training.encoder import ENCODER_TYPES, make_twin, twin_config
from vora_serve.training.llava import MODEL_TYPE, load_llava, twin_images
from vora_serve.training.plan import Plan, check_length, plan_pretrain
from vora_serve.training.recipe import Distillation
from vora_serve.training.run_recipe import FinetuneRun, Images, PretrainRun, TeacherSettings


def has_encoder(recipe: FinetuneRun) -> bool:
    """Whether a run trains a model with a vision tower."""
    return recipe.encoder is not None or _is_llava(recipe.model.path)


def plan_twin(recipe: FinetuneRun) -> Plan:
    """Put the parts together, and see that they fit; reads no weights.

    Raises:
        ConfigError, CheckpointError: they do not.
    """
    if recipe.attention not in (None, "causal"):
        raise ConfigError("A model with an encoder has causal attention, as LLaVA has.")
    if _is_llava(recipe.model.path):
        return _plan_llava(recipe)
    plan = plan_pretrain(_as_pretraining(recipe))
    assert plan.teacher is not None  # the recipe names one
    tower = plan.teacher.config
    side, patch = plan.images.image_size, plan.images.patch_size
    if (tower.image_size, tower.patch_size) != (side, patch):
        raise ConfigError(
            f"The encoder sees {tower.image_size} pixels in patches of {tower.patch_size}, but the "
            f"recipe's images have {side} in patches of {patch}."
        )
    if tower.model_type not in ENCODER_TYPES:
        raise ConfigError(
            f"The encoder is a {tower.model_type}; LLaVA's are {', '.join(ENCODER_TYPES)}."
        )
    return plan


def load_twin(recipe: FinetuneRun, plan: Plan, processor: VoRAProcessor) -> VoRAForCausalLM:
    """The model with its weights; with a fresh projector unless it was trained before.

    Raises:
        CheckpointError: tensors are missing.
    """
    if _is_llava(recipe.model.path):
        return load_llava(Path(recipe.model.path))
    pretraining = _as_pretraining(recipe)
    assert pretraining.teacher is not None
    model = load_model(recipe.model, plan, processor)
    return make_twin(model, load_teacher(pretraining.teacher, plan).vision)


def _plan_llava(recipe: FinetuneRun) -> Plan:
    if recipe.encoder is not None or recipe.images is not None:
        raise ConfigError(
            f"{recipe.model.path} has an encoder and its images already; leave out encoder and "
            "images."
        )
    config = AutoConfig.from_pretrained(recipe.model.path)
    assert isinstance(config, LlavaConfig)
    images = twin_images(config.vision_config)
    check_length(recipe.max_length, images)
    made = twin_config(config.text_config, config.vision_config, config.image_token_id)
    return Plan(made, True, None, Blocks(), images)


def _as_pretraining(recipe: FinetuneRun) -> PretrainRun:
    """The same parts as a pretraining has them: an LLM beside a vision tower."""
    if recipe.encoder is None:
        raise ConfigError("There is no encoder.")
    return PretrainRun(
        model=recipe.model,
        teacher=TeacherSettings(path=recipe.encoder.path),
        images=recipe.images or Images(),
        data=recipe.data,
        optimisation=recipe.optimisation,
        distillation=Distillation(mode="none"),
        attention="causal",
        max_length=recipe.max_length,
        run=recipe.run,
        out=recipe.out,
    )


def _is_llava(path: str) -> bool:
    folder = Path(path)
    return (folder / CONFIG_FILE).is_file() and CheckpointHeader.open(
        folder
    ).model_type == MODEL_TYPE
