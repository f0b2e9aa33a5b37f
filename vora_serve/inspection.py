"""``vora-serve inspect``: what a checkpoint is, read from its headers, as text or JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from vora_core.checkpoint import CheckpointHeader, find_local, weight_files
from vora_core.errors import CheckpointError, ConfigError, VoRAError
from vora_core.geometry import IMAGE_TOKEN, ImageSettings
from vora_core.layout import (
    LORA_A,
    Shape,
    check_shapes,
    expected_shapes,
    extra_biases,
    head_sizes,
    part_of,
)
from vora_core.units import amount

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

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
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
        """Whether there are no errors."""
        return not self.problems

    def memory_bytes(self, bytes_per_parameter: int, tokens: int = 0) -> int:
        """Memory of the weights and of a KV cache (16 bits) for so many tokens."""
        return self.served_parameters * bytes_per_parameter + self.kv_bytes_per_token * tokens


def inspect(location: str | Path) -> Inspection:
    """Read a checkpoint's configuration and headers.

    Args:
        location: a folder, or the id of a repository on the Hugging Face hub.

    Raises:
        CheckpointError: there is nothing, or it is not a VoRA checkpoint.
        ConfigError: its configuration is wrong.
    """
    header = CheckpointHeader.open(_folder(location))
    header.require_vora()
    tensors = _tensors(header)
    names = [*tensors]
    config = dict(header.config)
    config.setdefault("extra_biases", None)
    if config["extra_biases"] is None:
        config["extra_biases"] = extra_biases(names, config)
    parameters: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, (shape, dtype) in tensors.items():
        parameters[part_of(name)] += prod(shape)
        dtypes[dtype] += prod(shape)
    problems: list[str] = []
    settings = _settings(header, problems)
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    problems += _problems(header, config, shapes)
    lora = sorted(name.removesuffix(LORA_A) for name in names if name.endswith(LORA_A))
    try:
        return Inspection(
            path=str(header.folder),
            layout=_layout(config, lora),
            files=_files(header.folder),
            dtypes=dict(dtypes),
            parameters={_PART_NAMES[part]: n for part, n in parameters.most_common()},
            llm=_llm(config),
            lora=_lora(lora, shapes),
            extra_biases=dict(Counter(name.split(".", 3)[3] for name in config["extra_biases"])),
            vision=describe_vision(config),
            resolution=describe_resolution(settings) if settings else "unknown",
            image_tokens=image_tokens(settings) if settings else {},
            served_parameters=parameters["llm"] + parameters["vision"],
            kv_bytes_per_token=header.kv_bytes_per_token(2),
            context=int(config["max_position_embeddings"]),
            problems=problems,
        )
    except KeyError as error:
        raise ConfigError(f"The model's configuration has no {error.args[0]}.") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A value in the model's configuration does not fit: {error}.") from error


def _folder(location: str | Path) -> Path:
    """The checkpoint's folder, downloaded where it is on a hub alone."""
    path = Path(location).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{location} is a file; a checkpoint is a folder.")
    cached = find_local(str(location))
    if cached is not None:
        return cached
    from model_plugin.checkpoint import locate  # knows the hub, and imports torch

    return locate(location)


def _tensors(header: CheckpointHeader) -> dict[str, tuple[Shape, str]]:
    """Shape and dtype (torch's name) of each tensor."""
    if weight_files(header.folder)[0].suffix == ".safetensors":
        return {n: (e.shape, _DTYPES.get(e.dtype, e.dtype)) for n, e in header.tensors.items()}
    from model_plugin.tensors import TensorFiles  # pickled files take torch to read

    with TensorFiles(header.folder) as files:
        return {name: (files.shapes[name], files.dtypes[name]) for name in files.files}


def _settings(header: CheckpointHeader, problems: list[str]) -> ImageSettings | None:
    try:
        return header.image_settings
    except VoRAError as error:
        problems.append(str(error))
        return None


def _problems(
    header: CheckpointHeader, config: Mapping[str, Any], shapes: Mapping[str, Shape]
) -> list[str]:
    """Why a checkpoint cannot be served, as sentences."""
    problems = []
    if config.get("quantization_config") is None:
        try:
            tied = bool(config.get("tie_word_embeddings"))
            check_shapes(shapes, expected_shapes(config), tied=tied)
        except VoRAError as error:
            problems.append(str(error))
    if config.get("image_token_id") is None and header.image_token_id is None:
        problems.append(f"The tokenizer has no token {IMAGE_TOKEN} to stand for images.")
    if not header.has_tokenizer:
        problems.append("There is no tokenizer.")
    if _bidirectional(config) and _sliding_window(config):
        problems.append("A sliding window cuts image spans; set use_sliding_window to false.")
    return problems


def _bidirectional(config: Mapping[str, Any]) -> bool:
    return bool(config.get("vision_attention_mask", "bidirectional") == "bidirectional")


def _sliding_window(config: Mapping[str, Any]) -> bool:
    return bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None


def _layout(config: Mapping[str, Any], lora: list[str]) -> str:
    if lora:
        return "pretraining: LoRA factors beside the base weights, merged while loading"
    if config.get("lora"):
        return "merged: LoRA folded into the weights (released layout)"
    return "merged: plain weights"


def _files(folder: Path) -> str:
    files = weight_files(folder)
    size = sum(file.stat().st_size for file in files)
    kind = files[0].suffix.removeprefix(".")
    return f"{len(files)} {kind} file{'s' if len(files) > 1 else ''}, {amount(size)}"


def _llm(config: Mapping[str, Any]) -> str:
    heads, kv_heads, _ = head_sizes(config)
    tied = ", tied embeddings" if config.get("tie_word_embeddings") else ""
    return (
        f"{config.get('llm_model_type', 'qwen2')}, {config['num_hidden_layers']} layers, "
        f"width {config['hidden_size']}, {heads} heads ({kv_heads} for keys and values), "
        f"vocabulary {config['vocab_size']}, context {config['max_position_embeddings']}{tied}"
    )


def _lora(modules: list[str], shapes: Mapping[str, Shape]) -> str:
    if not modules:
        return "none, or merged"
    rank = shapes[modules[0] + LORA_A][0]
    layers = {name.split(".")[3] for name in modules}
    return f"rank {rank} on {len(modules)} linear layers of {len(layers)} blocks"


def describe_vision(config: Mapping[str, Any]) -> str:
    """Patches, attention and positions, in words."""
    patch = config.get("patch_size", 14)
    grid = config.get("image_size", 448) // patch
    attention = "bidirectional" if _bidirectional(config) else "causal"
    positions = (
        "resized in 2-D at every size"
        if config.get("position_mode") == "interpolate"
        else "first rows up to the grid's size, interpolated above (as released)"
    )
    merge = config.get("spatial_merge_size", 1)
    folded = f", {merge}x{merge} patches a token" if merge > 1 else ""
    return (
        f"patches of {patch} px{folded}, attention within an image {attention}, "
        f"{grid}x{grid} learned positions, {positions}"
    )


def describe_resolution(settings: ImageSettings) -> str:
    """The resolution policy, in words."""
    if settings.resolution == "fixed":
        return (
            f"fixed: padded to a square, {settings.image_size}x{settings.image_size} px, "
            f"{settings.max_tokens} tokens an image"
        )
    return (
        f"native: {settings.min_pixels} to {settings.max_pixels} px, "
        f"up to {settings.max_tokens} tokens an image"
    )


def image_tokens(settings: ImageSettings) -> dict[str, int | str]:
    """Tokens of an image of common sizes, or why it has none."""
    tokens: dict[str, int | str] = {}
    for width, height in COMMON_SIZES:
        try:
            tokens[f"{width}x{height}"] = settings.num_tokens(width, height)
        except VoRAError as error:
            tokens[f"{width}x{height}"] = str(error)
    return tokens


def describe(found: Inspection) -> str:
    """The facts as lines of text."""
    total = sum(found.parameters.values())
    rows = [
        ("checkpoint", found.path),
        ("layout", found.layout),
        ("files", found.files),
        ("stored as", ", ".join(f"{name} ({count:,})" for name, count in found.dtypes.items())),
        ("LLM", found.llm),
        ("embedder", found.vision),
        ("parameters", f"{total:,}"),
        *((f"  {part}", f"{count:,}") for part, count in found.parameters.items()),
        ("LoRA", found.lora),
        ("extra biases", _biases(found.extra_biases)),
        ("resolution", found.resolution),
        ("image tokens", ", ".join(f"{size}: {n}" for size, n in found.image_tokens.items())),
        ("weights", f"{amount(found.memory_bytes(2))} in 16 bits, "
                    f"{amount(found.memory_bytes(4))} in 32"),
        ("KV cache", f"{amount(found.kv_bytes_per_token)} a token in 16 bits, "
                     f"{amount(found.kv_bytes_per_token * found.context)} for a full context"),
        ("can be served", "yes" if found.can_be_served else "no: " + " ".join(found.problems)),
    ]  # fmt: skip
    return table(rows)


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Labels and values in two columns."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def as_json(found: Inspection) -> str:
    """The facts as one JSON object."""
    return json.dumps(asdict(found) | {"can_be_served": found.can_be_served}, indent=2)


def _biases(kinds: dict[str, int]) -> str:
    if not kinds:
        return "none"
    return ", ".join(f"{kind} in {count} blocks" for kind, count in kinds.items())
