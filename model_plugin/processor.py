"""Text and images to model inputs: what ``AutoProcessor`` returns for a VoRA checkpoint."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import load_image
from transformers.utils.chat_template_utils import render_jinja_template

from model_plugin.chat import encode_chat
from model_plugin.chat_template import DEFAULT_CHAT_TEMPLATE, content_form, fit_content
from model_plugin.config import VoRAConfig
from model_plugin.conversation import (
    Conversation,
    ImageInput,
    distribute,
    images_of,
    without_images,
)
from model_plugin.decoding import decode
from model_plugin.errors import CheckpointError, ConfigError, PlaceholderError
from model_plugin.images import (
    IMAGE_TOKEN,
    RELEASED_IMAGE_TOKEN,
    ImageSettings,
    preprocess_patches,
)
from model_plugin.processor_files import read_chat_template, read_json, template_of
from vora_core.resampling import available_threads, spread

PREPROCESSOR_FILE = "preprocessor_config.json"
PLACEHOLDER = re.compile(f"{re.escape(IMAGE_TOKEN)}|{re.escape(RELEASED_IMAGE_TOKEN)}")


class VoRAImageProcessor(ImageProcessingMixin):
    """Images to patches, by a checkpoint's image settings.

    Args:
        settings: geometry and normalisation.
    """

    model_input_names = ["pixel_values", "image_grid_hw"]  # noqa: RUF012

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__()
        self.settings = settings

    def __call__(
        self,
        images: Sequence[Image.Image | bytes],
        return_tensors: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        scaled_jpeg: bool = False,
    ) -> BatchFeature:
        """Preprocess images.

        Args:
            images: Pillow images of any mode and size, or the bytes of image files.
            return_tensors: "pt", "np" or None (numpy arrays).
            min_pixels, max_pixels: other bounds than the checkpoint's (native resolution).
            scaled_jpeg: decode large JPEG files at a fraction of their size; faster, but not quite
                the released pixels (``model_plugin.decoding``).

        Returns:
            ``pixel_values`` float32 (sum of h * w, 3 * P * P) and ``image_grid_hw`` int64
            (num_images, 2); both empty when there are no images.

        Raises:
            ImageError: an image is too small or too elongated, or no image.
            ConfigError: the bounds do not fit, or the resolution is fixed.
        """
        settings = self.settings_for(min_pixels, max_pixels)
        threads = available_threads()
        # Several images: each on a thread of its own. One: all threads on its parts.
        alone = threads if len(images) == 1 else 1

        def one(image: Image.Image | bytes) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
            size = None
            if isinstance(image, bytes):
                image, size = decode(image, settings, scaled_jpeg)
            return preprocess_patches(image, settings, alone, size)

        done = spread(one, images, threads)
        empty = np.empty((0, 3 * settings.patch_size**2), dtype=np.float32)
        patches = [pixels for pixels, _ in done]
        data = {
            "pixel_values": patches[0] if len(done) == 1 else np.concatenate([empty, *patches]),
            "image_grid_hw": np.array([grid for _, grid in done], dtype=np.int64).reshape(-1, 2),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def settings_for(
        self, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> ImageSettings:
        """The settings with other pixel bounds.

        Raises:
            ConfigError: the bounds do not fit, or the resolution is fixed.
        """
        bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        bounds = {key: value for key, value in bounds.items() if value is not None}
        if not bounds:
            return self.settings
        if self.settings.resolution == "fixed":
            raise ConfigError(
                "min_pixels and max_pixels need a checkpoint of native resolution; this one is "
                "fixed."
            )
        return ImageSettings(**(vars(self.settings) | bounds))

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``preprocessor_config.json``."""
        return self.settings.to_dict()


class VoRAProcessor(ProcessorMixin):
    """Prompts and their images to model inputs.

    Args:
        image_processor: turns images into patches.
        tokenizer: a fast tokenizer that knows ``<|image_pad|>``.
        chat_template: a Jinja template, used as it is; ChatML when absent.

    Raises:
        CheckpointError: the tokenizer has no ``<|image_pad|>``, or the template loses text or
            images.
    """

    chat_template: str

    def __init__(
        self,
        image_processor: VoRAImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token = IMAGE_TOKEN
        self.image_token_id = image_token_id(tokenizer)
        self.chat_template = DEFAULT_CHAT_TEMPLATE if chat_template is None else chat_template
        content_form(self.chat_template)

    @property
    def settings(self) -> ImageSettings:
        """The checkpoint's image settings."""
        return self.image_processor.settings

    @property
    def model_input_names(self) -> list[str]:
        """Names of what ``__call__`` returns."""
        return ["input_ids", "attention_mask", *VoRAImageProcessor.model_input_names]

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | None = None,
        text: str | Sequence[str] | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **image_kwargs: Any,
    ) -> BatchFeature:
        """Raw prompts, in which ``<|image_pad|>`` or ``<image>`` marks an image.

        Args:
            images: one image, those of all prompts in order, or a list of images for each prompt;
                Pillow images, paths, URLs or files' bytes.
            text: one prompt or several.
            padding: as in tokenizers.
            padding_side: "left" (what generation needs) or "right"; the tokenizer's when absent.
            return_tensors: "pt", "np" or None.
            **image_kwargs: ``min_pixels``, ``max_pixels``, ``scaled_jpeg``.

        Returns:
            ``input_ids`` and ``attention_mask``, int (B, T); with images also ``pixel_values`` and
            ``image_grid_hw``.

        Raises:
            PlaceholderError: a prompt marks another number of images than it is given.
            ImageError: an image is too small or too elongated.
        """
        prompts = [text] if isinstance(text, str) else list(text or [""])
        marked = [PLACEHOLDER.split(prompt) for prompt in prompts]
        flat = distribute(images, [len(chunks) - 1 for chunks in marked])
        ids = [self._encode_chunks(chunks) for chunks in marked]
        return self._finish(ids, flat, padding, padding_side, return_tensors, image_kwargs)

    def apply_chat_template(
        self,
        conversation: Conversation | list[Conversation],
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render conversations, and tokenise them with what users wrote kept as text.

        Args:
            conversation: OpenAI-style messages, or a list of such conversations. Parts of list
                content: ``{"type": "text", "text": ...}``, ``{"type": "image", "image": ...}``
                (Pillow image, path or URL) or ``{"type": "image_url", ...}``.
            chat_template: a template instead of the checkpoint's.
            tools: tool descriptions for the template.
            add_generation_prompt: end with the start of an answer.
            tokenize: return token ids. Prefer this to tokenising the rendered string: only here
                does a ``<|im_end|>`` that a user typed stay text.
            return_dict: with ``tokenize``, return all model inputs, images included.
            return_tensors, padding, padding_side: as in ``__call__``.
            processor_kwargs: ``min_pixels``, ``max_pixels``.
            **kwargs: further variables of the template.

        Returns:
            The rendered string, token ids, or model inputs; a list of them for several
            conversations.
        """
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        conversations: list[Any] = list(conversation) if batched else [conversation]
        template = chat_template or self.chat_template

        def render(messages: Any, tools: Any = None) -> str:
            rendered, _ = render_jinja_template(
                conversations=[fit_content(messages, template)],
                tools=tools,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **(self.tokenizer.special_tokens_map | kwargs),
            )
            return str(rendered[0])

        if not tokenize:
            texts = [render(messages, tools) for messages in conversations]
            return texts if batched else texts[0]
        ids = [
            encode_chat(self.tokenizer, render, without_images(messages), tools)
            for messages in conversations
        ]
        if not return_dict:
            return ids if batched else ids[0]
        images = [images_of(messages) for messages in conversations]
        marked = [row.count(self.image_token_id) for row in ids]
        flat = distribute(images, marked)
        return self._finish(
            ids, flat, padding, padding_side, return_tensors, processor_kwargs or {}
        )

    def expand(self, ids: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Repeat each image's placeholder as often as the image has tokens.

        Args:
            ids: token ids with one ``image_token_id`` an image.
            counts: tokens of each image.

        Raises:
            PlaceholderError: there are more or fewer placeholders than images.
        """
        if list(ids).count(self.image_token_id) != len(counts):
            raise PlaceholderError(
                f"The prompt marks {list(ids).count(self.image_token_id)} images, but "
                f"{len(counts)} are given."
            )
        remaining = iter(counts)
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (next(remaining) if token == self.image_token_id else 1)
        return expanded

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Write tokenizer, image settings and chat template in the released layout."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = list(self.tokenizer.save_pretrained(str(folder)))
        settings = json.dumps(self.image_processor.to_dict(), indent=2, sort_keys=True) + "\n"
        (folder / PREPROCESSOR_FILE).write_text(settings, encoding="utf-8")
        (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        return [*written, str(folder / PREPROCESSOR_FILE), str(folder / "chat_template.jinja")]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load the processor of a checkpoint, a folder or a hub id.

        Args:
            pretrained_model_name_or_path: the checkpoint.
            **kwargs: ``config`` and ``tokenizer`` if already loaded; ``min_pixels`` and
                ``max_pixels`` to change bounds; ``revision``, ``cache_dir``, ``token``,
                ``local_files_only`` for the hub.

        Raises:
            CheckpointError: files are missing, or the tokenizer has no ``<|image_pad|>``.
            ConfigError: the image settings do not fit.
        """
        path = str(pretrained_model_name_or_path)
        hub = {
            key: kwargs[key]
            for key in ("revision", "cache_dir", "token", "local_files_only")
            if kwargs.get(key) is not None
        }
        config = kwargs.get("config")
        if not isinstance(config, VoRAConfig):
            config = AutoConfig.from_pretrained(path, **hub)
        tokenizer = kwargs.get("tokenizer")
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(path, config=config, **hub)
        tokenizer.padding_side = "left"
        data = read_json(path, PREPROCESSOR_FILE, hub)
        settings = ImageSettings.from_dict(
            {"size": config.image_size} | data,
            patch_size=config.patch_size,
            merge_size=config.spatial_merge_size,
        )
        images = VoRAImageProcessor(settings)
        images.settings = images.settings_for(kwargs.get("min_pixels"), kwargs.get("max_pixels"))
        return cls(images, tokenizer, read_chat_template(path, hub) or template_of(tokenizer))

    def _encode_chunks(self, chunks: Sequence[str]) -> list[int]:
        """Token ids of the text between images, each chunk on its own as the released code does."""
        ids: list[int] = []
        for index, chunk in enumerate(chunks):
            if index:
                ids.append(self.image_token_id)
            if chunk or not index:
                ids += self.tokenizer.encode(chunk, add_special_tokens=not index)
        return ids

    def _finish(
        self,
        ids: list[list[int]],
        images: list[ImageInput],
        padding: bool | str,
        padding_side: str | None,
        return_tensors: str | None,
        image_kwargs: dict[str, Any],
    ) -> BatchFeature:
        features: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            loaded = [load_image(image) if isinstance(image, str) else image for image in images]
            features = dict(self.image_processor(loaded, **image_kwargs))
            merged = self.settings.merge_size**2
            counts = [int(h * w) // merged for h, w in features["image_grid_hw"]]
        expanded, taken = [], 0
        for row in ids:
            marked = row.count(self.image_token_id)
            expanded.append(self.expand(row, counts[taken : taken + marked]))
            taken += marked
        padded = self.tokenizer.pad(
            {"input_ids": expanded}, padding=padding, padding_side=padding_side
        )
        return BatchFeature(dict(padded) | features, tensor_type=return_tensors)


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of ``<|image_pad|>``.

    Raises:
        CheckpointError: the tokenizer does not have it as a token of its own.
    """
    token_id = tokenizer.get_added_vocab().get(IMAGE_TOKEN)
    if token_id is None:
        raise CheckpointError(f"The tokenizer has no token {IMAGE_TOKEN} to stand for images.")
    return int(token_id)
