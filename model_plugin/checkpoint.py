"""Reading VoRA checkpoints: every layout, streamed, with nothing dropped in silence.

Tensor names (the released layout): ``llm.*`` the LLM, ``vision_embedding.*`` the patch embedder,
``*.lora_A.weight`` and ``*.lora_B.weight`` LoRA factors beside their base weight, ``aux_vision.*``
the distillation heads and teacher that a pretraining checkpoint carries and serving does not need.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open

from model_plugin.config import LINEAR_LAYERS, VoRAConfig
from model_plugin.errors import CheckpointError, ConfigError
from model_plugin.images import IMAGE_TOKEN

Part = Literal["llm", "vision", "lora", "aux", "unknown"]
TensorStream = Iterable[tuple[str, torch.Tensor]]

_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"


def part_of(name: str) -> Part:
    """Which part of a checkpoint a tensor belongs to."""
    if name.startswith("aux_vision."):
        return "aux"
    if name.endswith((LORA_A, LORA_B)):
        return "lora"
    if name.startswith("llm."):
        return "llm"
    if name.startswith("vision_embedding."):
        return "vision"
    return "unknown"


@dataclass
class Checkpoint:
    """A VoRA checkpoint on disk.

    Attributes:
        path: its folder.
        config: its configuration, with ``extra_biases`` and ``image_token_id`` filled in from its
            tensors and tokenizer.
        files: the weight file of each tensor.
    """

    path: Path
    config: VoRAConfig
    files: dict[str, Path]
    _handles: dict[Path, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path, config: VoRAConfig | None = None, **hub: Any) -> Self:
        """Find a checkpoint's configuration and tensors; reads no weights.

        Args:
            path: a folder, or the id of a repository on the Hugging Face hub.
            config: a configuration to use instead of the checkpoint's own.
            **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``.

        Raises:
            CheckpointError: nothing is there, or it is no VoRA checkpoint.
            ConfigError: its configuration is wrong.
        """
        folder = locate(path, **hub)
        if config is None:
            config = read_config(folder)
        checkpoint = cls(folder, config, _weight_files(folder))
        if config.extra_biases is None:
            config.extra_biases = checkpoint.extra_biases
        if config.image_token_id is None:
            config.image_token_id = find_image_token_id(folder)
        return checkpoint

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        shapes = {}
        for name, file in self.files.items():
            handle = self._handle(file)
            tensor = handle[name] if isinstance(handle, dict) else handle.get_slice(name)
            shapes[name] = tuple(tensor.shape if isinstance(handle, dict) else tensor.get_shape())
        return shapes

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Dtype that each tensor is stored in, in torch's names (``bfloat16``)."""
        dtypes = {}
        for name, file in self.files.items():
            handle = self._handle(file)
            if isinstance(handle, dict):
                dtypes[name] = str(handle[name].dtype).removeprefix("torch.")
            else:
                stored = handle.get_slice(name).get_dtype()
                dtypes[name] = _SAFETENSORS_DTYPES.get(stored, stored)
        return dtypes

    @property
    def lora_modules(self) -> list[str]:
        """Layers, without ``.weight``, that have separate LoRA factors."""
        return sorted(name.removesuffix(LORA_A) for name in self.files if name.endswith(LORA_A))

    @property
    def extra_biases(self) -> list[str]:
        """Layers of the LLM with a bias that its architecture lacks (``model.layers...``)."""
        names = [
            name.removeprefix("llm.").removesuffix(".bias")
            for name in self.files
            if name.startswith("llm.") and name.endswith(".bias")
        ]
        return sorted(name for name in names if name.endswith(self._biasless_layers))

    @property
    def _biasless_layers(self) -> tuple[str, ...]:
        """Linear layers of a block that the LLM's own configuration builds without bias.

        The released LoRA code gives every layer that it touches a bias.
        """
        attention, mlp = LINEAR_LAYERS[:4], LINEAR_LAYERS[4:]
        own: tuple[str, ...] = ()
        if self.config.llm_model_type == "qwen2":
            own = attention[:3]
        elif getattr(self.config, "attention_bias", False):
            own = attention
        if getattr(self.config, "mlp_bias", False):
            own += mlp
        return tuple(layer for layer in LINEAR_LAYERS if layer not in own)

    @property
    def layout(self) -> Literal["pretraining", "merged"]:
        """``pretraining``: LoRA factors beside the base weights; ``merged``: one weight a layer."""
        return "pretraining" if self.lora_modules else "merged"

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype it is stored in.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self.files:
            raise CheckpointError(f"{self.path.name} has no tensor {name}.")
        handle = self._handle(self.files[name])
        tensor = handle[name] if isinstance(handle, dict) else handle.get_tensor(name)
        return torch.as_tensor(tensor)

    def raw_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors as stored, one at a time, LoRA factors next to their weight."""
        for name in sorted(self.files):
            yield name, self.tensor(name)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged model's tensors, one at a time; LoRA folded in, ``aux_vision`` left out."""
        kept = ((n, t) for n, t in self.raw_tensors() if part_of(n) != "aux")
        return merge_lora(kept, self.lora_modules)

    def check(self) -> None:
        """Compare names and shapes with what the configuration calls for.

        Raises:
            CheckpointError: tensors are unknown, missing or of another shape; they are named.
        """
        expected = expected_shapes(self.config)
        served = {n: s for n, s in self.shapes.items() if part_of(n) not in ("lora", "aux")}
        for name in self.shapes:
            base = name.removesuffix(LORA_A).removesuffix(LORA_B)
            if part_of(name) == "lora" and not {base + LORA_A, base + LORA_B} <= set(self.files):
                raise CheckpointError(f"The LoRA factor {name} lacks its other half.")
        if self.config.tie_word_embeddings:
            for shapes in (expected, served):
                shapes.pop("llm.lm_head.weight", None)
        complain(served.keys() - expected.keys(), expected.keys() - served.keys())
        wrong = {name for name in expected if expected[name] != served[name]}
        if wrong:
            name = min(wrong)
            raise CheckpointError(
                f"{len(wrong)} tensors have another shape than the configuration calls for: "
                f"{name} is {list(served[name])}, not {list(expected[name])}."
            )

    def _handle(self, file: Path) -> Any:
        if file not in self._handles:
            self._handles[file] = _open_weights(file)
        return self._handles[file]


def complain(unknown: Iterable[str], missing: Iterable[str]) -> None:
    """Stop a load that would leave tensors unused or weights unset.

    Raises:
        CheckpointError: either set has members; up to eight of each are named.
    """
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
        for kind, names in (("unknown", sorted(unknown)), ("missing", sorted(missing)))
        if names
    ]
    if problems:
        raise CheckpointError("The checkpoint's tensors do not fit: " + ", ".join(problems) + ".")


def expected_shapes(config: VoRAConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a merged model, computed without allocating it."""
    from model_plugin.model import VoRAForCausalLM

    with torch.device("meta"):
        model = VoRAForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def merge_lora(stream: TensorStream, modules: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Fold LoRA factors into their base weights: W + B A (the released scale is 1).

    The product is accumulated in float32 and returned in the dtype of W.

    Args:
        stream: tensors in any order; a weight waits in memory for its factors.
        modules: layers, without ``.weight``, that have factors.

    Yields:
        Every tensor that is no LoRA factor, once.

    Raises:
        CheckpointError: the stream ended before a layer's weight or factors came.
    """
    waiting: dict[str, dict[str, torch.Tensor]] = {module: {} for module in modules}
    for name, tensor in stream:
        module, suffix = _split_lora(name)
        if module not in waiting:
            yield name, tensor
            continue
        triple = waiting[module]
        triple[suffix] = tensor
        if len(triple) == 3:
            weight = triple[".weight"]
            delta = triple[LORA_B].float() @ triple[LORA_A].float()
            yield f"{module}.weight", delta.add_(weight).to(weight.dtype)
            del waiting[module]
    if waiting:
        module = min(waiting)
        raise CheckpointError(
            f"{len(waiting)} layers lack a weight or a LoRA factor, {module} among them."
        )


def _split_lora(name: str) -> tuple[str, str]:
    for suffix in (LORA_A, LORA_B, ".weight"):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def locate(path: str | Path, **hub: Any) -> Path:
    """The folder of a checkpoint, downloaded if it is on the hub.

    Raises:
        CheckpointError: there is neither a folder nor a repository of that name.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder.")
    patterns = ["*.json", "*.safetensors", "*.bin", "*.jinja", "*.txt"]
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns, **hub))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"There is no folder {path}, and it could not be had from the Hugging Face hub "
            f"({type(error).__name__})."
        ) from error


def read_config(folder: Path) -> VoRAConfig:
    """The configuration of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is not VoRA's.
        ConfigError: a value does not fit.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is no checkpoint.")
    data = read_json(file)
    if data.get("model_type") != VoRAConfig.model_type:
        raise CheckpointError(
            f"{folder} is no VoRA checkpoint: its model_type is {data.get('model_type')!r}."
        )
    try:
        return VoRAConfig(**data)
    except ConfigError:
        raise
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{file} has a value that does not fit: {reason}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds no JSON object.")
    return data


def find_image_token_id(folder: Path) -> int | None:
    """Id of ``<|image_pad|>`` in a checkpoint's tokenizer; None if it does not say."""
    file = folder / "tokenizer.json"
    if file.is_file():
        for token in read_json(file).get("added_tokens", []):
            if token["content"] == IMAGE_TOKEN:
                return int(token["id"])
    file = folder / "tokenizer_config.json"
    if file.is_file():
        for token_id, token in read_json(file).get("added_tokens_decoder", {}).items():
            if token["content"] == IMAGE_TOKEN:
                return int(token_id)
    return None


def _weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name to file, from an index, or from whatever weight files there are."""
    for kind in ("safetensors", "bin"):
        indexes = sorted(folder.glob(f"*.{kind}.index.json"))
        if indexes:
            weight_map = read_json(indexes[0]).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{indexes[0]} has no weight_map.")
            absent = sorted({f for f in weight_map.values() if not (folder / f).is_file()})
            if absent:
                raise CheckpointError(f"{folder} lacks weight files: {', '.join(absent)}.")
            return {name: folder / file for name, file in weight_map.items()}
        files = sorted(folder.glob(f"*.{kind}"))
        files = [f for f in files if f.name not in ("training_args.bin", "optimizer.bin")]
        if files:
            return {name: file for file in files for name in _names(_open_weights(file))}
    raise CheckpointError(f"{folder} has no weights (*.safetensors or *.bin).")


def _open_weights(file: Path) -> Any:
    """A lazy reader: a safetensors handle, or a dictionary of memory-mapped tensors."""
    try:
        if file.suffix == ".safetensors":
            return safe_open(str(file), framework="pt")
        return dict(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file} cannot be read as weights: {error}") from error


def _names(handle: Mapping[str, Any] | Any) -> list[str]:
    return list(handle.keys())
