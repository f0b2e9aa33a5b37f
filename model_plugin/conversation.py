"""Conversations and their images: which are given, in which order, and for which prompt."""

from typing import Any

from PIL import Image

from model_plugin.errors import PlaceholderError

ImageInput = Image.Image | str | bytes
Conversation = list[dict[str, Any]]


def distribute(images: Any, marked: list[int]) -> list[ImageInput]:
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


def images_of(messages: Conversation) -> list[ImageInput]:
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


def without_images(messages: Conversation) -> Conversation:
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
