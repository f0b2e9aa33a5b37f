"""The configurations of a run's parts (model and teacher), each found once.

The shapes of the models that the shipped recipes name are known here: ``--dry-run`` downloads
nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from model_plugin import ConfigError, VoRAConfig
from model_plugin.checkpoint import Checkpoint
from model_plugin.images import CLIP_MEAN, CLIP_STD
from vora_core.checkpoint import read_json
from vora_serve.training.run_recipe import TeacherSettings

Triple = tuple[float, float, float]

#: Vision towers that can teach, by their configuration's ``model_type``.
TEACHER_TYPES = (
    "aimv2_vision_model",
    "clip_vision_model",
    "siglip_vision_model",
    "dinov2",
    "dinov2_with_registers",
)

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


@dataclass(frozen=True)
class TeacherParts:
    """A teacher's configuration.

    Attributes:
        config: the vision tower's.
        mean, std: normalisation of its pixels, per channel.
    """

    config: PreTrainedConfig
    mean: Triple
    std: Triple


@dataclass(frozen=True)
class Parts:
    """Configurations of a run's parts.

    Attributes:
        llm: of the model that the run starts from, an LLM or a VoRA model.
        checkpoint: that model's checkpoint where it is VoRA; None for an LLM.
        teacher: None where there is no teacher.
    """

    llm: PreTrainedConfig
    checkpoint: Checkpoint | None
    teacher: TeacherParts | None


def find_parts(model: str, teacher: TeacherSettings | None) -> Parts:
    """Look up the configurations of a pretraining's parts.

    Args:
        model: a folder or a hub id.
        teacher: the recipe's.

    Raises:
        ConfigError, CheckpointError: one is not there, or is of an unknown kind.
    """
    llm = _find(model, "The LLM")
    tower = _find_teacher(teacher.path) if teacher is not None else None
    checkpoint = Checkpoint.open(model) if isinstance(llm, VoRAConfig) else None
    return Parts(llm, checkpoint, tower)


def known_shape(path: str) -> PreTrainedConfig | None:
    """The configuration of a model by its hub id; None for others."""
    keys = dict(_KNOWN.get(path, {}))
    return CONFIG_MAPPING[keys.pop("model_type")](**keys) if keys else None


def _find_teacher(path: str) -> TeacherParts:
    config = _find(path, "The teacher")
    config = getattr(config, "vision_config", config)
    if config.model_type not in TEACHER_TYPES:
        raise ConfigError(
            f"The teacher {path} is a {config.model_type}; known are AIMv2, CLIP, SigLIP and "
            "DINOv2."
        )
    return TeacherParts(config, *_normalisation(path))


def _find(path: str, what: str) -> PreTrainedConfig:
    known = known_shape(path)
    if known is not None:
        return known
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{what}, {path}, cannot be loaded: {reason}") from error


def _normalisation(path: str) -> tuple[Triple, Triple]:
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
