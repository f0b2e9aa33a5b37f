"""From a recipe to model, teacher and processor; configurations first, weights last."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Aimv2VisionModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)
from transformers.utils import cached_file

from model_plugin import (
    IMAGE_TOKEN,
    ConfigError,
    ImageSettings,
    VoRAConfig,
    VoRAForCausalLM,
    VoRAImageProcessor,
    VoRAProcessor,
)
from model_plugin.checkpoint import Checkpoint
from model_plugin.embedder import VoRAVisionEmbedding
from model_plugin.images import CLIP_MEAN, CLIP_STD
from vora_core.checkpoint import read_json
from vora_core.layout import SUPPORTED_LLMS
from vora_serve.training.attention import DOCUMENTS
from vora_serve.training.distill import Teacher, distilled_blocks
from vora_serve.training.features import PixelBridge
from vora_serve.training.run_recipe import (
    FinetuneRun,
    Images,
    ModelSettings,
    PretrainRun,
    TeacherSettings,
)
from vora_serve.training.shapes import find_config

Triple = tuple[float, float, float]

_TEACHERS: dict[str, Any] = {
    "aimv2_vision_model": Aimv2VisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}


@dataclass(frozen=True)
class Plan:
    """What a run is made of, before any weights are read.

    Attributes:
        config: the model's.
        teacher_config: the vision tower's, or None.
        blocks: numbers of the distilled blocks.
        n_vit: blocks with LoRA; 0 when fine-tuning.
        images: geometry and normalisation.
        teacher_norm: mean and std that the teacher wants.
    """

    config: VoRAConfig
    teacher_config: PreTrainedConfig | None
    blocks: list[int]
    n_vit: int
    images: ImageSettings
    teacher_norm: tuple[Triple, Triple] | None


def plan_pretrain(recipe: PretrainRun) -> Plan:
    """Put a pretraining's parts together, and see that they fit.

    Raises:
        ConfigError, CheckpointError: they do not.
    """
    llm = find_config(recipe.model.path, "The LLM")
    teacher = teacher_norm = None
    if recipe.teacher is not None:
        teacher = vision_config(recipe.teacher)
        teacher_norm = _teacher_norm(recipe.teacher.path)
    if recipe.distillation.mode != "none" and teacher is None:
        raise ConfigError(f"Distillation is {recipe.distillation.mode}, but there is no teacher.")
    images = _image_settings(recipe.images, recipe.model.spatial_merge_size, teacher_norm)
    if images.resolution != "fixed":
        raise ConfigError("Pretraining is at fixed resolution; native is for fine-tuning.")
    if isinstance(llm, VoRAConfig):
        config = Checkpoint.open(recipe.model.path).config
        if not config.is_merged:
            raise ConfigError("The model has LoRA factors already; run vora-serve merge first.")
        images = _with_merge(images, config.spatial_merge_size)
        if config.patch_size != images.patch_size:
            raise ConfigError(
                f"The recipe's patches are {images.patch_size} pixels a side, the model's "
                f"{config.patch_size}."
            )
    else:
        if llm.model_type not in SUPPORTED_LLMS:
            raise ConfigError(
                f"The LLM {recipe.model.path} is a {llm.model_type}; VoRA runs with one of "
                f"{', '.join(SUPPORTED_LLMS)}."
            )
        config = VoRAConfig.from_llm_config(
            llm,
            image_size=images.image_size,
            patch_size=images.patch_size,
            spatial_merge_size=images.merge_size,
            vision_embedding_intermediate_size=recipe.embedder_width
            or (teacher.hidden_size if teacher is not None else 1536),
            position_mode=recipe.model.position_mode,
        )
    causal = recipe.attention == "causal"
    if recipe.attention is not None:
        config.vision_attention_mask = "default" if causal else "bidirectional"
    depth = teacher.num_hidden_layers if teacher is not None else config.num_hidden_layers
    blocks = distilled_blocks(recipe.distillation, depth, config.num_hidden_layers)
    if teacher is not None and recipe.teacher is not None and blocks:
        own = recipe.teacher.image_size == "own"
        if not own and teacher.patch_size != config.patch_size:
            raise ConfigError(
                f"The teacher's patches are {teacher.patch_size} pixels a side, the model's "
                f"{config.patch_size}; say teacher.image_size=own, or make them equal."
            )
        if not own and teacher.image_size != images.image_size:
            raise ConfigError(
                f"The teacher's pictures are {teacher.image_size} pixels a side, the recipe's "
                f"{images.image_size}; say teacher.image_size=own, or make them equal."
            )
    n_vit = recipe.n_vit or depth
    if n_vit > config.num_hidden_layers:
        raise ConfigError(
            f"LoRA is asked for {n_vit} blocks, but the LLM has {config.num_hidden_layers}."
        )
    _check_length(recipe.max_length, images)
    return Plan(config, teacher, blocks, n_vit, images, teacher_norm)


def plan_finetune(recipe: FinetuneRun) -> Plan:
    """Put a fine-tuning's parts together, and see that they fit.

    Raises:
        ConfigError, CheckpointError: they do not.
    """
    checkpoint = Checkpoint.open(recipe.model.path)
    checkpoint.check()
    config = checkpoint.config
    if checkpoint.layout != "merged":
        raise ConfigError("Fine-tuning needs a merged checkpoint; run vora-serve merge first.")
    if recipe.attention is not None:
        causal = recipe.attention == "causal"
        config.vision_attention_mask = "default" if causal else "bidirectional"
    own = load_processor(recipe.model).settings
    if recipe.images is None:
        images = own
    else:
        norm = (own.image_mean, own.image_std)
        images = _image_settings(recipe.images, config.spatial_merge_size, norm)
        if images.patch_size != config.patch_size:
            raise ConfigError(
                f"The recipe's patches are {images.patch_size} pixels a side, the model's "
                f"{config.patch_size}."
            )
    _check_length(recipe.max_length, images)
    return Plan(config, None, [], 0, images, None)


def vision_config(settings: TeacherSettings) -> PreTrainedConfig:
    """A teacher's vision configuration.

    Raises:
        ConfigError: it is of a kind that is not known.
    """
    config = find_config(settings.path, "The teacher")
    config = getattr(config, "vision_config", config)
    if config.model_type not in _TEACHERS:
        raise ConfigError(
            f"The teacher {settings.path} is a {config.model_type}; known are AIMv2, CLIP, SigLIP "
            "and DINOv2."
        )
    return config


def load_teacher(settings: TeacherSettings, plan: Plan) -> Teacher:
    """The teacher with its weights."""
    if plan.teacher_config is None:
        raise ConfigError("There is no teacher.")
    kind = _TEACHERS[plan.teacher_config.model_type]
    vision = kind.from_pretrained(settings.path, dtype=getattr(torch, settings.dtype))
    bridge = None
    if settings.image_size == "own" and plan.teacher_norm is not None:
        bridge = PixelBridge(
            plan.images.image_mean,
            plan.images.image_std,
            *plan.teacher_norm,
            int(plan.teacher_config.image_size),
        )
    return Teacher(vision, bridge)


def load_processor(settings: ModelSettings, images: ImageSettings | None = None) -> VoRAProcessor:
    """Tokenizer, template and image settings of the model that a run starts from.

    Args:
        settings: the recipe's.
        images: other image settings than the checkpoint's.

    Raises:
        ConfigError: tokenizer or template cannot be had.
    """
    template = None
    if settings.chat_template is not None:
        try:
            template = Path(settings.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The template cannot be read: {error}.") from error
    if (Path(settings.path) / "preprocessor_config.json").is_file() or images is None:
        processor = VoRAProcessor.from_pretrained(settings.path)
        chosen = images or processor.settings
        template = template or processor.chat_template
        return VoRAProcessor(VoRAImageProcessor(chosen), processor.tokenizer, template)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"The tokenizer of {settings.path} cannot be had: {reason}") from error
    _add_image_token(tokenizer)
    return VoRAProcessor(VoRAImageProcessor(images), tokenizer, template or tokenizer.chat_template)


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
    if isinstance(find_config(settings.path, "The model"), VoRAConfig):
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


def _add_image_token(tokenizer: PreTrainedTokenizerBase) -> None:
    if IMAGE_TOKEN not in tokenizer.get_added_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})


def _image_settings(
    images: Images, merge: int, norm: tuple[Triple, Triple] | None
) -> ImageSettings:
    mean, std = norm or (CLIP_MEAN, CLIP_STD)
    settings = ImageSettings(
        resolution=images.resolution,
        patch_size=images.patch_size,
        merge_size=merge,
        image_size=images.image_size,
        resize_edge=images.image_size,
        min_pixels=images.min_pixels,
        max_pixels=images.max_pixels,
        image_mean=images.mean or mean,
        image_std=images.std or std,
    )
    if images.image_size % settings.unit:
        raise ConfigError(
            f"images.image_size {images.image_size} is no multiple of {settings.unit} "
            "(patch size times merge size)."
        )
    return settings


def _with_merge(images: ImageSettings, merge: int) -> ImageSettings:
    return ImageSettings(**(vars(images) | {"merge_size": merge}))


def _check_length(max_length: int, images: ImageSettings) -> None:
    pixels = images.max_pixels if images.resolution == "native" else images.image_size**2
    tokens = pixels // images.unit**2
    if tokens >= max_length:
        raise ConfigError(
            f"An image may have {tokens} tokens, which max_length {max_length} leaves no room for."
        )


def _teacher_norm(path: str) -> tuple[Triple, Triple]:
    """Mean and std of a teacher's pixels, from its preprocessor file; CLIP's if it has none."""
    try:
        file = cached_file(
            path,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        file = None
    data = read_json(Path(file)) if file else {}
    mean, std = data.get("image_mean", CLIP_MEAN), data.get("image_std", CLIP_STD)
    return tuple(map(float, mean)), tuple(map(float, std))  # type: ignore[return-value]
