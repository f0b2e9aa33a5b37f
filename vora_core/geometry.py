"""Image geometry: from an image's size in pixels to its patch grid and its number of tokens.

Every part of the project that needs these numbers takes them from here: the processor, the gateway,
the playground, load tests. Two policies, chosen by a checkpoint's ``preprocessor_config.json``:

* ``fixed``: pad to a square with black, then the checkpoint's CLIP-style resize, crop and
  normalisation; every image costs the same number of tokens.
* ``native``: round both sides to the patch grid and keep the number of pixels within bounds, so
  that an image keeps its aspect ratio and its cost follows its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from vora_core.errors import ConfigError, ImageError

#: The token that marks an image in a prompt and fills the place of each of its tokens.
IMAGE_TOKEN = "<|image_pad|>"
#: How the released implementation spells an image in a raw prompt.
RELEASED_IMAGE_TOKEN = "<image>"

#: Long side over short side, above which an image is refused (as the released code does).
MAX_ASPECT_RATIO = 200
#: Shortest side in pixels: a single row or column of pixels shows nothing.
MIN_SIDE = 2

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: Pillow's numbers of its resampling filters, nearest to Hamming.
_FILTERS = range(6)


@dataclass(frozen=True)
class ImageSettings:
    """What turns an image into patches.

    Attributes:
        resolution: ``fixed`` or ``native``.
        patch_size: side P of a patch, in pixels.
        merge_size: m; m x m patches become one LLM token, so grids are multiples of m.
        image_size: side of the square that a fixed-resolution image becomes, in pixels. What is
            left at its right and bottom after the last whole unit is not used.
        resize_edge: side that the padded square is resized to before it is cropped to
            ``image_size`` (fixed only; equal to ``image_size`` unless the checkpoint says so).
        min_pixels, max_pixels: bounds on H * W after resizing (native only).
        image_mean, image_std: per channel, on values in 0..1.
        resample: Pillow's number of the resampling filter (3 is bicubic).
        rescale_factor: factor from 0..255 to 0..1.
    """

    resolution: Literal["fixed", "native"] = "fixed"
    patch_size: int = 14
    merge_size: int = 1
    image_size: int = 448
    resize_edge: int = 448
    min_pixels: int = 56 * 56
    max_pixels: int = 14 * 14 * 50 * 80
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    resample: int = 3
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        if self.resolution not in ("fixed", "native"):
            raise ConfigError(f'resolution must be "fixed" or "native", not {self.resolution!r}.')
        if min(self.image_std) <= 0:
            raise ConfigError(f"image_std must be positive, not {list(self.image_std)}.")
        if self.resolution == "fixed" and self.image_size < self.unit:
            raise ConfigError(
                f"A fixed image of {self.image_size} pixels a side leaves no room for one token of "
                f"{self.unit} x {self.unit} pixels (patch size times merge size)."
            )
        if self.resolution == "native" and not self.unit**2 <= self.max_pixels:
            raise ConfigError(
                f"max_pixels {self.max_pixels} leaves no room for one token of "
                f"{self.unit} x {self.unit} pixels."
            )
        if self.resolution == "native" and self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}."
            )

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, patch_size: int, merge_size: int = 1) -> Self:
        """Settings from the contents of a ``preprocessor_config.json``.

        Args:
            data: the parsed file; keys as in the released file, plus ``resolution``,
                ``min_pixels`` and ``max_pixels``.
            patch_size: P, from the model's configuration.
            merge_size: m, from the model's configuration.

        Raises:
            ConfigError: a value is missing or does not fit.
        """
        try:
            return cls(**cls._read(data), patch_size=patch_size, merge_size=merge_size)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"preprocessor_config.json has a value that does not fit: {error}."
            ) from error

    @classmethod
    def _read(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Fields, but for the model's own two, from the contents of the file."""
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if data.get(step) is False:
                raise ConfigError(f"preprocessor_config.json switches {step} off; VoRA needs it.")
        crop = side_of(data["crop_size"]) if data.get("crop_size") else None
        edge = side_of(data["size"]) if data.get("size") else None
        if data.get("do_center_crop") is False:
            crop = edge
        image_size = crop or edge or cls.image_size
        if edge is not None and edge < image_size:
            raise ConfigError(f"crop_size {image_size} is larger than the resized image, {edge}.")
        return {
            "resolution": data.get("resolution", "fixed"),
            "image_size": image_size,
            "resize_edge": edge or image_size,
            "min_pixels": int(data.get("min_pixels", cls.min_pixels)),
            "max_pixels": int(data.get("max_pixels", cls.max_pixels)),
            "image_mean": _triple(data.get("image_mean", CLIP_MEAN)),
            "image_std": _triple(data.get("image_std", CLIP_STD)),
            "resample": _filter(data.get("resample", cls.resample)),
            "rescale_factor": float(data.get("rescale_factor", cls.rescale_factor)),
        }

    def to_dict(self) -> dict[str, Any]:
        """The contents of a ``preprocessor_config.json`` that ``from_dict`` reads back."""
        data: dict[str, Any] = {
            "image_processor_type": "VoRAImageProcessor",
            "processor_class": "VoRAProcessor",
            "resolution": self.resolution,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "resample": self.resample,
            "rescale_factor": self.rescale_factor,
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
        }
        if self.resolution == "native":
            return data | {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        size = {"height": self.image_size, "width": self.image_size}
        return data | {"size": {"shortest_edge": self.resize_edge}, "crop_size": size}

    def geometry(self) -> dict[str, Any]:
        """What decides an image's size and tokens, without what only changes its values."""
        shared = {
            "resolution": self.resolution,
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
        }
        if self.resolution == "native":
            return shared | {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return shared | {"image_size": self.image_size, "resize_edge": self.resize_edge}

    @property
    def unit(self) -> int:
        """Side in pixels of what becomes one LLM token: P * m."""
        return self.patch_size * self.merge_size

    @property
    def max_tokens(self) -> int:
        """The most tokens that one image can become."""
        if self.resolution == "fixed":
            return (self.image_size // self.unit) ** 2
        return self.max_pixels // self.unit**2

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Size in pixels, (width, height), at which an image of that size reaches the model.

        Raises:
            ImageError: the image is too small or too elongated.
        """
        check_size(width, height)
        unit = self.unit
        if self.resolution == "fixed":
            side = self.image_size // unit * unit
            return side, side
        new_w, new_h = (max(unit, round(side / unit) * unit) for side in (width, height))
        if new_w * new_h > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            new_w, new_h = (
                max(unit, math.floor(side / shrink / unit) * unit) for side in (width, height)
            )
            # A side that could not shrink below one unit leaves the other too long.
            longest = self.max_pixels // unit // unit * unit
            new_w, new_h = (min(side, longest) for side in (new_w, new_h))
        elif new_w * new_h < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            new_w, new_h = (math.ceil(side * grow / unit) * unit for side in (width, height))
            if new_w * new_h > self.max_pixels:
                raise ImageError(
                    f"The image of {width}x{height} pixels fits no size between min_pixels "
                    f"{self.min_pixels} and max_pixels {self.max_pixels}."
                )
        return new_w, new_h

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Patch grid (h, w), rows first, of an image of width x height pixels.

        Raises:
            ImageError: the image is too small or too elongated.
        """
        new_w, new_h = self.resized(width, height)
        return new_h // self.patch_size, new_w // self.patch_size

    def num_tokens(self, width: int, height: int) -> int:
        """LLM tokens that an image of width x height pixels becomes.

        Raises:
            ImageError: the image is too small or too elongated.
        """
        h, w = self.grid(width, height)
        return h * w // self.merge_size**2


def check_size(width: int, height: int) -> None:
    """Refuse what has too little to show or is too elongated.

    Raises:
        ImageError: a side is under ``MIN_SIDE`` or the aspect ratio over ``MAX_ASPECT_RATIO``.
    """
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"The image is {width}x{height} pixels; each side must have at least {MIN_SIDE}."
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"The image is {width}x{height} pixels; its aspect ratio must not exceed "
            f"{MAX_ASPECT_RATIO}."
        )


def side_of(size: Any) -> int:
    """A side in pixels, from ``448``, ``{"shortest_edge": 448}`` or ``{"height": 448, ...}``.

    Raises:
        ConfigError: it is not one side of a square.
    """
    if isinstance(size, int):
        return size
    if isinstance(size, dict):
        sides = {int(v) for k, v in size.items() if k in ("shortest_edge", "height", "width") and v}
        if len(sides) == 1:
            return sides.pop()
    raise ConfigError(f"preprocessor_config.json gives an image size that is not square: {size!r}.")


def _filter(number: Any) -> int:
    if isinstance(number, bool) or number not in _FILTERS:
        raise ConfigError(f"resample must be a number from 0 to 5, not {number!r}.")
    return int(number)


def _triple(values: Any) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ConfigError(f"image_mean and image_std need three values, not {len(values)}.")
    red, green, blue = (float(v) for v in values)
    return red, green, blue
