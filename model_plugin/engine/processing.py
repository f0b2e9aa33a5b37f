"""Multimodal processing: images to patches, prompts to token ids with a place for every image."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageSize, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from model_plugin.config import VoRAConfig
from model_plugin.engine.ready_images import ready_pixels
from model_plugin.errors import ConfigError, ImageError
from model_plugin.images import IMAGE_TOKEN, ImageSettings
from model_plugin.processor import VoRAProcessor
from vora_core.bicubic_weights import UInt8Array
from vora_core.pixels import byte_patches, resized_rgb
from vora_core.resampling import available_threads

#: What ``--mm-processor-kwargs`` (and, where the server trusts them, requests) may set.
PROCESSOR_OPTIONS = ("min_pixels", "max_pixels")


class VoRAProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about a VoRA checkpoint's images."""

    def get_hf_config(self) -> VoRAConfig:
        """The checkpoint's configuration."""
        config: VoRAConfig = self.ctx.get_hf_config(VoRAConfig)
        return config

    @cached_property
    def processor(self) -> VoRAProcessor:
        """The checkpoint's own processor, server options not applied."""
        model = self.ctx.model_config
        return VoRAProcessor.from_pretrained(
            model.model,
            revision=model.revision,
            config=self.get_hf_config(),
            tokenizer=self.get_tokenizer(),
        )

    def get_hf_processor(self, **kwargs: object) -> VoRAProcessor:
        """The checkpoint's own processor; options go to each call."""
        return self.processor

    def settings(self, request: Mapping[str, object] | None = None) -> ImageSettings:
        """Image settings with the server's and a request's processor options applied.

        Args:
            request: ``mm_processor_kwargs`` of a request.

        Raises:
            ConfigError: an option is unknown or does not fit the checkpoint.
        """
        return self.processor.image_processor.settings_for(**self.options(request))

    def options(self, request: Mapping[str, object] | None = None) -> dict[str, int]:
        """The server's and a request's processor options, checked.

        Raises:
            ConfigError: an option is unknown or no whole number.
        """
        merged = dict(self.ctx.get_merged_mm_kwargs(request or {}))
        scoped = merged.pop("images_kwargs", None)
        options = merged | (dict(scoped) if isinstance(scoped, Mapping) else {})
        for step in ("do_normalize", "do_rescale"):  # vLLM's way to say that the device does them
            options.pop(step, None)
        for key, value in options.items():
            if key not in PROCESSOR_OPTIONS:
                raise ConfigError(
                    f"Unknown option {key!r} in --mm-processor-kwargs; VoRA knows "
                    f"{' and '.join(PROCESSOR_OPTIONS)}."
                )
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"{key} in --mm-processor-kwargs must be a positive whole number, "
                    f"not {value!r}."
                )
        return options

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of images."""
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        """The most tokens of one image; what does not fit the context is refused anyway."""
        return {"image": min(self.settings().max_tokens, seq_len)}

    def largest_image(self) -> ImageSize:
        """Size in pixels of an image that makes as many tokens as one may."""
        settings = self.settings()
        if settings.resolution == "fixed":
            return ImageSize(settings.image_size, settings.image_size)
        limit = settings.max_tokens
        sides = ((limit // low, low) for low in range(math.isqrt(limit), 0, -1))
        # Near square, so that the aspect ratio is far from its limit.
        across, down = max(sides, key=lambda side: (side[0] * side[1], side[1]))
        return ImageSize(across * settings.unit, down * settings.unit)


class VoRADummyInputsBuilder(BaseDummyInputsBuilder[VoRAProcessingInfo]):
    """Inputs of the largest size, for profiling."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One placeholder an image."""
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: Mapping[str, MultiModalDummyOptions],
    ) -> MultiModalDataDict:
        """Images of the largest size."""
        size = self.info.largest_image()
        images = self._get_dummy_images(
            width=size.width,
            height=size.height,
            num_images=mm_counts.get("image", 0),
            overrides=mm_options.get("image"),
        )
        return {"image": images}


class VoRAMultiModalProcessor(BaseMultiModalProcessor[VoRAProcessingInfo]):
    """Images to patches; each placeholder to as many tokens as its image has."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """Patches of the images as bytes, uint8 (sum of h * w, 3 * P * P), and their grids.

        The model normalises them on its device. Pixels that come ready are only cut into patches.
        Errors are the image's own, not vLLM's wrapper, which would print the request's data.
        """
        images: Any = hf_data.get("images", ())
        settings = self.info.settings(hf_kwargs)
        pixels = [_resized(image, settings) for image in images]
        side = settings.patch_size
        patches = [byte_patches(rgb, side) for rgb in pixels]
        grids = [(rgb.shape[0] // side, rgb.shape[1] // side) for rgb in pixels]
        empty = np.empty((0, 3 * side**2), dtype=np.uint8)
        together = patches[0] if len(patches) == 1 else np.concatenate([empty, *patches])
        grid = np.array(grids, dtype=np.int64).reshape(-1, 2)
        return BatchFeature(
            {"pixel_values": torch.from_numpy(together), "image_grid_hw": torch.from_numpy(grid)}
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        grids = hf_inputs.get("image_grid_hw")
        if grids is None:
            return {}
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grids.prod(-1)),
            # Read on the host, where it shapes the work; no need for it on the device.
            "image_grid_hw": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        image_token = self.info.processor.image_token_id
        merged = self.info.settings(hf_processor_mm_kwargs).merge_size ** 2

        def tokens(item_idx: int) -> list[int]:
            grid: Any = out_mm_kwargs["image"][item_idx]["image_grid_hw"].data
            return [image_token] * (int(grid.prod()) // merged)

        return [PromptReplacement(modality="image", target=[image_token], replacement=tokens)]


def _resized(image: object, settings: ImageSettings) -> UInt8Array:
    """An image's pixels at the size at which they reach the model."""
    ready = ready_pixels(image, settings)
    if ready is not None:
        return ready
    return resized_rgb(_as_image(image), settings, available_threads())


def _as_image(image: object) -> Image.Image:
    """What offline callers may pass as an image, as a Pillow image.

    Raises:
        ImageError: it is neither a Pillow image nor a uint8 array (H, W, 3).
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        return Image.fromarray(image)
    raise ImageError("An image must be a Pillow image or a uint8 array (height, width, 3).")
