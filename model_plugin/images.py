"""Image geometry and pixels, as the model side names them: :mod:`vora_core` defines both."""

from vora_core.geometry import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGE_TOKEN,
    MAX_ASPECT_RATIO,
    MIN_SIDE,
    RELEASED_IMAGE_TOKEN,
    ImageSettings,
    check_size,
)
from vora_core.pixels import (
    Float32Array,
    patchify,
    preprocess,
    preprocess_patches,
    resized_rgb,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGE_TOKEN",
    "MAX_ASPECT_RATIO",
    "MIN_SIDE",
    "RELEASED_IMAGE_TOKEN",
    "Float32Array",
    "ImageSettings",
    "check_size",
    "patchify",
    "preprocess",
    "preprocess_patches",
    "resized_rgb",
]
