"""The host in vLLM: one of vLLM's own LLMs, and an embedder for each adapter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fusion.mm_input_norm import FusedMMInputNorm
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.multimodal import MULTIMODAL_REGISTRY

from model_plugin.config import VoRAConfig
from model_plugin.embedder import VoRAVisionEmbedding
from model_plugin.engine.adapters.processing import (
    HostDummyInputsBuilder,
    HostMultiModalProcessor,
    HostProcessingInfo,
)
from model_plugin.engine.adapters.registry import ADAPTER_KEY
from model_plugin.engine.model import VoRAForConditionalGeneration
from model_plugin.tensors import TensorFiles
from vora_core.adapter import EMBEDDER_FILE, AdapterHeader
from vora_core.errors import CheckpointError


class AdapterEmbedder(nn.Module):
    """One adapter's way from bytes of patches to LLM tokens.

    Args:
        header: the adapter.
        llm: the LLM's configuration.
        dtype: that it computes in.
    """

    def __init__(self, header: AdapterHeader, llm: VoRAConfig, dtype: torch.dtype) -> None:
        super().__init__()
        keys = header.config(llm.inner_config().to_dict() | {"model_type": llm.llm_model_type})
        self.config = VoRAConfig(**keys)
        settings = header.image_settings
        self.norm = FusedMMInputNorm(
            list(settings.image_mean), list(settings.image_std), settings.rescale_factor
        )
        self.vision_embedding = VoRAVisionEmbedding(self.config)
        with TensorFiles(header.folder) as files:
            state = {
                name.removeprefix("vision_embedding."): files.read(name) for name in header.embedder
            }
        self.vision_embedding.load_state_dict(state)
        self.dtype = dtype
        self.vision_embedding.to(dtype)

    def forward(self, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """uint8 (sum of h * w, 3 * P * P) and grids (num_images, 2) to tokens of all images."""
        tokens: torch.Tensor = self.vision_embedding(self.norm(pixels, self.dtype), grids)
        return tokens

    def counts(self, grids: torch.Tensor) -> list[int]:
        """Tokens of each image."""
        merged = self.config.spatial_merge_size**2
        return [int(count) // merged for count in grids.prod(-1).tolist()]


@MULTIMODAL_REGISTRY.register_processor(
    HostMultiModalProcessor, info=HostProcessingInfo, dummy_inputs=HostDummyInputsBuilder
)
class VoRAHostForConditionalGeneration(VoRAForConditionalGeneration):
    """A plain LLM that sees through adapters; its own weights and names stay the LLM's.

    Args:
        vllm_config: the engine's settings.
        prefix: name of this module in its parent.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        del self.vision_embedding
        # Not a ModuleDict: what comes and goes is no part of the model that vLLM loads.
        self.embedders: dict[int, AdapterEmbedder] = {}

    def load_adapter(self, key: int, folder: Path) -> None:
        """Load an adapter's embedder.

        Args:
            key: that its images carry.
            folder: of the adapter.

        Raises:
            CheckpointError: its tensors do not fit.
        """
        device = next(self.llm.parameters()).device
        header = AdapterHeader.open(folder)
        try:
            embedder = AdapterEmbedder(header, self.config, self.pixel_dtype)
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder / EMBEDDER_FILE} does not fit its own settings."
            ) from error
        self.embedders[key] = embedder.requires_grad_(False).to(device)

    def drop_adapter(self, key: int) -> None:
        """Forget an adapter's embedder."""
        self.embedders.pop(key, None)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Images of one adapter to LLM tokens.

        Args:
            **kwargs: ``pixel_values`` and ``image_grid_hw`` as in the base class, and
                ``vision_adapter``, int (1,), the adapter's key; 0 while profiling.

        Returns:
            For each image, (tokens, hidden_size).
        """
        pixels: Any = kwargs.get("pixel_values")
        grids: Any = kwargs.get("image_grid_hw")
        if pixels is None or grids is None or not len(grids):
            return []
        key = int(kwargs[ADAPTER_KEY].reshape(-1)[0])  # type: ignore[attr-defined]
        if not key:
            counts = [int(count) for count in grids.prod(-1).tolist()]
            empty = torch.zeros(
                sum(counts), self.config.hidden_size, dtype=self.pixel_dtype, device=pixels.device
            )
            return empty.split(counts)
        embedder = self.embedders[key]
        return embedder(pixels, grids).split(embedder.counts(grids))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the LLM as vLLM's own class for it does."""
        named = ((f"llm.{name}", tensor) for name, tensor in weights)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(named)
        return loaded

    def get_mm_mapping(self) -> MultiModelKeys:
        """Adapters' LoRA goes to the LLM, which is all that there is."""
        return MultiModelKeys.from_string_field(language_model="llm")
