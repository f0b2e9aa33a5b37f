"""Images of many adapters: each by its own settings, marked with the adapter that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig

from model_plugin.engine.adapters.registry import ADAPTER_KEY, registry
from model_plugin.engine.adapters.settings import limits_of
from model_plugin.engine.processing import (
    VoRADummyInputsBuilder,
    VoRAMultiModalProcessor,
    VoRAProcessingInfo,
)
from model_plugin.images import ImageSettings
from model_plugin.processor import VoRAImageProcessor, VoRAProcessor
from model_plugin.processor_files import read_chat_template, template_of


class HostProcessingInfo(VoRAProcessingInfo):
    """What vLLM asks about images on a host."""

    @cached_property
    def processor(self) -> VoRAProcessor:
        """The LLM's tokenizer and template, with image settings that stand for any adapter's."""
        tokenizer = self.get_tokenizer()
        template = read_chat_template(self.ctx.model_config.model, {}) or template_of(tokenizer)
        return VoRAProcessor(VoRAImageProcessor(self._largest), tokenizer, template)

    @cached_property
    def _largest(self) -> ImageSettings:
        """Settings of images as large as the engine has room for; profiling uses them."""
        limits = limits_of(self.get_hf_config())
        assert limits is not None
        unit = ImageSettings.patch_size**2
        return ImageSettings(
            resolution="native", min_pixels=unit, max_pixels=limits.image_tokens * unit
        )

    def settings(self, request: Mapping[str, object] | None = None) -> ImageSettings:
        """The settings of the adapter that a request names.

        Args:
            request: ``mm_processor_kwargs`` of a request.

        Raises:
            CheckpointError: there is no such adapter.
            ConfigError: an option does not fit.
        """
        key = (request or {}).get(ADAPTER_KEY)
        found = registry()
        if not key or found is None:
            return self._largest
        processor = VoRAImageProcessor(found.by_key(key).settings)
        return processor.settings_for(**self.options(request))

    def options(self, request: Mapping[str, object] | None = None) -> dict[str, int]:
        """As in the base class; the adapter's key is no option."""
        rest = {k: v for k, v in (request or {}).items() if k != ADAPTER_KEY}
        return super().options(rest)


class HostDummyInputsBuilder(VoRADummyInputsBuilder):
    """Inputs of the largest size, for profiling."""


class HostMultiModalProcessor(VoRAMultiModalProcessor):
    """Images to patches, with the key of their adapter."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        features = super()._call_hf_processor(hf_data, hf_kwargs)
        key: Any = hf_kwargs.get(ADAPTER_KEY) or 0
        features[ADAPTER_KEY] = torch.tensor([int(key)])
        return features

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        if not fields:
            return fields
        # Shared: vLLM never embeds images of two adapters in one call.
        count = len(hf_inputs["image_grid_hw"])
        return {
            **fields,
            ADAPTER_KEY: MultiModalFieldConfig.shared("image", count, keep_on_cpu=True),
        }
