"""What a checkpoint costs to serve, read from its headers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.cost.model import Decoder, ModelCost, Tower
from vora_core.checkpoint import CheckpointHeader
from vora_core.errors import ConfigError
from vora_core.geometry import side_of
from vora_core.layout import head_sizes


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """``read_checkpoint`` as plain values."""
    return read_checkpoint(folder).to_json()


def read_checkpoint(folder: Path) -> ModelCost:
    """Read a checkpoint's configs and the headers of its weight files.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the model is of a family that this does not know, or a size is missing.
    """
    header = CheckpointHeader.open(folder)
    try:
        return _read(header)
    except KeyError as error:
        raise ConfigError(f"{folder}: config.json has no {error.args[0]}.") from error


def _read(header: CheckpointHeader) -> ModelCost:
    config, pixels = header.config, header.processor
    rest = {
        "params": header.parameters,
        "weight_bytes": header.weight_bytes,
        "random": config.get("loadtest", {}).get("weights") == "random",
    }
    family = header.model_type
    if family == "vora":
        images = header.image_settings
        patch = images.patch_size
        width = int(config.get("vision_embedding_intermediate_size", 1536))
        return ModelCost(
            family="vora",
            decoder=_decoder(config),
            tower=None,
            embedder=3 * patch**2 * width,
            side=None if images.resolution == "native" else images.image_size,
            patch=patch,
            merge=images.merge_size,
            whole_spans=config.get("vision_attention_mask", "bidirectional") == "bidirectional",
            min_pixels=images.min_pixels,
            max_pixels=images.max_pixels,
            **rest,
        )
    if family == "llava":
        vision = config["vision_config"]
        hidden, out = int(vision["hidden_size"]), int(config["text_config"]["hidden_size"])
        patch = int(vision["patch_size"])
        return ModelCost(
            family="llava",
            decoder=_decoder(config["text_config"]),
            tower=Tower(
                hidden=hidden,
                layers=_layers_used(config),
                intermediate=int(vision["intermediate_size"]),
                patch=patch,
                gated=False,
                connector=hidden * out + out * out,
            ),
            embedder=3 * patch**2 * hidden,
            side=side_of(
                pixels.get("crop_size") or pixels.get("size") or int(vision["image_size"])
            ),
            patch=patch,
            merge=1,
            whole_spans=False,
            **rest,
        )
    if family == "qwen2_5_vl":
        vision = config["vision_config"]
        hidden, out = int(vision["hidden_size"]), int(vision["out_hidden_size"])
        patch, merge = int(vision["patch_size"]), int(vision["spatial_merge_size"])
        wide = hidden * merge**2
        return ModelCost(
            family="qwen2_5_vl",
            decoder=_decoder(config.get("text_config", config)),
            tower=Tower(
                hidden=hidden,
                layers=int(vision["depth"]),
                intermediate=int(vision["intermediate_size"]),
                patch=patch,
                gated=True,
                connector=wide * wide + wide * out,
                window_tokens=(int(vision["window_size"]) // patch) ** 2,
                full_layers=len(vision["fullatt_block_indexes"]),
            ),
            embedder=3 * patch**2 * hidden * int(vision.get("temporal_patch_size", 2)),
            side=None,
            patch=patch,
            merge=merge,
            whole_spans=False,
            min_pixels=int(pixels.get("min_pixels", 56 * 56)),
            max_pixels=int(pixels.get("max_pixels", 28 * 28 * 1280)),
            **rest,
        )
    raise ConfigError(
        f"{header.folder} is a model of the family {family!r}, whose cost is not known here."
    )


def _layers_used(config: Mapping[str, Any]) -> int:
    """Blocks of LLaVA's tower up to the one whose states are taken; servers leave out the rest."""
    layers = int(config["vision_config"]["num_hidden_layers"])
    taken = int(config.get("vision_feature_layer", -1))
    return layers + 1 + taken if taken < 0 else taken


def _decoder(config: Mapping[str, Any]) -> Decoder:
    heads, kv_heads, head = head_sizes(config)
    return Decoder(
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head,
        intermediate=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
