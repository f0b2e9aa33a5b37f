"""Checkpoints of the encoder-based twin, as ``LlavaForConditionalGeneration``: write and read.

Images are padded to a square with black and normalised, as training does it. transformers' LLaVA
processor pads with the mean colour instead, so normalisation moves into the patch projection: with
a mean of 0, the mean colour is black.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from model_plugin import (
    IMAGE_TOKEN,
    CheckpointError,
    ImageSettings,
    VoRAForCausalLM,
    VoRAProcessor,
)
from model_plugin.chat_template import content_form, with_parts_as_text
from model_plugin.export import (
    GENERATION_DEFAULTS,
    MAX_SHARD_BYTES,
    new_folder,
    special_tokens,
)
from model_plugin.tensors import TensorStream, write_tensor
from vora_core.safetensors_io import ShardWriter
from vora_serve.training.encoder import FEATURE_LAYER, EncoderEmbedding, twin_config

MODEL_TYPE = "llava"
#: Ours to those of published LLaVA checkpoints, which both transformers and vLLM read.
_PREFIXES = {
    "llm.": "language_model.",
    "vision_embedding.tower.": "vision_tower.vision_model.",
    "vision_embedding.linear_": "multi_modal_projector.linear_",
}
#: Characters by which the new names may be longer.
_LONGER = max(len(new) - len(old) for old, new in _PREFIXES.items())
_PATCHES, _POSITIONS = "patch_embedding.weight", "position_embedding.weight"


def export_llava(
    out: Path,
    model: VoRAForCausalLM,
    tensors: TensorStream,
    processor: VoRAProcessor,
    *,
    dtype: torch.dtype,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a twin as a LLaVA checkpoint.

    Args:
        out: folder to make.
        model: the twin, for its configuration.
        tensors: its tensors, by its own names; consumed one at a time.
        processor: supplies tokenizer, chat template and image settings.
        dtype: of the weights on disk.
        files: further text files by name.
        overwrite: replace ``out``.

    Raises:
        CheckpointError: ``out`` exists, a tensor is not finite, or the disk is full; then nothing
            is left behind.
    """
    with new_folder(out, overwrite) as work:
        _config(model, processor, dtype).save_pretrained(work)
        _write_processor(work, processor, model)
        room = [f"{name}{'x' * _LONGER}" for name in model.state_dict()]
        with ShardWriter(work, room, MAX_SHARD_BYTES) as writer:
            for name, tensor in _named(tensors, processor.settings):
                if not bool(torch.isfinite(tensor).all()):
                    raise CheckpointError(f"The tensor {name} holds values that are not finite.")
                write_tensor(writer, name, tensor.to(dtype))
        generation = GENERATION_DEFAULTS | special_tokens(processor)
        GenerationConfig(**generation).save_pretrained(work)
        for name, text in (files or {}).items():
            (work / name).write_text(text, encoding="utf-8")
    return out


def load_llava(folder: Path) -> VoRAForCausalLM:
    """A twin from its checkpoint, in float32, to train on.

    Raises:
        CheckpointError: it is not one that :func:`export_llava` wrote, or tensors are missing.
    """
    try:
        llava, found = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{folder} cannot be loaded: {reason}") from error
    absent = sorted(found["missing_keys"])
    if absent:
        raise CheckpointError(f"{folder} lacks tensors, {absent[0]} among them.")
    config = llava.config
    model_config = twin_config(config.text_config, config.vision_config, config.image_token_id)
    with torch.device("meta"):
        model = VoRAForCausalLM(model_config)
    model.llm = AutoModelForCausalLM.from_config(config.text_config).float()
    model.llm.model = llava.model.language_model
    model.llm.lm_head = llava.lm_head
    embedding = EncoderEmbedding(llava.model.vision_tower, model_config.hidden_size)
    embedding.linear_1 = llava.model.multi_modal_projector.linear_1
    embedding.linear_2 = llava.model.multi_modal_projector.linear_2
    holder: Any = model
    holder.vision_embedding = embedding
    return model


def twin_images(tower: Any) -> ImageSettings:
    """What images become in front of a tower that normalises them itself.

    Args:
        tower: its configuration.
    """
    return ImageSettings(
        patch_size=tower.patch_size,
        image_size=tower.image_size,
        resize_edge=tower.image_size,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
    )


def _tower_config(model: VoRAForCausalLM) -> Any:
    embedding: Any = model.vision_embedding
    return embedding.tower.config


def _config(model: VoRAForCausalLM, processor: VoRAProcessor, dtype: torch.dtype) -> LlavaConfig:
    tower = _tower_config(model)
    text = model.config.inner_config()
    text.dtype = tower.dtype = dtype
    has_class = tower.model_type == "clip_vision_model"
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=tower.to_dict(),
        text_config=text.to_dict(),
        image_token_index=processor.image_token_id,
        image_token_id=processor.image_token_id,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default" if has_class else "full",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        tie_word_embeddings=bool(model.config.tie_word_embeddings),
        dtype=dtype,
    )


def _write_processor(folder: Path, processor: VoRAProcessor, model: VoRAForCausalLM) -> None:
    settings = processor.settings
    tower = _tower_config(model)
    has_class = tower.model_type == "clip_vision_model"
    edge = {"height": settings.resize_edge, "width": settings.resize_edge}
    size = {"height": settings.image_size, "width": settings.image_size}
    pixels = {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_pad": True,
        "do_resize": True,
        "size": edge,
        "resample": settings.resample,
        "do_center_crop": True,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": settings.rescale_factor,
        "do_normalize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    own = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TOKEN,
        "patch_size": tower.patch_size,
        "num_additional_image_tokens": int(has_class),
        "vision_feature_select_strategy": "default" if has_class else "full",
    }
    processor.tokenizer.save_pretrained(str(folder))
    for name, content in (("preprocessor_config.json", pixels), ("processor_config.json", own)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # Stock vLLM reads from a template's loops whether messages may be lists; ours has a macro.
    chat = processor.chat_template
    template = chat if content_form(chat) == "lists" else with_parts_as_text(chat)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _named(tensors: TensorStream, settings: ImageSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by LLaVA's names, with normalisation inside the patch projection and positions."""
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        place = next((p for p in _PREFIXES if name.startswith(p)), None)
        if place is None:
            raise CheckpointError(f"The tensor {name} has no place in a LLaVA checkpoint.")
        new = _PREFIXES[place] + name.removeprefix(place)
        if new.endswith((_PATCHES, _POSITIONS)):
            held[new] = tensor.detach().to("cpu", torch.float64)
        else:
            yield new, tensor
    patches = next(name for name in held if name.endswith(_PATCHES))
    positions = next(name for name in held if name.endswith(_POSITIONS))
    mean = torch.tensor(settings.image_mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(settings.image_std, dtype=torch.float64)[:, None, None]
    yield patches, (held[patches] / std).float()
    moved = held[positions].clone()
    count = (settings.image_size // settings.patch_size) ** 2
    moved[-count:] -= (held[patches] * (mean / std)).sum((1, 2, 3))  # not a class token's
    yield positions, moved.float()
