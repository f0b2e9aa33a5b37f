"""A recipe resolved: everything that follows from it and its parts' configurations.

Made once, before any weights are read; what comes after only reads it.
"""

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from model_plugin import ConfigError, ImageSettings, VoRAConfig
from model_plugin.checkpoint import Checkpoint
from model_plugin.images import CLIP_MEAN, CLIP_STD
from vora_core.checkpoint import CheckpointHeader
from vora_core.layout import SUPPORTED_LLMS
from vora_serve.training.blocks import Blocks, choose_blocks
from vora_serve.training.parts import Parts, TeacherParts, Triple, find_parts
from vora_serve.training.recipe import Attention
from vora_serve.training.run_recipe import FinetuneRun, Images, PretrainRun, TeacherSettings


@dataclass(frozen=True)
class Plan:
    """What a run is made of.

    Attributes:
        config: the model's configuration.
        is_vora: whether the run starts from a VoRA checkpoint; from an LLM otherwise.
        teacher: the teacher's configuration, or None.
        blocks: which blocks get LoRA, and which are distilled; none of either when fine-tuning.
        images: geometry and normalisation.
    """

    config: VoRAConfig
    is_vora: bool
    teacher: TeacherParts | None
    blocks: Blocks
    images: ImageSettings

    @property
    def teacher_config(self) -> PreTrainedConfig | None:
        """The vision tower's configuration, or None."""
        return self.teacher.config if self.teacher is not None else None


def plan_pretrain(recipe: PretrainRun) -> Plan:
    """Put a pretraining's parts together, and see that they fit.

    Raises:
        ConfigError, CheckpointError: they do not.
    """
    _check_dtype(recipe)
    parts = find_parts(recipe.model.path, recipe.teacher)
    teacher = parts.teacher
    if recipe.distillation.mode != "none" and teacher is None:
        raise ConfigError(f"Distillation is {recipe.distillation.mode}, but there is no teacher.")
    norm = (teacher.mean, teacher.std) if teacher is not None else (CLIP_MEAN, CLIP_STD)
    images = _image_settings(recipe.images, recipe.model.spatial_merge_size, norm)
    if images.resolution != "fixed":
        raise ConfigError("Pretraining is at fixed resolution; native is for fine-tuning.")
    config = _pretrain_config(recipe, parts, images)
    images = replace(images, merge_size=config.spatial_merge_size)
    distils = recipe.distillation.mode != "none"
    if recipe.teacher is not None and teacher is not None and distils:
        _check_teacher(recipe.teacher, teacher.config, config.patch_size, images.image_size)
    check_length(recipe.max_length, images)
    depth = teacher.config.num_hidden_layers if teacher is not None else None
    blocks = choose_blocks(recipe, depth, config.num_hidden_layers)
    return Plan(config, parts.checkpoint is not None, teacher, blocks, images)


def plan_finetune(recipe: FinetuneRun) -> Plan:
    """Put a fine-tuning's parts together, and see that they fit.

    Raises:
        ConfigError, CheckpointError: they do not.
    """
    _check_dtype(recipe)
    checkpoint = Checkpoint.open(recipe.model.path)
    checkpoint.check()
    config = checkpoint.config
    if checkpoint.layout != "merged":
        raise ConfigError("Fine-tuning needs a merged checkpoint; run vora-serve merge first.")
    images = CheckpointHeader.open(checkpoint.path).image_settings
    if recipe.images is not None:
        norm = (images.image_mean, images.image_std)
        images = _image_settings(recipe.images, config.spatial_merge_size, norm)
        _check_patches(images.patch_size, config.patch_size)
    _set_attention(config, recipe.attention)
    check_length(recipe.max_length, images)
    return Plan(config, True, None, Blocks(), images)


def _check_dtype(recipe: PretrainRun | FinetuneRun) -> None:
    if recipe.model.dtype == "bfloat16" and not recipe.optimisation.bf16:
        raise ConfigError("model.dtype=bfloat16 needs optimisation.bf16=true.")


def _pretrain_config(recipe: PretrainRun, parts: Parts, images: ImageSettings) -> VoRAConfig:
    """The model's configuration: its checkpoint's, or a new one around an LLM's."""
    llm = parts.llm
    if parts.checkpoint is not None:
        config = parts.checkpoint.config
        if not config.is_merged:
            raise ConfigError("The model has LoRA factors already; run vora-serve merge first.")
        _check_patches(images.patch_size, config.patch_size)
    elif llm.model_type not in SUPPORTED_LLMS:
        raise ConfigError(
            f"The LLM {recipe.model.path} is a {llm.model_type}; VoRA runs with one of "
            f"{', '.join(SUPPORTED_LLMS)}."
        )
    else:
        width = parts.teacher.config.hidden_size if parts.teacher is not None else 1536
        config = VoRAConfig.from_llm_config(
            llm,
            image_size=images.image_size,
            patch_size=images.patch_size,
            spatial_merge_size=images.merge_size,
            vision_embedding_intermediate_size=recipe.embedder_width or width,
            position_mode=recipe.model.position_mode,
        )
    _set_attention(config, recipe.attention)
    return config


def _set_attention(config: VoRAConfig, attention: Attention | None) -> None:
    if attention is not None:
        causal = attention == "causal"
        config.vision_attention_mask = "default" if causal else "bidirectional"


def _check_teacher(
    settings: TeacherSettings, config: PreTrainedConfig, patch_size: int, image_size: int
) -> None:
    """See that a teacher that sees the model's own pixels cuts them as the model does."""
    for what, its, ours in (
        ("patches", config.patch_size, patch_size),
        ("images", config.image_size, image_size),
    ):
        if settings.image_size != "own" and its != ours:
            raise ConfigError(
                f"The teacher's {what} are {its} pixels a side, the model's {ours}; set "
                "teacher.image_size=own, or make them equal."
            )


def _image_settings(images: Images, merge: int, norm: tuple[Triple, Triple]) -> ImageSettings:
    settings = ImageSettings(
        resolution=images.resolution,
        patch_size=images.patch_size,
        merge_size=merge,
        image_size=images.image_size,
        resize_edge=images.image_size,
        min_pixels=images.min_pixels,
        max_pixels=images.max_pixels,
        image_mean=images.mean or norm[0],
        image_std=images.std or norm[1],
    )
    if images.image_size % settings.unit:
        raise ConfigError(
            f"images.image_size {images.image_size} is not a multiple of {settings.unit} "
            "(patch size times merge size)."
        )
    return settings


def _check_patches(asked: int, own: int) -> None:
    if asked != own:
        raise ConfigError(f"The recipe's patches are {asked} pixels a side, the model's {own}.")


def check_length(max_length: int, images: ImageSettings) -> None:
    """See that a sample has room for text beside an image.

    Raises:
        ConfigError: it does not.
    """
    if images.max_tokens >= max_length:
        raise ConfigError(
            f"An image may have {images.max_tokens} tokens, which max_length {max_length} leaves "
            "no room for."
        )
