"""What a checkpoint is, read from its headers: no weights are loaded."""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from model_plugin.checkpoint import Checkpoint, part_of, read_json
from model_plugin.config import VoRAConfig
from model_plugin.errors import VoRAError
from model_plugin.images import ImageSettings

#: Sizes in pixels, (width, height), at which ``inspect`` says what an image costs.
COMMON_SIZES = (
    (224, 224),
    (448, 448),
    (640, 480),
    (1280, 720),
    (1920, 1080),
    (3024, 4032),
    (600, 2400),
)

_PART_NAMES = {
    "llm": "LLM",
    "vision": "patch embedder",
    "lora": "LoRA factors",
    "aux": "distillation (left out when served)",
    "unknown": "unknown",
}


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's facts.

    Attributes:
        path: its folder.
        layout: how LoRA is stored.
        files: number and kind of weight files.
        dtypes: dtype to number of parameters stored in it.
        parameters: part to number of parameters.
        llm: family and sizes.
        lora: rank and layers of separate LoRA factors, or what became of them.
        extra_biases: linear layers with a bias that the LLM's architecture lacks, by kind.
        vision: geometry of the embedder, attention and positions.
        resolution: the resolution policy.
        image_tokens: size in pixels to LLM tokens.
        served_parameters: parameters of the merged model.
        kv_bytes_per_token: bytes of KV cache that a token takes in 16 bits.
        problems: why it cannot be served; empty if it can.
    """

    path: str
    layout: str
    files: str
    dtypes: dict[str, int]
    parameters: dict[str, int]
    llm: str
    lora: str
    extra_biases: dict[str, int]
    vision: str
    resolution: str
    image_tokens: dict[str, int | str]
    served_parameters: int
    kv_bytes_per_token: int
    context: int
    problems: list[str] = field(default_factory=list)

    @property
    def can_be_served(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    def memory_bytes(self, bytes_per_parameter: int, tokens: int = 0) -> int:
        """Memory of the weights and of a KV cache (16 bits) for so many tokens."""
        return self.served_parameters * bytes_per_parameter + self.kv_bytes_per_token * tokens


def inspect(path: str | Path, **hub: Any) -> Inspection:
    """Read a checkpoint's configuration and headers.

    Args:
        path: a folder, or the id of a repository on the Hugging Face hub.
        **hub: as in ``Checkpoint.open``.

    Raises:
        CheckpointError: nothing is there, or it is no VoRA checkpoint.
        ConfigError: its configuration is wrong.
    """
    checkpoint = Checkpoint.open(path, **hub)
    config, shapes = checkpoint.config, checkpoint.shapes
    counts = {name: prod(shape) for name, shape in shapes.items()}
    parameters: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, count in counts.items():
        parameters[part_of(name)] += count
        dtypes[checkpoint.dtypes[name]] += count
    problems: list[str] = []
    settings = _settings(checkpoint, problems)
    problems += _problems(checkpoint)
    return Inspection(
        path=str(checkpoint.path),
        layout=_layout(checkpoint),
        files=_files(checkpoint),
        dtypes=dict(dtypes),
        parameters={_PART_NAMES[part]: n for part, n in parameters.most_common()},
        llm=_llm(config),
        lora=_lora(checkpoint),
        extra_biases=dict(Counter(name.split(".", 3)[3] for name in checkpoint.extra_biases)),
        vision=_vision(config),
        resolution=_resolution(settings) if settings else "unknown",
        image_tokens=_image_tokens(settings) if settings else {},
        served_parameters=parameters["llm"] + parameters["vision"],
        kv_bytes_per_token=kv_bytes_per_token(config, 2),
        context=config.max_position_embeddings,
        problems=problems,
    )


def kv_bytes_per_token(config: VoRAConfig, bytes_per_value: int) -> int:
    """Bytes of KV cache that one token takes, all layers together."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * bytes_per_value


def _settings(checkpoint: Checkpoint, problems: list[str]) -> ImageSettings | None:
    config, file = checkpoint.config, checkpoint.path / "preprocessor_config.json"
    try:
        return ImageSettings.from_dict(
            {"size": config.image_size} | (read_json(file) if file.is_file() else {}),
            patch_size=config.patch_size,
            merge_size=config.spatial_merge_size,
        )
    except VoRAError as error:
        problems.append(str(error))
        return None


def _problems(checkpoint: Checkpoint) -> list[str]:
    """Why a checkpoint cannot be served, as sentences."""
    config, problems = checkpoint.config, []
    quantised = getattr(config, "quantization_config", None) is not None
    if not quantised:
        try:
            checkpoint.check()
        except VoRAError as error:
            problems.append(str(error))
    if config.image_token_id is None:
        problems.append("The tokenizer has no token <|image_pad|> to stand for images.")
    if not any((checkpoint.path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        problems.append("There is no tokenizer.")
    if config.is_mm_prefix_lm and getattr(config, "sliding_window", None) is not None:
        problems.append("A sliding window cuts image spans; set use_sliding_window to false.")
    return problems


def _layout(checkpoint: Checkpoint) -> str:
    if checkpoint.layout == "pretraining":
        return "pretraining: LoRA factors beside the base weights, merged while loading"
    if checkpoint.config.lora:
        return "merged: LoRA folded into the weights (released layout)"
    return "merged: plain weights"


def _files(checkpoint: Checkpoint) -> str:
    files = sorted(set(checkpoint.files.values()))
    size = sum(file.stat().st_size for file in files)
    kind = files[0].suffix.removeprefix(".")
    return f"{len(files)} {kind} file{'s' if len(files) > 1 else ''}, {amount(size)}"


def _llm(config: VoRAConfig) -> str:
    tied = ", tied embeddings" if config.tie_word_embeddings else ""
    return (
        f"{config.llm_model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads ({config.num_key_value_heads} for keys and values), "
        f"vocabulary {config.vocab_size}, context {config.max_position_embeddings}{tied}"
    )


def _lora(checkpoint: Checkpoint) -> str:
    modules = checkpoint.lora_modules
    if not modules:
        return "none, or merged"
    rank = checkpoint.shapes[f"{modules[0]}.lora_A.weight"][0]
    layers = {name.split(".")[3] for name in modules}
    return f"rank {rank} on {len(modules)} linear layers of {len(layers)} blocks"


def _vision(config: VoRAConfig) -> str:
    grid = config.grid_size
    attention = "bidirectional" if config.is_mm_prefix_lm else "causal"
    positions = (
        "resized in 2-D at every size"
        if config.position_mode == "interpolate"
        else "first rows up to the grid's size, interpolated above (as released)"
    )
    merge = config.spatial_merge_size
    folded = f", {merge}x{merge} patches a token" if merge > 1 else ""
    return (
        f"patches of {config.patch_size} px{folded}, attention within an image {attention}, "
        f"{grid}x{grid} learned positions, {positions}"
    )


def _resolution(settings: ImageSettings) -> str:
    if settings.resolution == "fixed":
        return (
            f"fixed: padded to a square, {settings.image_size}x{settings.image_size} px, "
            f"{settings.max_tokens} tokens an image"
        )
    return (
        f"native: {settings.min_pixels} to {settings.max_pixels} px, "
        f"up to {settings.max_tokens} tokens an image"
    )


def _image_tokens(settings: ImageSettings) -> dict[str, int | str]:
    tokens: dict[str, int | str] = {}
    for width, height in COMMON_SIZES:
        try:
            tokens[f"{width}x{height}"] = settings.num_tokens(width, height)
        except VoRAError as error:
            tokens[f"{width}x{height}"] = str(error)
    return tokens


def amount(size: float) -> str:
    """A number of bytes for people: ``15.2 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
