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
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import render_jinja_template

from model_plugin.chat import DEFAULT_CHAT_TEMPLATE, encode_chat, takes_list_content
from model_plugin.config import VoRAConfig
from model_plugin.decoding import decode
from model_plugin.errors import CheckpointError, ConfigError, PlaceholderError
from model_plugin.images import (
    IMAGE_TOKEN,
    RELEASED_IMAGE_TOKEN,
    ImageSettings,
    preprocess_patches,
)
from vora_core.resampling import available_threads, spread

PREPROCESSOR_FILE = "preprocessor_config.json"
PLACEHOLDER = re.compile(f"{re.escape(IMAGE_TOKEN)}|{re.escape(RELEASED_IMAGE_TOKEN)}")

ImageInput = Image.Image | str | bytes
Conversation = list[dict[str, Any]]


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
        chat_template: a Jinja template that takes list content; ChatML when absent.

    Raises:
        CheckpointError: the tokenizer has no ``<|image_pad|>``.
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
        if chat_template is None or not takes_list_content(chat_template):
            chat_template = DEFAULT_CHAT_TEMPLATE
        self.chat_template = chat_template

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
        flat = _distribute(images, [len(chunks) - 1 for chunks in marked])
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
                conversations=[messages],
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
            encode_chat(self.tokenizer, render, _without_images(messages), tools)
            for messages in conversations
        ]
        if not return_dict:
            return ids if batched else ids[0]
        images = [_images_of(messages) for messages in conversations]
        marked = [row.count(self.image_token_id) for row in ids]
        flat = _distribute(images, marked)
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
        data = _read_json(path, PREPROCESSOR_FILE, hub)
        settings = ImageSettings.from_dict(
            {"size": config.image_size} | data,
            patch_size=config.patch_size,
            merge_size=config.spatial_merge_size,
        )
        images = VoRAImageProcessor(settings)
        images.settings = images.settings_for(kwargs.get("min_pixels"), kwargs.get("max_pixels"))
        return cls(images, tokenizer, _read_chat_template(path, hub) or tokenizer.chat_template)

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


def _distribute(images: Any, marked: list[int]) -> list[ImageInput]:
    """All images in order, after checking that each prompt has as many as it marks."""
    if images is None:
        images = []
    if isinstance(images, Image.Image | str | bytes):
        images = [images]
    nested = [list(group) for group in images if isinstance(group, list | tuple)]
    if images and len(nested) == len(images):
        given = [len(group) for group in nested]
        flat: list[ImageInput] = [image for group in nested for image in group]
        if given != marked:
            raise PlaceholderError(f"The prompts mark {marked} images, but {given} are given.")
        return flat
    if len(images) != sum(marked):
        raise PlaceholderError(
            f"The prompts mark {sum(marked)} images, but {len(images)} are given."
        )
    return list(images)


def _images_of(messages: Conversation) -> list[ImageInput]:
    images: list[ImageInput] = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part.get("type") == "image":
                images.append(next(part[k] for k in ("image", "url", "path") if k in part))
            elif part.get("type") == "image_url":
                link = part["image_url"]
                images.append(link["url"] if isinstance(link, dict) else link)
    return images


def _without_images(messages: Conversation) -> Conversation:
    """The conversation with images reduced to their places, which is all a template needs."""
    stripped = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = [
                {"type": "image"} if part.get("type") in ("image", "image_url") else part
                for part in content
            ]
        stripped.append(message | {"content": content})
    return stripped


def _read(path: str, name: str, hub: dict[str, Any]) -> str | None:
    file = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return Path(file).read_text(encoding="utf-8") if file else None


def _read_json(path: str, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty if there is no such file."""
    try:
        data = json.loads(_read(path, name, hub) or "{}")
    except ValueError as error:
        raise CheckpointError(f"{path}/{name} is not valid JSON.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}/{name} holds no JSON object.")
    return data


def _read_chat_template(path: str, hub: dict[str, Any]) -> str | None:
    """The checkpoint's own template, from the file that carries one with list content."""
    template = _read(path, "chat_template.jinja", hub)
    if template is None:
        template = _read_json(path, "chat_template.json", hub).get("chat_template")
    return template
