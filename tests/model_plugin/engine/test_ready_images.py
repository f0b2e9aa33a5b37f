"""Pixels that come ready: taken as they are where the settings agree, and as an image elsewhere."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.model_plugin.conftest import noise_image
from tests.model_plugin.engine.harness import needs_vllm
from vora_core.geometry import ImageSettings
from vora_core.pixels import resized_rgb
from vora_core.ready_pixels import MEDIA_TYPE, pack

pytestmark = [needs_vllm, pytest.mark.filterwarnings("default")]

SETTINGS = ImageSettings(image_size=112, resize_edge=112)


def load(content: bytes, media_type: str = MEDIA_TYPE) -> Any:
    from model_plugin.engine.ready_images import ReadyImageConnector

    url = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return ReadyImageConnector().fetch_image(url, image_mode=None)


def test_ready_pixels_are_taken_as_they_are() -> None:
    from model_plugin.engine.processing import _resized

    rgb = resized_rgb(noise_image(300, 200, 1), SETTINGS)
    loaded = load(pack(rgb.tobytes(), (112, 112), SETTINGS))
    np.testing.assert_array_equal(_resized(loaded.media, SETTINGS), rgb)
    other = replace(SETTINGS, resize_edge=128)
    np.testing.assert_array_equal(
        _resized(loaded.media, other), resized_rgb(loaded.media.convert("RGB"), other)
    )


def test_other_images_go_their_usual_way() -> None:
    from io import BytesIO

    from model_plugin.engine.ready_images import ready_pixels

    file = BytesIO()
    noise_image(60, 40, 1).save(file, "PNG")
    loaded = load(file.getvalue(), "image/png")
    assert loaded.media.size == (60, 40)
    assert ready_pixels(loaded.media, SETTINGS) is None


def test_what_is_no_pixmap_is_refused() -> None:
    for content in (b"", b"P6", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match="image"):
            load(content)
