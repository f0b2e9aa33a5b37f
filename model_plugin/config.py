"""VoRAConfig: the configuration of a VoRA checkpoint.

A VoRA model is a decoder-only LLM plus a patch embedder, so its ``config.json`` is flat: the LLM's
own keys stand beside the few that VoRA adds. Nothing here needs torch.
"""

from typing import Any, Literal

from transformers import CONFIG_MAPPING, PreTrainedConfig

from vora_core.errors import ConfigError
from vora_core.layout import LINEAR_LAYERS, SUPPORTED_LLMS

VoraAttention = Literal["bidirectional", "default"]
PositionMode = Literal["released", "interpolate"]


class VoRAConfig(PreTrainedConfig):
    """Configuration of a VoRA model; keys that are not VoRA's own belong to the LLM.

    Args:
        llm_model_type: transformers' ``model_type`` of the LLM, one of ``SUPPORTED_LLMS``.
            Released checkpoints do not say; they are Qwen2.
        image_size: side, in pixels, of the square that ``pos_embed`` was learned on.
        patch_size: side P, in pixels, of a patch.
        spatial_merge_size: m; m x m neighbouring patches become one LLM token (pixel unshuffle
            before the output projection). 1 is what the paper does.
        vision_embedding_intermediate_size: C, width of the patch embedding before it is projected
            to the LLM's width.
        vision_attention_mask: ``bidirectional`` (tokens of one image see each other, section 3.3
            of the paper) or ``default`` (causal everywhere).
        position_mode: ``released`` adds the first N rows of ``pos_embed`` to an image of N patches
            and interpolates only when N exceeds the grid; ``interpolate`` resizes the grid in 2-D
            at every size.
        image_token_id: token id of ``<|image_pad|>``; None when the checkpoint does not say (then
            the tokenizer does).
        lora: ``{"r": rank, "layers": N_vit or "all", "target_modules": [...]}`` as the released
            code writes it; ``r`` of -1 or 0 means merged.
        extra_biases: linear layers of the LLM that have a bias which its architecture does not
            know, as ``model.layers.0.mlp.down_proj``. Released checkpoints do not list them;
            whoever loads one finds them among its tensors.
        aux_vision: name of the teacher that a pretraining checkpoint carries, or "".
        skip_aux_cls: whether the teacher's class token is left out of distillation.
        **kwargs: the LLM's keys (``hidden_size``, ``num_hidden_layers``, ``rope_theta``, ...).

    Raises:
        ConfigError: a value is outside what its key allows.
    """

    model_type = "vora"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the base class's convention

    llm_model_type: str = "qwen2"
    image_size: int = 448
    patch_size: int = 14
    spatial_merge_size: int = 1
    vision_embedding: str = "AIMv2Embedding"
    vision_embedding_intermediate_size: int = 1536
    vision_attention_mask: str = "bidirectional"
    position_mode: str = "released"
    image_token_id: int | None = None
    lora: dict[str, Any] | None = None
    extra_biases: list[str] | None = None
    aux_vision: str | None = ""
    skip_aux_cls: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self._check()
        # The LLM's config class supplies the defaults of its keys and standardises them (rotary
        # parameters, layer types); readers such as vLLM then find the LLM's attributes right here.
        llm = _llm_config_class(self.llm_model_type)(
            tie_word_embeddings=self.tie_word_embeddings,
            dtype=getattr(self, "dtype", None),
            **kwargs,
        )
        own = set(self._own_keys())
        for key, value in llm.to_dict().items():
            if key not in own and key not in _NOT_THE_LLMS:
                kwargs[key] = value
        kwargs.pop("rope_theta", None)
        kwargs.pop("rope_scaling", None)
        self.dtype = llm.dtype
        self.rope_parameters = kwargs.pop("rope_parameters", None)
        super().__post_init__(**kwargs)

    @classmethod
    def _own_keys(cls) -> list[str]:
        return [key for key in VoRAConfig.__annotations__ if key != "tie_word_embeddings"]

    def _check(self) -> None:
        if self.llm_model_type not in SUPPORTED_LLMS:
            raise ConfigError(
                f"llm_model_type is {self.llm_model_type!r}; VoRA runs with one of "
                f"{', '.join(SUPPORTED_LLMS)}."
            )
        for key in ("image_size", "patch_size", "spatial_merge_size"):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < 1:
                raise ConfigError(f"{key} must be a positive integer, not {getattr(self, key)!r}.")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}."
            )
        if self.vision_attention_mask not in ("bidirectional", "default"):
            raise ConfigError(
                'vision_attention_mask must be "bidirectional" or "default", not '
                f"{self.vision_attention_mask!r}."
            )
        if self.position_mode not in ("released", "interpolate"):
            raise ConfigError(
                f'position_mode must be "released" or "interpolate", not {self.position_mode!r}.'
            )
        if self.vision_embedding != "AIMv2Embedding":
            raise ConfigError(
                f"vision_embedding is {self.vision_embedding!r}; only AIMv2Embedding is known."
            )

    @property
    def grid_size(self) -> int:
        """G: ``pos_embed`` holds G x G positions."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Number of values in one flattened patch: 3 * P * P."""
        return 3 * self.patch_size**2

    @property
    def is_mm_prefix_lm(self) -> bool:
        """Whether image tokens see the whole of their image; the name is the one vLLM reads."""
        return self.vision_attention_mask == "bidirectional"

    @property
    def is_merged(self) -> bool:
        """Whether the weights hold no separate LoRA factors."""
        return not self.lora or int(self.lora.get("r", -1)) <= 0

    @property
    def lora_modules(self) -> frozenset[str]:
        """Names, without ``.weight``, of the LLM's layers that have separate LoRA factors."""
        if self.is_merged or self.lora is None:
            return frozenset()
        layers = self.lora.get("layers", "all")
        count = self.num_hidden_layers if layers == "all" else int(layers)
        targets = self.lora.get("target_modules") or LINEAR_LAYERS
        return frozenset(f"llm.model.layers.{i}.{name}" for i in range(count) for name in targets)

    def inner_config(self) -> PreTrainedConfig:
        """The configuration of the inner LLM alone, an instance of its own transformers class.

        It is not called ``llm_config``: vLLM takes an attribute of that name for a sub-config.
        """
        own = set(self._own_keys())
        keys = {
            key: value
            for key, value in self.to_dict().items()
            if key not in own and key not in _NOT_THE_LLMS
        }
        architecture = _llm_config_class(self.llm_model_type)(**keys)
        architecture.dtype = self.dtype
        architecture._attn_implementation = self._attn_implementation
        return architecture

    @classmethod
    def from_llm_config(cls, llm_config: PreTrainedConfig, **vora_keys: Any) -> "VoRAConfig":
        """A VoRA configuration around an LLM's.

        Args:
            llm_config: configuration of a supported LLM.
            **vora_keys: VoRA's own keys, as in the class.

        Raises:
            ConfigError: the LLM's architecture is not supported, or a value does not fit.
        """
        keys = {k: v for k, v in llm_config.to_dict().items() if k not in _NOT_THE_LLMS}
        return cls(
            llm_model_type=llm_config.model_type,
            architectures=["VoRAForCausalLM"],
            **(keys | vora_keys),
        )


#: Keys that every transformers configuration writes and that describe the file, not the LLM.
_NOT_THE_LLMS = frozenset(
    {"model_type", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype"}
    | {"_name_or_path", "llm", "reuse_aux_vision_embedding_layers", "vision_host"}
)


def _llm_config_class(model_type: str) -> type[PreTrainedConfig]:
    found: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return found
