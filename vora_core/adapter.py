"""A vision adapter's headers: what makes one LLM see, kept beside it instead of merged into it.

A folder of

* ``adapter_config.json`` and ``adapter_model.safetensors``: LoRA factors, as peft writes them;
* ``embedder.safetensors``: the patch embedder, ``vision_embedding.*``;
* ``vision_adapter.json``: the base LLM's name and hash, and VoRA's own configuration keys;
* ``preprocessor_config.json``: how images become patches;
* optionally ``chat_template.jinja``, ``generation_config.json`` and a card, ``README.md``.

Reads JSON files and the headers of safetensors files; never a weight, and no tensor library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from vora_core.checkpoint import PROCESSOR_FILE, CheckpointHeader, read_json
from vora_core.errors import CheckpointError, ConfigError
from vora_core.geometry import ImageSettings
from vora_core.identity import content_digest
from vora_core.layout import LINEAR_LAYERS, SUPPORTED_LLMS, Shape, complain, expected_shapes
from vora_core.safetensors_io import TensorEntry, read_entries

ADAPTER_FILE = "vision_adapter.json"
PEFT_FILE = "adapter_config.json"
FACTORS_FILE = "adapter_model.safetensors"
EMBEDDER_FILE = "embedder.safetensors"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
#: Files that decide what an adapter answers.
CONTENT_FILES = (
    ADAPTER_FILE,
    PEFT_FILE,
    FACTORS_FILE,
    EMBEDDER_FILE,
    PROCESSOR_FILE,
    TEMPLATE_FILE,
    GENERATION_FILE,
)
FORMAT = 1
#: What peft puts before the name of a layer of the LLM.
PEFT_PREFIX = "base_model.model."
#: VoRA's own keys of ``config.json`` that an adapter carries.
VISION_KEYS = (
    "image_size",
    "patch_size",
    "spatial_merge_size",
    "vision_embedding",
    "vision_embedding_intermediate_size",
    "vision_attention_mask",
    "position_mode",
)
#: Ranks for which vLLM's LoRA kernels are made; an engine takes all up to one of them.
KERNEL_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
MAX_KERNEL_RANK = KERNEL_RANKS[-1]


@dataclass(frozen=True)
class AdapterHeader:
    """What a vision adapter's small files say.

    Attributes:
        folder: where it is.
        settings: the contents of ``vision_adapter.json``.
        peft: the contents of ``adapter_config.json``.
        processor: the contents of ``preprocessor_config.json``.
    """

    folder: Path
    settings: Mapping[str, Any]
    peft: Mapping[str, Any]
    processor: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the JSON files of an adapter.

        Raises:
            CheckpointError: it is no vision adapter, or a file or value is missing or damaged.
        """
        if not (folder / ADAPTER_FILE).is_file():
            raise CheckpointError(
                f"{folder} is not a vision adapter: it has no {ADAPTER_FILE}. "
                "Make one with vora-serve export --adapter."
            )
        found = cls(
            folder,
            read_json(folder / ADAPTER_FILE),
            read_json(folder / PEFT_FILE),
            read_json(folder / PROCESSOR_FILE),
        )
        if found.settings.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / ADAPTER_FILE} has the format {found.settings.get('format')!r}; this "
                f"version reads format {FORMAT}."
            )
        base, vision = found.settings.get("base"), found.settings.get("vision")
        if not isinstance(base, dict) or not isinstance(vision, dict):
            raise CheckpointError(f"{folder / ADAPTER_FILE} has no base or no vision.")
        if not all(isinstance(base.get(key), str) for key in ("name", "sha256")):
            raise CheckpointError(f"{folder / ADAPTER_FILE} does not name its base LLM.")
        if not isinstance(found.peft.get("r"), int) or found.peft["r"] < 1:
            raise CheckpointError(f"{folder / PEFT_FILE} has no rank r.")
        if found.peft.get("lora_alpha") != found.peft["r"]:
            raise CheckpointError(f"{folder / PEFT_FILE} has a lora_alpha other than its rank.")
        return found

    @property
    def base_name(self) -> str:
        """What the base LLM was called where the adapter was trained."""
        return str(self.settings["base"]["name"])

    @property
    def base_digest(self) -> str:
        """The hash of the base LLM's tensors, as :func:`vora_core.identity.llm_digest` has it."""
        return str(self.settings["base"]["sha256"])

    @property
    def rank(self) -> int:
        """Rank of the LoRA factors."""
        return int(self.peft["r"])

    @property
    def vision(self) -> dict[str, Any]:
        """VoRA's own configuration keys."""
        return dict(self.settings["vision"])

    @cached_property
    def image_settings(self) -> ImageSettings:
        """How images become patches.

        Raises:
            ConfigError: a value does not fit.
        """
        header = CheckpointHeader(self.folder, self.vision, self.processor)
        return header.image_settings

    @cached_property
    def factors(self) -> dict[str, TensorEntry]:
        """The LoRA factors, by their names in peft's layout."""
        return read_entries(self.folder / FACTORS_FILE)

    @cached_property
    def embedder(self) -> dict[str, TensorEntry]:
        """The embedder's tensors."""
        return read_entries(self.folder / EMBEDDER_FILE)

    @property
    def parameters(self) -> int:
        """Number of values in its weight files."""
        return sum(e.count for e in (*self.factors.values(), *self.embedder.values()))

    @cached_property
    def digest(self) -> str:
        """The hash of everything that decides its answers; reads all of its files."""
        return content_digest(self.folder, CONTENT_FILES)

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The ``config.json`` of the VoRA model that base and adapter make together.

        Args:
            base: the contents of the base LLM's ``config.json``.
        """
        return {
            **base,
            **self.vision,
            "model_type": "vora",
            "architectures": ["VoRAForCausalLM"],
            "llm_model_type": base.get("model_type"),
            "extra_biases": [],
            "lora": {"r": self.rank, "layers": self.blocks, "target_modules": [*self.layers]},
        }

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The kinds of linear layers that have factors, as in ``LINEAR_LAYERS``."""
        kinds = {split_factor(name)[0].split(".", 3)[-1] for name in self.factors}
        return tuple(kind for kind in LINEAR_LAYERS if kind in kinds)

    @cached_property
    def blocks(self) -> int:
        """Number of the LLM's first blocks that have factors."""
        numbers = (split_factor(name)[0].split(".")[2] for name in self.factors)
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)

    def check(self, base: Mapping[str, Any]) -> None:
        """Compare names and shapes of all tensors with what the base LLM calls for.

        Args:
            base: the contents of the base LLM's ``config.json``, defaults filled in or not.

        Raises:
            CheckpointError: tensors are unknown, missing or of another shape.
            ConfigError: the base LLM is of another family, or a key is missing.
        """
        expected = expected_shapes(self.config(base))
        vision = {n: shape for n, shape in expected.items() if n.startswith("vision_embedding.")}
        complain(self.embedder.keys() - vision.keys(), vision.keys() - self.embedder.keys())
        for name, shape in vision.items():
            _same(name, self.embedder[name].shape, shape)
        for name, (shape, half) in self._factor_shapes(expected).items():
            _same(name, shape, half)

    def _factor_shapes(self, expected: Mapping[str, Shape]) -> dict[str, tuple[Shape, Shape]]:
        """Each factor's shape, and the one that its layer calls for."""
        shapes: dict[str, tuple[Shape, Shape]] = {}
        for name, entry in self.factors.items():
            layer, which = split_factor(name)
            weight = expected.get(f"llm.{layer}.weight", ())
            other = (
                name.removesuffix(f"{which}.weight") + ("B" if which == "A" else "A") + ".weight"
            )
            if len(weight) != 2 or other not in self.factors:
                raise CheckpointError(
                    f"The LoRA factor {name} has no layer in the base LLM, or lacks its other half."
                )
            half = (self.rank, weight[1]) if which == "A" else (weight[0], self.rank)
            shapes[name] = (entry.shape, half)
        if not shapes:
            raise CheckpointError(f"{self.folder / FACTORS_FILE} holds no LoRA factors.")
        return shapes


def split_factor(name: str) -> tuple[str, str]:
    """The layer of a factor in peft's layout (``model.layers.0.mlp.up_proj``), and ``A`` or ``B``.

    Raises:
        CheckpointError: it is not the name of a factor.
    """
    for which in "AB":
        if name.startswith(PEFT_PREFIX) and name.endswith(f".lora_{which}.weight"):
            return name.removeprefix(PEFT_PREFIX).removesuffix(f".lora_{which}.weight"), which
    raise CheckpointError(f"{name} is not a LoRA factor of a layer of the LLM.")


def _same(name: str, found: Shape, expected: Shape) -> None:
    if found != expected:
        raise CheckpointError(
            f"The adapter's tensor {name} is {list(found)}, but the base LLM calls for "
            f"{list(expected)}."
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a vision adapter."""
    return (folder / ADAPTER_FILE).is_file()


def open_base(folder: Path) -> CheckpointHeader:
    """The headers of an LLM that vision adapters can go with.

    Raises:
        CheckpointError: it is no plain checkpoint of a supported family.
    """
    header = CheckpointHeader.open(folder)
    if header.model_type not in SUPPORTED_LLMS:
        raise CheckpointError(
            f"{folder} is not an LLM that vision adapters go with: its model_type is "
            f"{header.model_type!r}, not one of {', '.join(SUPPORTED_LLMS)}."
        )
    return header


def require_base(adapter: AdapterHeader, base: CheckpointHeader, digest: str) -> None:
    """See that an adapter belongs to an LLM.

    Args:
        adapter: the adapter.
        base: the LLM.
        digest: the hash of the LLM's tensors.

    Raises:
        CheckpointError: it was trained on another one, or does not fit.
    """
    if adapter.base_digest != digest:
        raise CheckpointError(
            f"The adapter {adapter.folder} was trained on another LLM than {base.folder}: it "
            f"names {adapter.base_name}, whose tensors have the hash {adapter.base_digest[:12]}…, "
            f"not {digest[:12]}…."
        )
    adapter.check(base.config)


def require_kernel_rank(adapter: AdapterHeader, largest: int = MAX_KERNEL_RANK) -> None:
    """Refuse ranks that vLLM's LoRA kernels do not take.

    Args:
        adapter: the adapter.
        largest: the largest rank that the engine takes.

    Raises:
        ConfigError: the rank is above it; the sentence says what to do.
    """
    if adapter.rank > largest:
        raise ConfigError(
            f"The adapter {adapter.folder} has rank {adapter.rank}; run-time LoRA here takes ranks "
            f"up to {largest}. Truncate it (vora-serve export --adapter --rank {largest}) or merge "
            "it (vora-serve merge)."
        )


def kernel_rank(rank: int) -> int:
    """The smallest of vLLM's rank limits that holds a rank."""
    return next((limit for limit in KERNEL_RANKS if rank <= limit), MAX_KERNEL_RANK)
