"""VoRA in vLLM: one of vLLM's own LLMs, and a patch embedder in front of it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.fusion.mm_input_norm import FusedMMInputNorm
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from model_plugin.config import VoRAConfig
from model_plugin.embedder import VoRAVisionEmbedding
from model_plugin.engine.processing import (
    VoRADummyInputsBuilder,
    VoRAMultiModalProcessor,
    VoRAProcessingInfo,
)
from model_plugin.engine.weights import load_weights
from model_plugin.errors import ConfigError
from model_plugin.images import IMAGE_TOKEN


@MULTIMODAL_REGISTRY.register_processor(
    VoRAMultiModalProcessor, info=VoRAProcessingInfo, dummy_inputs=VoRADummyInputsBuilder
)
class VoRAForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP):
    """A decoder-only LLM that sees; parameter names are those of the released layout.

    Args:
        vllm_config: the engine's settings.
        prefix: name of this module in its parent.

    Raises:
        ConfigError: the attention backend would compute images causally.
    """

    #: Images arrive as bytes and are normalised here, on the device.
    supports_mm_device_do_normalize = True
    packed_modules_mapping = {  # noqa: RUF012 - vLLM's convention
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    #: LoRA adapters and quantisation lists that were made for the LLM alone name its layers so.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.": "llm.model.", "lm_head.": "llm.lm_head."}
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """The text that marks an image in a prompt."""
        if modality.startswith("image"):
            return IMAGE_TOKEN
        raise ValueError(f"VoRA takes images, not {modality}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: VoRAConfig = vllm_config.model_config.hf_config
        self.config = config
        self.quant_config = vllm_config.quant_config
        self.input_norm = _input_norm(vllm_config.model_config)
        self.pixel_dtype = vllm_config.model_config.dtype
        with SupportsMultiModal._mark_tower_model(self, vllm_config, "image"):
            self.vision_embedding: nn.Module = (
                VoRAVisionEmbedding(config) if get_pp_group().is_first_rank else PPMissingLayer()
            )
        with SupportsMultiModal._mark_language_model(self, vllm_config):
            self.llm = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.inner_config(),
                prefix=maybe_prefix(prefix, "llm"),
            )
        self.make_empty_intermediate_tensors = self.llm.make_empty_intermediate_tensors
        if vllm_config.model_config.is_mm_prefix_lm:
            require_spans(self)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Images to LLM tokens.

        Args:
            **kwargs: ``pixel_values`` uint8 (sum of h * w, 3 * P * P) and ``image_grid_hw`` int
                (num_images, 2), of any number of images.

        Returns:
            For each image, (tokens, hidden_size).
        """
        pixel_values: Any = kwargs.get("pixel_values")
        grids: Any = kwargs.get("image_grid_hw")
        if pixel_values is None or grids is None or not len(grids):
            return []
        if pixel_values.dtype == torch.uint8:
            pixel_values = self.input_norm(pixel_values, self.pixel_dtype)
        tokens = self.vision_embedding(pixel_values, grids)
        counts = (grids.prod(-1) // self.config.spatial_merge_size**2).tolist()
        return tokens.split(counts)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states (tokens, hidden_size) of a step's tokens, of all requests together."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.llm.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits (tokens, vocab_size)."""
        logits: torch.Tensor | None = self.llm.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint; see ``model_plugin.engine.weights``.

        Raises:
            CheckpointError: tensors are unknown, missing or of another shape.
        """
        return load_weights(self, self.config, weights, quantized=self.quant_config is not None)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which modules are the LLM and which see; LoRA adapters go to the LLM only."""
        return MultiModelKeys.from_string_field(
            language_model="llm", tower_model="vision_embedding"
        )


def _input_norm(model_config: ModelConfig) -> FusedMMInputNorm:
    """Bytes to normalised values, by the checkpoint's image settings."""
    settings = MULTIMODAL_REGISTRY.get_processing_info(model_config).settings()
    return FusedMMInputNorm(
        list(settings.image_mean), list(settings.image_std), settings.rescale_factor
    )


def require_spans(model: nn.Module) -> None:
    """See that every attention layer lets image tokens see the whole of their image.

    Raises:
        ConfigError: a layer's backend would compute them causally.
    """
    for module in model.modules():
        if isinstance(module, Attention) and not module.attn_backend.supports_mm_prefix():
            raise ConfigError(
                f"The attention backend {module.attn_backend.get_name()} computes images causally, "
                "which this checkpoint does not allow; leave out --attention-backend."
            )
