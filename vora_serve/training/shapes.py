"""Shapes of the models that the shipped recipes name, so that ``--dry-run`` needs no download."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from model_plugin import ConfigError

_KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "apple/aimv2-huge-patch14-448": {
        "model_type": "aimv2_vision_model",
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 12,
        "image_size": 448,
        "patch_size": 14,
    },
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}


def known_shape(path: str) -> PreTrainedConfig | None:
    """The configuration of a model by its hub id; None for others."""
    keys = dict(_KNOWN.get(path, {}))
    return CONFIG_MAPPING[keys.pop("model_type")](**keys) if keys else None


def find_config(path: str, what: str) -> PreTrainedConfig:
    """A model's configuration, from a folder, the hub, or the table above.

    Args:
        path: a folder or a hub id.
        what: what it is, for the error.

    Raises:
        ConfigError: it cannot be had.
    """
    known = known_shape(path)
    if known is not None:
        return known
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{what}, {path}, cannot be had: {reason}") from error
